"""What a run does when it is asked to end: the stage saves a checkpoint first, and all leave within ten seconds."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from contextlib import suppress
from typing import Any, NoReturn

from tasks.runtime import guard
from tasks.runtime.checkout import Checkout

EXIT_INTERRUPTED = 130  # what a shell gives for SIGINT
LEAVE_WITHIN_S = 8.0  # the stage
GONE_WITHIN_S = 9.5  # everything
SAME_SIGNAL_S = 0.7  # a terminal and a supervisor may both pass one signal on

_is_ending = threading.Event()  # a deadline runs


class Interruption:
    """Passes the first SIGTERM on to the stage that runs, and kills that if it takes too long; without a stage, or the
    second time, it ends the run. Ctrl-C reaches the stage from the terminal, and not this process, where DVC ignores it
    meanwhile. `is_asked`: whether the run was asked to end; no stage is tried again then.

    With the first SIGTERM a deadline begins, after which this process leaves as if it were killed, in words. That is
    safe: files come to be by renaming, the guardian ends what carries the run's mark, and the next run clears the rest.
    The deadline is a thread, not an alarm: a handler waits for whatever the main thread is in, and when Python has put
    its handlers away at its end, an alarm kills.
    """

    def __init__(self, checkout: Checkout) -> None:
        self._checkout = checkout
        self._asked_at: float | None = None

    @property
    def is_asked(self) -> bool:
        return self._asked_at is not None

    def install(self) -> None:
        """Take SIGTERM; once more inside a flow, for which Prefect puts a handler of its own in place."""
        signal.signal(signal.SIGTERM, self._handle)

    def _handle(self, _number: int, _frame: Any) -> None:
        stage = guard.holder_of(self._checkout.locks / "stage")
        if not _is_ending.is_set():
            _is_ending.set()
            threading.Thread(target=self._end_in_time, args=(stage,), daemon=True).start()
        if self._asked_at is None and stage is not None:
            self._asked_at = time.monotonic()
            with suppress(ProcessLookupError):
                os.kill(stage, signal.SIGTERM)
        elif self._asked_at is None or time.monotonic() - self._asked_at > SAME_SIGNAL_S:
            raise KeyboardInterrupt

    def _end_in_time(self, stage: int | None) -> None:
        """Kill the stage that was asked if it is still there after `LEAVE_WITHIN_S`, and leave at `GONE_WITHIN_S`."""
        time.sleep(LEAVE_WITHIN_S)
        if stage is not None and guard.holder_of(self._checkout.locks / "stage") == stage:
            _say(f"the stage did not end within {LEAVE_WITHIN_S:g} s and was killed; what it had saved is kept.")
            with suppress(ProcessLookupError):
                os.kill(stage, signal.SIGKILL)
        time.sleep(GONE_WITHIN_S - LEAVE_WITHIN_S)
        _say(
            f"interrupted, and not everything had ended within {GONE_WITHIN_S:g} s; left as it is. `axon run` clears "
            "that and goes on from the last checkpoint."
        )
        os._exit(EXIT_INTERRUPTED)


def _say(told: str) -> None:
    os.write(2, f"\naxon: {told}\n".encode())  # not by sys.stderr, which another thread may hold


def leave() -> NoReturn:
    """Leave as interrupted, everything being closed; before a deadline at once, for engines' exit handlers take time.

    A thread does not see to the deadline any more when Python is ending.
    """
    if _is_ending.is_set():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(EXIT_INTERRUPTED)
    sys.exit(EXIT_INTERRUPTED)
