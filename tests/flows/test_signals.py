"""A run that is asked to end: in words and in time, whatever it is in. test_interrupts.py does it with engines."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# Before each script: a run with deadlines of its own, and a process that is its stage.
RUN = """
import json, os, signal, subprocess, sys, time
from pathlib import Path
from flows import cli, signals
from tasks.runtime.checkout import Checkout

signals.LEAVE_WITHIN_S, signals.GONE_WITHIN_S = 1.0, float(sys.argv[3])
checkout = Checkout(Path(sys.argv[1]))
stage = subprocess.Popen([sys.executable, "-c", sys.argv[2], sys.argv[1]], stdout=subprocess.PIPE)
stage.stdout.readline()  # it holds the lock
interruption = signals.Interruption(checkout)
interruption.install()
"""
STAGE = """
import signal, sys, time
from pathlib import Path
from tasks.runtime import guard
from tasks.runtime.checkout import Checkout

signal.signal(signal.SIGTERM, {handler})
with guard.exclusive(Checkout(Path(sys.argv[1])).locks / "stage", who="stage", waiting=None):
    print("held", flush=True)
    time.sleep(60)
"""
OBEDIENT, STUBBORN = (STAGE.format(handler=h) for h in ("lambda *_: sys.exit(0)", "signal.SIG_IGN"))
READY = "print('ready', flush=True)\n"
WAITS = READY + "stage.wait()\n"
# What is left for Python's own end: its handlers are away by then, and threads do not run any more.
SLOW_END = """
class Slow:
    def __del__(self, sleep=time.sleep, write=os.write):
        sleep(3)
        write(2, b"slow")
slow = Slow()
def interrupted(*_, **__):
    print("ready", flush=True)
    stage.wait()
    raise KeyboardInterrupt
cli.app = interrupted
cli.main([])
"""
INTERRUPTED = "\naxon: interrupted; `axon run` goes on from the last checkpoint.\n"
DEAF = """
while True:
    try:
        time.sleep(60)
    except KeyboardInterrupt:
        pass
"""


def ended(
    tmp_path: Path, script: str, *, stage: str, gone_within_s: float = 60.0, n_signals: int = 1
) -> tuple[int, str]:
    """(exit code, what it said) of a run that is sent SIGTERM when it has said that it is ready."""
    process = subprocess.Popen(
        [sys.executable, "-c", RUN + script, str(tmp_path), stage, str(gone_within_s)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.3)  # a signal in the very instant before a wait is handled after it, as always in Python
    for number in range(n_signals):
        time.sleep(0.8 if number else 0.0)  # longer than what counts as the same signal
        process.send_signal(signal.SIGTERM)
    _, told = process.communicate(timeout=50)
    return process.returncode, told


def test_a_stage_that_does_not_end_is_killed_and_the_run_goes_on_to_close(tmp_path: Path) -> None:
    script = WAITS + "print(stage.returncode, interruption.is_asked, file=sys.stderr)"
    code, told = ended(tmp_path, script, stage=STUBBORN)
    killed = "\naxon: the stage did not end within 1 s and was killed; what it had saved is kept.\n"
    assert (code, told) == (0, f"{killed}-9 True\n")


def test_a_run_that_does_not_end_leaves_in_words_with_the_code_of_an_interrupted_one(tmp_path: Path) -> None:
    code, told = ended(tmp_path, WAITS + DEAF, stage=OBEDIENT, gone_within_s=1.5)
    assert (code, told) == (
        130,
        "\naxon: interrupted, and not everything had ended within 1.5 s; left as it is. `axon run` clears that and "
        "goes on from the last checkpoint.\n",
    )


def test_a_run_whose_python_ends_slowly_is_not_killed_by_an_alarm(tmp_path: Path) -> None:
    """It was: 'Alarm clock', on a machine so busy that Python's own end came later than the deadline."""
    assert ended(tmp_path, SLOW_END, stage=OBEDIENT) == (130, INTERRUPTED)


@pytest.mark.parametrize("stage", [OBEDIENT, STUBBORN])
def test_a_second_signal_ends_at_once(tmp_path: Path, stage: str) -> None:
    script = "signals.LEAVE_WITHIN_S = 30\ntry:\n    print('ready', flush=True)\n    time.sleep(60)\n"
    script += "except KeyboardInterrupt:\n    print('ended', file=sys.stderr)\nstage.kill()"
    assert ended(tmp_path, script, stage=stage, n_signals=2) == (0, "ended\n")


def test_without_a_stage_the_first_signal_ends_the_run(tmp_path: Path) -> None:
    script = f"stage.kill()\nstage.wait()\ncli.app = lambda **_: ({READY.strip()}, time.sleep(60))\ncli.main([])"
    assert ended(tmp_path, script, stage=OBEDIENT) == (130, INTERRUPTED)
