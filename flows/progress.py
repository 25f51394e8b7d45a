"""Live progress of a stage: one line that is drawn again in a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import os
import sys
import time
from collections import deque
from types import TracebackType
from typing import Any

_PLAIN_EVERY_S = 15.0
_UNSHOWN = ("tokens", "learning_rate", "grad_norm")
_N_SHOWN = 3


def duration(seconds: float) -> str:
    """1:05 for 65 seconds; 1:01:05 past an hour."""
    whole = max(0, round(seconds))
    minutes, second = divmod(whole, 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"


class Progress:
    """Shows stage, step, loss and other values, tokens per second and the time left, from a step's reports."""

    def __init__(self, stage: str) -> None:
        self._stage = stage
        self._is_terminal = sys.stdout.isatty() and os.environ.get("TERM") != "dumb"
        self._recent: deque[tuple[float, int, float]] = deque(maxlen=20)
        self._last_plain = time.monotonic()
        self._values: dict[str, float] = {}
        self._drawn = False
        self._final: str | None = None  # of the last step, held back: its validation comes with a report of its own

    def __enter__(self) -> Progress:
        return self

    def show(self, event: dict[str, Any]) -> None:
        """Take one report: step, n_steps, time and values."""
        self._values.update(event["values"])
        step, n_steps = event["step"], event["n_steps"]
        if self._recent and step < self._recent[-1][1]:
            self._recent.clear()
            self._print_final()
        self._recent.append((event["time"], step, self._values.get("tokens", 0.0)))
        line = self._line(step, n_steps)
        if self._is_terminal:
            width = os.get_terminal_size().columns if sys.stdout.isatty() else 100
            print(f"\r\x1b[2K{line[: width - 1]}", end="", flush=True)
            self._drawn = True
        elif step == n_steps:
            self._final = line
        elif time.monotonic() - self._last_plain >= _PLAIN_EVERY_S:
            self._last_plain = time.monotonic()
            print(line, flush=True)

    def _print_final(self) -> None:
        if self._final is not None:
            self._last_plain = time.monotonic()
            print(self._final, flush=True)
            self._final = None

    def _line(self, step: int, n_steps: int) -> str:
        parts = [f"  {self._stage:<14} {step:>5}/{n_steps}"]
        shown = [(key, value) for key, value in self._values.items() if key not in _UNSHOWN]
        shown.sort(key=lambda pair: pair[0].startswith("validation"))  # those come first, before any step
        parts += [f"{key.replace('_', ' ')} {value:.4g}" for key, value in shown[:_N_SHOWN]]
        (first_time, first_step, first_tokens), (now, _, tokens) = self._recent[0], self._recent[-1]
        elapsed = now - first_time
        if elapsed > 0 and step > first_step:
            if tokens > first_tokens:
                parts.append(f"{(tokens - first_tokens) / elapsed:,.0f} tokens/s")
            parts.append(f"{duration((n_steps - step) * elapsed / (step - first_step))} left")
        return "  ".join(parts)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._print_final()
        if self._drawn:
            print("\r\x1b[2K", end="", flush=True)
