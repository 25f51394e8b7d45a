"""The exceptions of the model package. Importing this module imports nothing."""

from __future__ import annotations

from collections.abc import Sequence


class ConfigError(ValueError):
    """A model's sizes contradict one another; the message lists every mistake with its value and its limit."""


class CheckpointError(ValueError):
    """A model directory cannot be read; the message lists every mistake found in it."""


class ScoresError(ValueError):
    """A model's scores are not finite, so that no token can be chosen; the message names the model."""


def raise_all(kind: type[ValueError], heading: str, mistakes: Sequence[str]) -> None:
    """Raise one `kind` that lists `mistakes` below `heading`; do nothing if there are none."""
    if mistakes:
        raise kind("\n".join([f"{heading}: {len(mistakes)} mistake(s):", *(f"  - {m}" for m in mistakes)]))
