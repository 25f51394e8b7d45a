"""A small decoder with weights large enough that every path through it matters."""

from __future__ import annotations

from typing import Any

import torch

from axon_models.decoder.config import DecoderConfig
from axon_models.decoder.model import Decoder

SIZES: dict[str, Any] = {
    "vocab_size": 67,
    "d_model": 24,
    "n_layers": 2,
    "heads": 6,
    "kv_heads": 2,
    "d_feed_forward": 37,
    "max_positions": 64,
}


def small_decoder(seed: int = 1, **sizes: Any) -> Decoder:
    return randomise(Decoder(DecoderConfig(**{**SIZES, "init_std": 0.3, **sizes})), seed)


def randomise(model: Decoder, seed: int = 1) -> Decoder:
    """Random weights; gains that are not one and biases that are not zero, which would hide that one is forgotten."""
    generator = torch.Generator().manual_seed(seed)
    model.init_weights(generator)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("norm.weight") or name.endswith("bias"):
                parameter.add_(torch.rand(parameter.shape, generator=generator) - 0.5)
        if model.config.output_bias:
            bias = model.output_weight[:, -1]
            bias.add_(torch.rand(bias.shape, generator=generator) - 0.5)
    return model


def some_tokens(*shape: int, vocab_size: int = 67, seed: int = 2) -> torch.Tensor:
    return torch.randint(0, vocab_size, shape, generator=torch.Generator().manual_seed(seed))
