"""The preset of this family: a config from the sizes that are given, and what follows from them."""

from __future__ import annotations

import math
from typing import Any

from axon_models.memory.config import TransformerXLConfig

_SIZES: dict[str, Any] = {"vocab_size": 4096, "d_model": 192, "n_layers": 5, "heads": 6, "max_positions": 512}


def transformer_xl(**sizes: Any) -> TransformerXLConfig:
    """Dai et al. 2019: segments and memory of a quarter of the positions, equal as in the paper's training.

    Weights start at a deviation of √(2 / 5·d_model), as those of `x_llama`.
    """
    given = {**_SIZES, **sizes}
    d_model, positions = given["d_model"], given["max_positions"]
    if _is_count(d_model):
        given.setdefault("d_feed_forward", 4 * d_model)
        given.setdefault("init_std", math.sqrt(2 / (5 * d_model)))
    if _is_count(positions):
        given.setdefault("segment_length", max(1, positions // 4))
        given.setdefault("memory_length", max(1, positions // 4))
    for name in ("d_feed_forward", "segment_length", "memory_length"):
        given.setdefault(name, 1)  # what it follows from is refused
    return TransformerXLConfig(**given)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and value > 0
