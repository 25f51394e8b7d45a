"""What is read of a model directory's config.json where its family does not matter. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def max_positions(config: Mapping[str, Any]) -> int:
    """The longest sequence of the model whose config.json this is: in the words of transformers, or in Axon's own."""
    own = config.get("decoder")  # where Axon keeps the config of a model that transformers has no class for
    if isinstance(own, Mapping):
        return int(own["max_positions"])
    trained = config["max_position_embeddings"] if "max_position_embeddings" in config else config["n_positions"]
    rope = config.get("rope_parameters") or {}
    return int(trained * rope["factor"]) if rope.get("rope_type") == "dynamic" else int(trained)
