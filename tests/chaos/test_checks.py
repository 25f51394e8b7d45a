"""What the harness looks for it finds: a check that cannot fail would count every kill as survived."""

import json
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tasks.runtime import guard
from tasks.runtime.checkout import Checkout
from tasks.tracking.journal import Journal
from tasks.tracking.mlflow_store import Sender, client, is_behind
from tests.chaos import checks
from tests.flows.workspace import Workspace


def test_held_locks_open_runs_and_notes_of_dvc_are_found(tmp_path: Path):
    (tmp_path / ".dvc" / "tmp").mkdir(parents=True)
    (tmp_path / ".axon" / "runs").mkdir(parents=True)
    (tmp_path / ".dvc" / "tmp" / "lock").write_text("123")
    (tmp_path / ".dvc" / "tmp" / "rwlock").write_text("{}")
    assert checks.locks_left(tmp_path) == []
    with guard.exclusive(tmp_path / ".axon" / "locks" / "run", who="x", waiting=None):
        assert checks.locks_left(tmp_path) == ["held: run"]
    with Journal(tmp_path / ".axon" / "journal", "sft") as journal:
        assert checks.locks_left(tmp_path) == [f"held: {journal.path.name}"]
    (tmp_path / ".axon" / "runs" / "r.open").write_text("1")
    (tmp_path / ".dvc" / "tmp" / "rwlock").write_text(json.dumps({"models": {"write": {"pid": 1, "cmd": "dvc"}}}))
    assert checks.locks_left(tmp_path) == [
        "open: r.open",
        'in DVC\'s rwlock: {"models": {"write": {"pid": 1, "cmd": "dvc"}}}',
    ]


def test_a_process_is_found_by_its_folder_and_by_having_been_seen(tmp_path: Path):
    (tmp_path / "in").mkdir()
    workspace = Workspace(tmp_path / "in")
    command = [sys.executable, "-c", "import time; time.sleep(600)"]
    inside, outside = subprocess.Popen(command, cwd=workspace.root), subprocess.Popen(command, cwd=tmp_path)
    try:
        assert len(checks.orphans(workspace, (), within_s=0)) == 1
        assert len(checks.orphans(workspace, [psutil.Process(outside.pid)], within_s=0)) == 2
    finally:
        for process in (inside, outside):
            process.kill()
            process.wait()
    assert checks.orphans(workspace, [], within_s=0) == []


def test_locks_are_compared_to_the_byte_and_by_stage():
    lock = b"stages:\n  data:\n    md5: a\n  sft:\n    md5: b\n"
    assert checks.differences(lock, lock) == []
    assert checks.differences(lock.replace(b"b\n", b"c\n"), lock) == ["dvc.lock differs: sft"]
    assert checks.differences(lock + b"\n", lock) == ["dvc.lock differs: not in an entry, but in its bytes"]


@pytest.fixture
def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Checkout, Journal, Journal]:
    """A store that was told of an execution that ended and of one that was killed."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    checkout = Checkout(tmp_path)
    with Journal(checkout.journals, "sft") as ended:
        ended.start("sft", kind="stage", params={"sft": {"n_steps": 2}}, inputs={})
        ended.metrics(1, {"loss": 2.0})
        ended.metrics(2, {"loss": 1.0})
        ended.end("FINISHED", outputs={})
    killed = Journal(checkout.journals, "sft")
    killed.start("sft", kind="stage", params={}, inputs={})
    killed._file.close()  # as the end of its process does
    assert is_behind(checkout)
    Sender(checkout).deliver()
    assert not is_behind(checkout)
    return checkout, ended, killed


def test_runs_in_a_wrong_state_and_values_told_twice_or_never_are_found(told: tuple[Checkout, Journal, Journal]):
    checkout, ended, killed = told
    mlflow = client(checkout)
    paths = [ended.path, killed.path]
    assert checks.tracked_wrongly(mlflow, paths) == []
    run, lost = (Sender(checkout).run_of(j.id) for j in (ended, killed))
    mlflow.set_terminated(lost, status="FINISHED")
    mlflow.log_metric(run, "loss", 1.0, step=2)  # at another time
    mlflow.set_terminated(run, status="FAILED")
    assert checks.tracked_wrongly(mlflow, paths) == [
        "MLflow has a run of sft FAILED that is FINISHED",
        "MLflow has 3 values of sft's loss, not the 2 that were written",
        "MLflow has a run of sft FINISHED that is KILLED",
    ]
    mlflow.delete_run(lost)
    assert "MLflow has 0 runs of one execution of sft" in checks.tracked_wrongly(mlflow, paths)


def executions(*ends: str, first: int = 0) -> list[checks.Execution]:
    return [
        [{"event": "start", "id": f"{number}"}, *([{"event": "end", "status": end}] if end else [])]
        for number, end in enumerate(ends, first)
    ]


@pytest.mark.parametrize(
    ("kind", "struck", "stage", "pipeline", "wrong"),
    [
        ("gcs", "0", ["", "FINISHED"], ["FINISHED"], []),
        ("worker", "0", ["FAILED", "FINISHED"], ["FINISHED"], []),
        ("stage", None, ["FINISHED"], ["FINISHED"], []),
        ("axon", "0", ["", "FINISHED"], ["", "FINISHED"], []),
        ("stage", "0", ["FAILED", ""], ["FINISHED"], ["not finished", "FAILED, where stage was killed"]),
        ("worker", "0", ["", "FINISHED"], ["FINISHED"], ["KILLED, where worker was killed"]),
        ("mlflow", "0", ["FINISHED", "FINISHED"], ["FINISHED"], ["2 executions, where nothing was killed"]),
        ("axon", "0", ["", "FINISHED"], ["FAILED", "FINISHED"], ["0 pipeline runs are KILLED, and 1 were killed"]),
        ("worker", "0", ["FAILED", "FINISHED"], ["", "FINISHED"], ["1 pipeline runs are KILLED, and 0 were killed"]),
        ("raylet", "0", [], ["FINISHED"], ["sft: its last execution is not finished"]),
    ],
)
def test_ends_that_a_kill_does_not_explain_are_found(kind, struck, stage, pipeline, wrong):
    found = checks.ended_wrongly(
        [(kind, "sft", struck)], {"sft": executions(*stage), "pipeline": executions(*pipeline, first=9)}
    )
    assert len(found) == len(wrong), found
    for told, expected in zip(found, wrong, strict=True):
        assert expected in told
