"""What is read of a model directory's config.json where its family does not matter. Nothing here imports torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


def max_positions(config: Mapping[str, Any]) -> int:
    """The longest sequence of the model whose config.json this is: in the words of transformers, or in Axon's own."""
    own = config.get("decoder")  # where Axon keeps the config of a model that transformers has no class for
    if isinstance(own, Mapping):
        return int(own["max_positions"])
    rope = config.get("rope_parameters") or {}
    trained = _trained_positions(config)
    return int(trained * rope["factor"]) if rope.get("rope_type") == "dynamic" else trained


def padded_positions(config: Mapping[str, Any]) -> int:
    """The longest row that may be padded: with dynamic scaling of rotary positions, the length before any scaling."""
    own = config.get("decoder")
    if not isinstance(own, Mapping):
        return _trained_positions(config)
    scaling = own.get("rope_scaling") or {}
    longest = int(own["max_positions"])
    return math.ceil(longest / scaling["factor"]) if scaling.get("kind") == "dynamic" else longest


def _trained_positions(config: Mapping[str, Any]) -> int:
    return int(config["max_position_embeddings"] if "max_position_embeddings" in config else config["n_positions"])
