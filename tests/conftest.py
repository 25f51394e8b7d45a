"""One undisturbed run of the tiny pipeline, shared by the tests that look at what it made."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass

import psutil
import pytest

from tests.flows.workspace import Workspace, listening


@dataclass
class FinishedRun:
    """A workspace after `axon run`, with the sockets that were seen to listen meanwhile."""

    workspace: Workspace
    output: str
    sockets: set[tuple[str, int, str]]
    orphans: list[str]


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> FinishedRun:
    workspace = Workspace.create(tmp_path_factory.mktemp("undisturbed") / "checkout")
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
    return FinishedRun(workspace, output, sockets, orphans)
