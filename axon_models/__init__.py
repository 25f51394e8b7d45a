"""Axon's models: `load` a model directory, `generate` or `answer` with it. Loaded on first use: importing is free."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from axon_models.checkpoint import load
    from axon_models.generation.answers import Request
    from axon_models.generation.batcher import Batcher, answer
    from axon_models.generation.beams import beam_search
    from axon_models.generation.engine import generate
    from axon_models.generation.sampling import Sampling
    from axon_models.generation.text import TextStream
    from axon_models.generation.vocabulary import Vocabulary

__all__ = ["Batcher", "Request", "Sampling", "TextStream", "Vocabulary", "answer", "beam_search", "generate", "load"]

_HOMES = {
    "Batcher": "axon_models.generation.batcher",
    "Request": "axon_models.generation.answers",
    "Sampling": "axon_models.generation.sampling",
    "TextStream": "axon_models.generation.text",
    "Vocabulary": "axon_models.generation.vocabulary",
    "answer": "axon_models.generation.batcher",
    "beam_search": "axon_models.generation.beams",
    "generate": "axon_models.generation.engine",
    "load": "axon_models.checkpoint",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
