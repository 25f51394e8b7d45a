"""A small Transformer-XL with weights large enough that every path through it matters."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from axon_models.memory.config import TransformerXLConfig
from axon_models.memory.model import TransformerXL

SIZES: dict[str, Any] = {
    "vocab_size": 23,
    "d_model": 12,
    "n_layers": 2,
    "heads": 3,
    "d_feed_forward": 17,
    "max_positions": 64,
    "segment_length": 5,
    "memory_length": 7,
}


def small_model(seed: int = 1, **sizes: Any) -> TransformerXL:
    model = TransformerXL(TransformerXLConfig(**{**SIZES, "init_std": 0.4, **sizes}))
    generator = torch.Generator().manual_seed(seed)
    model.init_weights(generator)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:  # gains of one and biases of zero would hide forgotten ones
                parameter.add_(torch.rand(parameter.shape, generator=generator) - 0.5)
    return model


def read(model: TransformerXL, tokens: Tensor, memory: Tensor | None = None, **how: Any) -> tuple[Tensor, Tensor]:
    """The logits (B, T, V) of a segment, and the memory after it."""
    states, memory = model.read(tokens, memory, **how)
    return F.linear(states, model.output_weight), memory


def some_tokens(*shape: int, seed: int = 2) -> torch.Tensor:
    return torch.randint(0, SIZES["vocab_size"], shape, generator=torch.Generator().manual_seed(seed))
