"""`AXON_STORAGE`: workers get code and data without the checkout, and make the same bytes."""

from pathlib import Path

import pytest

from tasks.runtime import stages
from tests.flows.conftest import FinishedRun
from tests.flows.workspace import TINY, Workspace

pytestmark = pytest.mark.engines


def test_a_stage_by_way_of_a_store_makes_the_same_bytes(finished: FinishedRun, tmp_path: Path):
    workspace = Workspace.create(tmp_path / "checkout")
    workspace.set_parameters(TINY)
    workspace.take_results(finished.workspace, but=("preferences",))
    result = workspace.axon("run", "preferences", AXON_STORAGE=str(tmp_path / "store"), AXON_CACHE=str(tmp_path / "c"))
    assert result.returncode == 0, result.stdout + result.stderr
    assert workspace.lock == finished.workspace.lock
    out = "preferences/comparisons.parquet"
    digest = stages.digest(workspace.root / out)
    assert (tmp_path / "store" / "files" / "md5" / digest[:2] / digest[2:]).is_file()
    assert list((tmp_path / "c" / "work").glob("preferences-*")), "the work was done in the node's folder"
    assert workspace.processes() == []
