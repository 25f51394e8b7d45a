"""Two workers under Ray Train: what they make is repeatable to the byte, also when one of them is killed."""

from pathlib import Path

import pytest

from tests.flows.conftest import FinishedRun
from tests.flows.test_kills import first_step, kill, last_checkpoint
from tests.flows.workspace import TINY, Workspace, wait_until

pytestmark = [pytest.mark.engines, pytest.mark.slow]
TWO_WORKERS = TINY | {"workers": 2, "threads": 1, "pretrain.n_steps": 120}


def prepared(root: Path, finished: FinishedRun) -> Workspace:
    return Workspace.behind(root, finished.workspace, TWO_WORKERS)


def test_a_killed_worker_of_two_changes_nothing(finished: FinishedRun, tmp_path: Path):
    whole = prepared(tmp_path / "whole", finished)
    result = whole.axon("run", "pretrain")
    assert result.returncode == 0, result.stdout + result.stderr
    (execution,) = whole.executions("pretrain")
    assert first_step(execution) == 1

    cut = prepared(tmp_path / "cut", finished)
    run = cut.start("run", "pretrain")
    wait_until(lambda: last_checkpoint(cut, "pretrain") >= 5)
    kill(cut, "RayTrainWorker")
    assert run.wait(timeout=580) == 0, (cut.root / "axon.log").read_text()[-4000:]
    assert cut.lock == whole.lock
    assert cut.processes() == []
