"""What must be true after a kill and the next run, as sentences about what is not."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import psutil
import yaml

from tasks.tracking import journal
from tasks.tracking.mlflow_store import EXPERIMENT
from tests.flows.workspace import Workspace, command_line

_GONE_WITHIN_S = 15
Execution = list[dict[str, Any]]  # the events of its journal


def orphans(workspace: Workspace, seen: Iterable[psutil.Process], *, within_s: float = _GONE_WITHIN_S) -> list[str]:
    """What runs on when a run has ended, after some seconds: of the processes seen in it, or in its folder."""
    deadline = time.monotonic() + within_s
    while True:
        left = [command_line(p) for p in seen if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
        left += workspace.left_running()
        if not left or time.monotonic() > deadline:
            return [f"runs on: {command[:120]}" for command in left]
        time.sleep(0.1)


def _is_held(path: Path) -> bool:
    descriptor = os.open(path, os.O_RDWR)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def locks_left(root: Path) -> list[str]:
    """Locks of Axon and of DVC that are held, notes of open runs, and DVC's notes of who reads and writes what."""
    files = [
        *(root / ".axon" / "locks").glob("*"),
        *(root / ".axon" / "journal").glob("*.jsonl"),
        *(root / ".dvc" / "tmp").glob("*lock*"),
    ]
    left = [f"held: {path.name}" for path in files if path.is_file() and _is_held(path)]
    left += [f"open: {path.name}" for path in (root / ".axon" / "runs").glob("*.open")]
    noted = root / ".dvc" / "tmp" / "rwlock"
    text = noted.read_text() if noted.is_file() else "{}"
    return left + ([f"in DVC's rwlock: {text[:200]}"] if any(json.loads(text).values()) else [])


def differences(lock: bytes, undisturbed: bytes) -> list[str]:
    """In what `dvc.lock` is not byte for byte the undisturbed one."""
    if lock == undisturbed:
        return []
    ours, theirs = (yaml.safe_load(text)["stages"] for text in (lock, undisturbed))
    stages = [name for name in {**theirs, **ours} if ours.get(name) != theirs.get(name)]
    return [f"dvc.lock differs: {', '.join(stages) or 'not in an entry, but in its bytes'}"]


def tracked_wrongly(client: Any, journals: Iterable[Path]) -> list[str]:
    """How MLflow's runs differ from what the executions wrote into `journals`: state, and every value once, in order.

    An execution that wrote no end was killed. Each has one run; none is left running.
    """
    experiment = client.get_experiment_by_name(EXPERIMENT)
    if experiment is None:
        return ["MLflow was told nothing"]
    wrong = []
    for path in journals:
        events, _ = journal.read(path)
        if not events:
            continue
        name, execution = events[0]["name"], events[0]["id"]
        found = client.search_runs([experiment.experiment_id], f"tags.`axon.execution` = '{execution}'")
        if len(found) != 1:
            wrong.append(f"MLflow has {len(found)} runs of one execution of {name}")
            continue
        if found[0].info.status != status(events):
            wrong.append(f"MLflow has a run of {name} {found[0].info.status} that is {status(events)}")
        wrong += _values_missed(client, found[0].info.run_id, name, events)
    return wrong


def _values_missed(client: Any, run_id: str, name: str, events: Execution) -> list[str]:
    written: dict[str, list[tuple[int, int, float]]] = defaultdict(list)
    for event in events:
        if event["event"] == "metrics":
            for key, value in event["values"].items():
                written[key].append((int(event["time"] * 1000), event["step"], float(value)))
    wrong = []
    for key, values in written.items():
        told = [(m.timestamp, m.step, m.value) for m in client.get_metric_history(run_id, key)]
        if sorted(told) != sorted(values):
            wrong.append(f"MLflow has {len(told)} values of {name}'s {key}, not the {len(values)} that were written")
    return wrong


# How an execution may end that was under way when the process was killed. A lost worker fails it, or was done.
_RIGHT = {
    "axon": {"KILLED"},
    "stage": {"KILLED"},
    "worker": {"FAILED", "FINISHED"},
    "raylet": {"FAILED", "KILLED", "FINISHED"},
    "gcs": {"FAILED", "KILLED", "FINISHED"},
}


def status(events: Execution) -> str:
    """FINISHED, FAILED or KILLED, by the journal of an execution whose process is gone."""
    return str(events[-1]["status"]) if events[-1]["event"] == "end" else "KILLED"


def ended_wrongly(kills: Sequence[tuple[str, str, str | None]], executions: dict[str, list[Execution]]) -> list[str]:
    """Which executions ended otherwise than the kills explain.

    kills: kind, stage, and the execution that was under way. executions: by stage, and of `pipeline`, oldest first.
    """
    wrong = [f"{n}: its last execution is not finished" for n, es in executions.items() if not _is_finished(es)]
    struck = {execution: kind for kind, _, execution in kills if kind in _RIGHT}
    for name, of_stage in executions.items():
        for events in of_stage:
            kind = struck.get(events[0].get("id"))
            if kind and status(events) not in _RIGHT[kind]:
                wrong.append(f"{name}: an execution is {status(events)}, where {kind} was killed")
        is_hit = any(stage == name and kind in _RIGHT for kind, stage, _ in kills) or name == "pipeline"
        if len(of_stage) > 1 and not is_hit and not any(kind in ("raylet", "gcs") for kind, _, _ in kills):
            wrong.append(f"{name}: {len(of_stage)} executions, where nothing was killed that it needs")
    n_killed = [status(events) for events in executions["pipeline"]].count("KILLED")
    n_axon = sum(kind == "axon" for kind, _, _ in kills)
    return wrong + ([f"{n_killed} pipeline runs are KILLED, and {n_axon} were killed"] if n_killed != n_axon else [])


def _is_finished(executions: list[Execution]) -> bool:
    return bool(executions) and status(executions[-1]) == "FINISHED"
