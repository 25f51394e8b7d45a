"""Axon's models: `load` a model directory, `generate` from it. Loaded on first use, so that importing costs nothing."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from axon_models.generation.engine import generate
    from axon_models.loading import load

__all__ = ["generate", "load"]

_HOMES = {"load": "axon_models.loading", "generate": "axon_models.generation.engine"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
