"""Named decoders: a preset is a function from sizes to a config, so a variant is chosen once, by name."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from axon_models.decoder.config import DecoderConfig
from axon_models.errors import ConfigError

_X_LLAMA = DecoderConfig(
    vocab_size=4096, d_model=192, n_layers=5, heads=6, kv_heads=2, d_feed_forward=480, max_positions=512
)


def x_llama(**sizes: Any) -> DecoderConfig:
    """RMSNorm, rotary positions, grouped-query attention, SwiGLU, tied embeddings; 2.7 M parameters by default.

    Weights start at a deviation of √(2 / 5·d_model) ("small init", Nguyen and Salazar 2019, section 3.2): the usual
    0.02 is that of d_model 1,000 and makes a narrow model learn much more slowly (docs/performance.md).
    """
    config = replace(_X_LLAMA, **sizes)
    return config if "init_std" in sizes else replace(config, init_std=math.sqrt(2 / (5 * config.d_model)))


PRESETS: dict[str, Callable[..., DecoderConfig]] = {"x_llama": x_llama}


def config_of(preset: str, **sizes: Any) -> DecoderConfig:
    """The config of a named preset with some sizes replaced; an unknown name raises `ConfigError`."""
    if preset not in PRESETS:
        close = difflib.get_close_matches(preset, PRESETS, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(PRESETS)}"
        raise ConfigError(f"preset={preset!r} is not a preset; {hint}; edit model.preset in params.yaml")
    return PRESETS[preset](**sizes)
