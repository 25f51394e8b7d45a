"""`kill -9` of any process of a run, then `axon run`: the same `dvc.lock`, from the last checkpoint, no orphan."""

import signal
from pathlib import Path

import psutil
import pytest
import yaml

from tests.flows.conftest import FinishedRun
from tests.flows.workspace import TINY, Workspace, command_line, wait_until

pytestmark = pytest.mark.engines
UPDATES_AN_ITERATION = TINY["ppo.prompts_per_iteration"] // TINY["ppo.minibatch_size"] * 2  # two epochs


def results_of(workspace: Workspace, stage: str) -> list[Path]:
    """The kept results of a stage that fans out."""
    return list((workspace.root / ".axon" / "checkpoints").glob(f"{stage}-*/*/[0-9]*.json"))


def last_checkpoint(workspace: Workspace, stage: str) -> int:
    """The number of the newest whole checkpoint of a training stage; 0 if there is none."""
    found = (workspace.root / ".axon" / "checkpoints").glob(f"{stage}-*/checkpoint-*")
    return max((int(path.name.removeprefix("checkpoint-")) for path in found), default=0)


def first_step(execution: list[dict]) -> int:
    """The step of the first report that an execution made about its work."""
    return min(event["step"] for event in execution if event["event"] == "metrics" and "loss" in event["values"])


def kill(workspace: Workspace, text: str) -> None:
    """Kill the youngest process of the run whose command contains `text`."""
    found = [p for p in workspace.processes() if text in command_line(p)]
    assert found, [command_line(p) for p in workspace.processes()]
    max(found, key=lambda p: p.create_time()).send_signal(signal.SIGKILL)


def test_kills_in_three_stages_change_nothing(finished: FinishedRun, tmp_path: Path):
    workspace = Workspace.create(tmp_path / "checkout")

    run = workspace.start("run")
    wait_until(lambda: last_checkpoint(workspace, "pretrain") >= 5)
    children = workspace.processes()
    assert any("flows.pretrain" in command_line(p) for p in children)
    run.kill()
    run.wait()
    _gone, alive = psutil.wait_procs(children, timeout=15)
    assert [command_line(p) for p in alive if p.status() != psutil.STATUS_ZOMBIE] == []
    assert not (workspace.root / "models" / "pretrain").exists()

    run = workspace.start("run")
    wait_until(lambda: results_of(workspace, "preferences"))
    kill(workspace, "PoolWorker")
    wait_until(lambda: last_checkpoint(workspace, "ppo") > UPDATES_AN_ITERATION + 2)
    kill(workspace, "flows.ppo")
    assert run.wait(timeout=580) == 0, (workspace.root / "axon.log").read_text()[-4000:]

    killed, resumed = workspace.executions("pretrain")
    assert killed[-1]["event"] != "end"
    assert resumed[-1]["status"] == "FINISHED"
    assert first_step(resumed) > 5, "it goes on from a checkpoint, not from the start"
    lost, mended = workspace.executions("preferences")
    assert (lost[-1]["status"], mended[-1]["status"]) == ("FAILED", "FINISHED")
    killed, resumed = workspace.executions("ppo")
    assert killed[-1]["event"] != "end"
    assert first_step(resumed) > 1, "it goes on from a checkpoint, not from the first iteration"
    assert workspace.lock == finished.workspace.lock
    assert workspace.processes() == []
    assert workspace.open_in_prefect() == []


@pytest.mark.slow  # `tests/chaos` kills these and others
def test_a_killed_prefect_server_is_started_again_and_a_killed_raylet_ends_in_the_same_lock(
    finished: FinishedRun, tmp_path: Path
):
    workspace = Workspace.create(tmp_path / "checkout")
    workspace.take_results(finished.workspace, but=("pretrain", "reward_model"))

    run = workspace.start("run", "reward_model")
    wait_until(lambda: last_checkpoint(workspace, "pretrain") >= 5)
    kill(workspace, "prefect server start")
    wait_until(lambda: last_checkpoint(workspace, "reward_model") >= 2)
    (pretrain,) = workspace.executions("pretrain")
    assert pretrain[-1]["status"] == "FINISHED"
    children = workspace.processes()
    kill(workspace, "raylet/raylet")
    run.wait(timeout=300)
    _gone, alive = psutil.wait_procs(children, timeout=15)
    assert [command_line(p) for p in alive if p.status() != psutil.STATUS_ZOMBIE] == []

    result = workspace.axon("run", "reward_model")
    assert result.returncode == 0, result.stdout + result.stderr
    assert first_step(workspace.executions("reward_model")[-1]) > 2 or run.returncode == 0
    assert yaml.safe_load(workspace.lock) == yaml.safe_load(finished.workspace.lock)
    assert workspace.processes() == []
