"""Every language model of every family by name, and from a config to a model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from axon_models.decoder import presets as decoder
from axon_models.decoder.config import DecoderConfig
from axon_models.decoder.model import Decoder
from axon_models.layers.language_model import LanguageModel
from axon_models.memory.config import TransformerXLConfig
from axon_models.memory.model import TransformerXL
from axon_models.memory.presets import transformer_xl

Config = DecoderConfig | TransformerXLConfig

PRESETS: dict[str, Callable[..., Config]] = {**decoder.PRESETS, "transformer_xl": transformer_xl}


def config_of(preset: str, **sizes: Any) -> Config:
    """The config of a named preset with some sizes replaced; an unknown name raises `ConfigError`."""
    return decoder.named(PRESETS, preset)(**sizes)


def build(config: Config) -> LanguageModel:
    """The model of a config, its weights not yet initialised."""
    return TransformerXL(config) if isinstance(config, TransformerXLConfig) else Decoder(config)
