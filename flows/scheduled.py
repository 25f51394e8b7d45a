"""The flow that a schedule starts. Retraining runs in a process of its own, which can be ended when it is stuck."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from prefect import flow
from prefect.runtime import flow_run

from flows import schedule
from flows.retrain import OCCASION
from flows.schedule import WORKER, Schedule
from tasks.runtime import checkout as checkouts
from tasks.runtime import guard

_TO_LEAVE_S = 15
_N_TRIES = 3  # a retraining that was killed goes on from where it was


class RetrainingFailed(Exception):
    """The retraining ended badly; the champion stays."""


@flow(name="retrain", persist_result=False)
def retrain(occasion: str = "schedule", occasion_id: str | None = None) -> str:
    """Run `axon retrain` for at most as long as the schedule allows; returns what came of it.

    occasion_id: of one that was cut short, which this goes on with; a decision that it came to is not made again.
    """
    _end_with_worker()
    checkout = checkouts.find(Path(__file__).resolve().parents[1])
    began = time.time()
    limit_s = (schedule.read(checkout) or Schedule()).limit_s
    log = checkout.state / "logs" / "retrain.txt"
    log.parent.mkdir(parents=True, exist_ok=True)
    code: int | None = None
    outcome = "interrupted; the next one goes on from there"
    try:
        for _ in range(_N_TRIES):
            code, outcome = _run(checkout.root, log, began + limit_s, occasion_id or str(flow_run.id))
            if code >= 0 and code not in (137, 143):
                break
    finally:
        due = flow_run.scheduled_start_time.timestamp()
        schedule.note(
            checkout, str(flow_run.id), occasion=occasion, outcome=outcome, began=began, due=due, failed=bool(code)
        )
    if code:
        raise RetrainingFailed(outcome)
    return outcome


def _end_with_worker() -> None:
    """End with the worker, also where that was killed while this process was still starting."""
    guard.bind_to_parent()
    if os.environ.get(WORKER) not in (None, str(os.getppid())):
        os._exit(137)


def _run(root: Path, log: Path, deadline: float, occasion: str) -> tuple[int, str]:
    """(exit code, last line) of one `axon retrain`, ended past the deadline."""
    with log.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "flows.cli", "retrain"],
            cwd=root,
            env={**os.environ, OCCASION: occasion},
            stdout=file,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            preexec_fn=_of_its_own,
        )
        try:
            code = process.wait(timeout=max(1.0, deadline - time.time()))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(timeout=_TO_LEAVE_S)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            return 1, schedule.TOO_LONG
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    told = [line for line in lines if line.startswith(("promoted:", "kept:", "not retrained:"))]
    return code, (told or lines or [f"exit code {code}"])[-1][:500]


def _of_its_own() -> None:
    os.setpgrp()
    guard.bind_to_parent()
