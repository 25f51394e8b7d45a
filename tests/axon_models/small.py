"""A small decoder with weights large enough that every path through it matters."""

from __future__ import annotations

from typing import Any, TypeVar

import torch

from axon_models.decoder.config import DecoderConfig
from axon_models.decoder.model import Decoder
from axon_models.layers.language_model import LanguageModel
from axon_models.presets import build, config_of

Model = TypeVar("Model", bound=LanguageModel)

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


def small_preset(preset: str) -> LanguageModel:
    """A small model of any preset, in evaluation; of its 64 positions a window has 8 and a segment 16."""
    sizes = {"vocab_size": 67, "d_model": 24, "n_layers": 2, "heads": 6, "max_positions": 64, "init_std": 0.3}
    return randomise(build(config_of(preset, **sizes))).eval()


def randomise(model: Model, seed: int = 1) -> Model:
    """Random weights; gains that are not one and biases that are not zero, which would hide that one is forgotten."""
    generator = torch.Generator().manual_seed(seed)
    model.init_weights(generator)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("norm.weight") or name.endswith("bias"):
                parameter.add_(torch.rand(parameter.shape, generator=generator) - 0.5)
        if isinstance(model, Decoder) and model.config.output_bias:
            bias = model.output_weight[:, -1]
            bias.add_(torch.rand(bias.shape, generator=generator) - 0.5)
    return model


def some_tokens(*shape: int, vocab_size: int = 67, seed: int = 2) -> torch.Tensor:
    return torch.randint(0, vocab_size, shape, generator=torch.Generator().manual_seed(seed))
