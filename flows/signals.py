"""What a run does when it is asked to end: the stage saves a checkpoint first, and all leave within ten seconds."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from typing import Any

from tasks.runtime import guard
from tasks.runtime.checkout import Checkout

LEAVE_WITHIN_S = 8
SAME_SIGNAL_S = 0.7  # a terminal and a supervisor may both pass one signal on


class Interruption:
    """Passes the first SIGTERM on to the stage that runs, and kills that if it takes too long; without a stage, or the
    second time, it ends the run. Ctrl-C reaches the stage from the terminal, and not this process, where DVC ignores it
    meanwhile. `is_asked`: whether the run was asked to end; no stage is tried again then."""

    def __init__(self, checkout: Checkout) -> None:
        self._checkout = checkout
        self._asked_at: float | None = None

    @property
    def is_asked(self) -> bool:
        return self._asked_at is not None

    def install(self) -> None:
        """Take SIGTERM; once more inside a flow, for which Prefect puts a handler of its own in place."""
        for number in (signal.SIGTERM, signal.SIGALRM):
            signal.signal(number, self._handle)

    def _handle(self, number: int, _frame: Any) -> None:
        stage = guard.holder_of(self._checkout.locks / "stage")
        with suppress(ProcessLookupError):
            if number == signal.SIGALRM:
                if stage is not None:
                    os.kill(stage, signal.SIGKILL)
                return
            if self._asked_at is None and stage is not None:
                self._asked_at = time.monotonic()
                os.kill(stage, signal.SIGTERM)
                signal.alarm(LEAVE_WITHIN_S)
                return
        if self._asked_at is None or time.monotonic() - self._asked_at > SAME_SIGNAL_S:
            raise KeyboardInterrupt
