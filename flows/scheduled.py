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
from tasks.runtime import checkout as checkouts
from tasks.runtime import guard

_TO_LEAVE_S = 15
_N_TRIES = 3  # a retraining that was killed goes on from where it was


class RetrainingFailed(Exception):
    """The retraining ended badly; the champion stays."""


@flow(name="retrain", persist_result=False)
def retrain(limit_s: float = 86400.0, occasion: str = "schedule") -> str:
    """Run `axon retrain` for at most `limit_s` seconds; returns what came of it."""
    guard.bind_to_parent()
    checkout = checkouts.find(Path(__file__).resolve().parents[1])
    began = time.time()
    log = checkout.state / "logs" / "retrain.txt"
    log.parent.mkdir(parents=True, exist_ok=True)
    outcome = ""
    try:
        for _ in range(_N_TRIES):
            code, outcome = _run(checkout.root, log, began + limit_s)
            if code >= 0 and code not in (137, 143):
                break
    finally:
        schedule.note(checkout, str(flow_run.id), occasion, began, outcome or "interrupted")
    if code:
        raise RetrainingFailed(outcome)
    return outcome


def _run(root: Path, log: Path, deadline: float) -> tuple[int, str]:
    """(exit code, last line) of one `axon retrain`, ended past the deadline."""
    with log.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "flows.cli", "retrain"],
            cwd=root,
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
            return 1, "it took longer than --limit, and was ended; the next one goes on from its checkpoint"
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    told = [line for line in lines if line.startswith(("promoted:", "kept:", "not retrained:"))]
    return code, (told or lines or [f"exit code {code}"])[-1][:500]


def _of_its_own() -> None:
    os.setpgrp()
    guard.bind_to_parent()
