"""What the tests of runs know of the one undisturbed run that they share (`tests/conftest.py`)."""

import shutil
from collections.abc import Iterator

import pytest

from tests.conftest import FinishedRun
from tests.flows.fuzzing import Commands
from tests.flows.workspace import Workspace

__all__ = ["FinishedRun"]


@pytest.fixture(scope="session")
def axon(undisturbed: FinishedRun, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Commands]:
    """Commands in a copy of a workspace in which the whole pipeline has run."""
    root = tmp_path_factory.mktemp("fuzzed") / "checkout"
    shutil.copytree(undisturbed.copy, root, symlinks=True)
    commands = Commands(Workspace(root))
    yield commands
    commands.close()
