"""One undisturbed run of the tiny pipeline, shared by the tests that look at what it made.

With several processes (`pytest -n 2`, pytest-xdist) it is made by whichever needs it first. One process has all tests
that start engines, one after another: they measure times, look at what is left running, and share the finished
workspace, which some of them alter. Tests of single commands (`axon`) take a copy of it as the run left it.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.flows.workspace import Workspace, listening
from tests.helpers import REPOSITORY

ENGINES = "engines"
COMMANDS = ("tests/flows/test_argument_fuzz.py", "tests/flows/test_command_fuzz.py")  # they start none


@dataclass
class FinishedRun:
    """A workspace after `axon run`, with the sockets that were seen to listen meanwhile; and a copy for nobody to
    alter, made at once."""

    workspace: Workspace
    copy: Path
    output: str
    sockets: set[tuple[str, int, str]]
    orphans: list[str]


@cache
def part_of(path: str) -> str:
    """What a test file goes with where several processes share the tests: all that start engines, or nothing else."""
    starts_engines = path not in COMMANDS and "mark.engines" in (REPOSITORY / path).read_text()
    return ENGINES if starts_engines else path


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Parts go to processes whole, in the order below. (`--dist loadgroup` of pytest-xdist 3.8 groups nothing under
    pytest 9.2, and does not say so: issue 1386 there.)"""
    from xdist.scheduler import LoadScopeScheduling

    class Parts(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return part_of(nodeid.partition("::")[0])

    config.option.loadscopereorder = False
    return Parts(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """In a process of several: engines first, since they take longest; last the commands, which wait for the run."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        paths = {item: item.nodeid.partition("::")[0] for item in items}
        items.sort(key=lambda item: (paths[item] in COMMANDS) - (part_of(paths[item]) == ENGINES))


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Hold the lock at `path` among the processes of pytest."""
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> FinishedRun:
    """The run; tests that alter its workspace, or start engines, take it as `finished`."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "undisturbed"
    folder.mkdir(exist_ok=True)
    note = folder / "run.json"
    with alone(folder / "lock"):
        if not note.is_file():
            told = _run(folder / "checkout")
            shutil.copytree(folder / "checkout", folder / "copy", symlinks=True)
            note.write_text(json.dumps(told))
    made = json.loads(note.read_text())
    made["sockets"] = {(address, port, command) for address, port, command in made["sockets"]}
    return FinishedRun(workspace=Workspace(folder / "checkout"), copy=folder / "copy", **made)


@pytest.fixture(scope="session")
def finished(undisturbed: FinishedRun) -> FinishedRun:
    return undisturbed


def _run(root: Path) -> dict[str, object]:
    """Run all of it at `root`, and watch."""
    workspace = Workspace.create(root)
    process = workspace.start("run")
    sockets: set[tuple[str, int, str]] = set()
    seen: dict[int, psutil.Process] = {}

    def watch() -> None:
        while process.poll() is None:
            for one in [psutil.Process(process.pid), *workspace.processes()]:
                seen[one.pid] = one
            sockets.update(listening(list(seen.values())))
            time.sleep(0.3)

    watcher = threading.Thread(target=watch)
    watcher.start()
    process.wait(timeout=580)
    watcher.join()
    output = (workspace.root / "axon.log").read_text()
    assert process.returncode == 0, output[-4000:]
    time.sleep(1)
    orphans = [str(p) for p in seen.values() if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
    return {"output": output, "sockets": sorted(sockets), "orphans": orphans}
