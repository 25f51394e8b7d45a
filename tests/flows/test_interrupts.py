"""Ctrl-C and SIGTERM: a checkpoint, then out within ten seconds; `axon run` goes on from there to the same bytes."""

import os
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest
from mlflow.tracking import MlflowClient

from tests.flows.conftest import FinishedRun
from tests.flows.test_kills import first_step, last_checkpoint
from tests.flows.workspace import TINY, Workspace, wait_until

pytestmark = pytest.mark.engines
# Checkpoints by the clock would hide whether the signal made one.
LONG = TINY | {"pretrain.n_steps": 500, "pretrain.evaluate_every": 500, "runtime.checkpoint_every_s": 3600.0}


def prepared(root: Path, finished: FinishedRun) -> Workspace:
    return Workspace.behind(root, finished.workspace, LONG)


def steps_done(workspace: Workspace) -> int:
    """The last step that the newest execution of pretrain has reported."""
    executions = workspace.executions("pretrain")
    reported = [e["step"] for e in executions[-1] if e["event"] == "metrics"] if executions else []
    return max(reported, default=0)


def left_within(run: subprocess.Popen[str], workspace: Workspace, at_most_s: float) -> None:
    """Wait for the run and for all that it started; both in time."""
    started = time.monotonic()
    children = workspace.processes()
    assert run.wait(timeout=60) == 130, (workspace.root / "axon.log").read_text()[-4000:]
    took = time.monotonic() - started
    _gone, alive = psutil.wait_procs(children, timeout=10)
    assert [p for p in alive if p.status() != psutil.STATUS_ZOMBIE] == []
    assert took <= at_most_s, f"{took:.1f} s"


def test_an_interrupted_run_saves_leaves_and_goes_on_to_the_same_bytes(finished: FinishedRun, tmp_path: Path):
    cut = prepared(tmp_path / "cut", finished)
    run = cut.start("run", "pretrain", SHELL="/bin/sh")  # dash stays between DVC and the stage, and gets the signal too
    wait_until(lambda: steps_done(cut) >= 20)
    os.killpg(run.pid, signal.SIGINT)  # what a terminal does
    left_within(run, cut, 10.0)
    first = last_checkpoint(cut, "pretrain")
    assert first >= 20
    assert "goes on" in (cut.root / "axon.log").read_text()

    run = cut.start("run", "pretrain")
    wait_until(lambda: len(cut.executions("pretrain")) == 2 and steps_done(cut) >= first + 20)
    run.send_signal(signal.SIGTERM)  # what a supervisor does
    left_within(run, cut, 10.0)
    second = last_checkpoint(cut, "pretrain")
    assert second >= first + 20

    # The last run and one that nothing has interrupted, side by side: both wait for engines most of the time.
    whole = prepared(tmp_path / "whole", finished)
    undisturbed = whole.start("run", "pretrain")
    run = cut.start("run", "pretrain")
    assert run.wait(timeout=300) == 0, (cut.root / "axon.log").read_text()[-4000:]
    assert undisturbed.wait(timeout=300) == 0, (whole.root / "axon.log").read_text()[-4000:]
    assert [first_step(e) for e in cut.executions("pretrain")] == [1, first + 1, second + 1]
    assert cut.lock == whole.lock
    client = MlflowClient(tracking_uri=f"sqlite:///{cut.root}/.axon/mlflow.db")
    experiment = client.get_experiment_by_name("axon")
    runs = client.search_runs([experiment.experiment_id], order_by=["attributes.start_time"])
    assert [r.info.status for r in runs if r.info.run_name == "pretrain"] == ["KILLED", "KILLED", "FINISHED"]
    assert [r.info.status for r in runs if r.info.run_name == "pipeline"] == ["KILLED", "KILLED", "FINISHED"]


def test_a_second_signal_leaves_at_once(finished: FinishedRun, tmp_path: Path):
    workspace = prepared(tmp_path / "checkout", finished)
    run = workspace.start("run", "pretrain", SHELL="/bin/bash")  # bash puts the stage in its own place
    wait_until(lambda: steps_done(workspace) >= 5)
    stopped = next(p for p in workspace.processes() if "StepWorker" in " ".join(p.cmdline()))
    stopped.suspend()  # it cannot save
    os.killpg(run.pid, signal.SIGINT)
    time.sleep(1.5)
    os.killpg(run.pid, signal.SIGINT)
    left_within(run, workspace, 10.0)
    # What a stage says that was given time and could not save.
    assert "stopped in the middle" not in (workspace.root / "axon.log").read_text()
