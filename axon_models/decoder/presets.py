"""Named decoders: a preset is a function from sizes to a config, so a variant is chosen once, by name.

Sizes that are not given are the preset's own. Widths that follow from others (kv_heads, d_feed_forward, window) are
computed where `d_model`, `heads` or `max_positions` is given without them.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

from axon_models.decoder.config import DecoderConfig, Experts
from axon_models.errors import ConfigError

Preset = TypeVar("Preset")

_SIZES: dict[str, Any] = {"vocab_size": 4096, "d_model": 192, "n_layers": 5, "heads": 6, "max_positions": 512}

# x_llama as first trained here: 2.7 M parameters.
_LLAMA = DecoderConfig(**_SIZES, kv_heads=2, d_feed_forward=480)
_GPT2 = DecoderConfig(
    **_SIZES,
    family="gpt2",
    kv_heads=6,
    d_feed_forward=768,
    norm="layer",
    feed_forward="gelu_tanh",
    positions="learned",
    biases=True,
)


def x_llama(**sizes: Any) -> DecoderConfig:
    """RMSNorm, rotary positions, grouped-query attention, SwiGLU, tied embeddings; 2.7 M parameters by default.

    Weights start at a deviation of √(2 / 5·d_model) ("small init", Nguyen and Salazar 2019, section 3.2): the usual
    0.02 is that of d_model 1,000 and makes a narrow model learn much more slowly (docs/performance.md).
    """
    return _small_init(_LLAMA, _llama_widths(sizes))


def mistral(**sizes: Any) -> DecoderConfig:
    """x_llama whose layers see a window alone (Jiang et al. 2023): an eighth of the positions, as 4,096 of 32,768."""
    return _small_init(replace(_LLAMA, family="mistral", window=64), _windowed(_llama_widths(sizes)))


def gpt2(**sizes: Any) -> DecoderConfig:
    """Radford et al. 2019: pre-norm and a final norm, LayerNorm, learned positions, GELU, biases, tied embeddings."""
    return replace(_GPT2, **_gpt_widths(sizes))


def gpt(**sizes: Any) -> DecoderConfig:
    """GPT-1 (Radford et al. 2018): as GPT-2, but each block ends with its norm, and none stands before the output."""
    return replace(replace(_GPT2, family="openai-gpt", block="post_norm"), **_gpt_widths(sizes))


def pygpt(**sizes: Any) -> DecoderConfig:
    """GPT-2 with fixed sinusoids for positions, as PyGPT teaches it; `heads=1` is its single-head version.

    The sinusoids are as large as the embedding at the start. Their own deviation of √½ would be 35 times its 0.02, and
    hide the tokens (docs/decisions.md).
    """
    own = replace(_GPT2, family="pygpt", positions="sinusoidal", position_scale=_GPT2.init_std * math.sqrt(2))
    return replace(own, **_gpt_widths(sizes))


def gpt3_sparse(**sizes: Any) -> DecoderConfig:
    """GPT-2 with every second layer banded (Brown et al. 2020, section 2.1): a window of an eighth of the positions."""
    base = replace(_GPT2, family="gpt3_sparse", window=64, windowed_layers="odd")
    return replace(base, **_windowed(_gpt_widths(sizes)))


def phi(**sizes: Any) -> DecoderConfig:
    """Phi (Gunasekar et al. 2023): attention and feed-forward side by side, half of each head turns, biases."""
    own = replace(_GPT2, family="phi", block="parallel", positions="rotary", rotary_fraction=0.5)
    return replace(replace(own, tied_embeddings=False, output_bias=True), **_gpt_widths(sizes))


def mixtral(**sizes: Any) -> DecoderConfig:
    """Mistral with experts (Jiang et al. 2024): 8 of half x_llama's width, of which a token uses 2; no window."""
    widths = _llama_widths(sizes)
    if "d_feed_forward" not in sizes and _is_count(sizes.get("d_model")):
        widths["d_feed_forward"] = max(16, round(sizes["d_model"] * 15 / 16 / 16) * 16)
    base = replace(_LLAMA, family="mixtral", d_feed_forward=176, experts=Experts(n=8, per_token=2, router_coef=0.02))
    return _small_init(base, _with_experts(base, widths))


def switch(**sizes: Any) -> DecoderConfig:
    """x_llama with Switch layers (Fedus et al. 2021): 8 ReLU experts of twice d_model, of which a token uses one."""
    widths = _llama_widths(sizes)
    if "d_feed_forward" not in sizes and _is_count(sizes.get("d_model")):
        widths["d_feed_forward"] = 2 * sizes["d_model"]
    own = replace(_LLAMA, family="switch", d_feed_forward=384, feed_forward="relu")
    base = replace(own, experts=Experts(n=8, per_token=1, routing="switch"))
    return _small_init(base, _with_experts(base, widths))


PRESETS: dict[str, Callable[..., DecoderConfig]] = {
    "x_llama": x_llama,
    "pygpt": pygpt,
    "gpt": gpt,
    "gpt2": gpt2,
    "gpt3_sparse": gpt3_sparse,
    "mistral": mistral,
    "mixtral": mixtral,
    "switch": switch,
    "phi": phi,
}


def config_of(preset: str, **sizes: Any) -> DecoderConfig:
    """The config of a named preset with some sizes replaced; an unknown name raises `ConfigError`."""
    return named(PRESETS, preset)(**sizes)


def named(presets: Mapping[str, Preset], preset: str) -> Preset:
    """The one of that name; an unknown name raises `ConfigError`."""
    if preset not in presets:
        close = difflib.get_close_matches(preset, presets, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(presets)}"
        raise ConfigError(f"preset={preset!r} is not a preset; {hint}; edit model.preset in params.yaml")
    return presets[preset]


def _small_init(base: DecoderConfig, sizes: Mapping[str, Any]) -> DecoderConfig:
    config = replace(base, **sizes)
    return config if "init_std" in sizes else replace(config, init_std=math.sqrt(2 / (5 * config.d_model)))


def _llama_widths(sizes: Mapping[str, Any]) -> dict[str, Any]:
    """Half as many groups as heads, and 15/8 of d_model for each of the three matrices of SwiGLU."""
    given = dict(sizes)
    if _is_count(given.get("heads")):
        given.setdefault("kv_heads", given["heads"] // 2 if given["heads"] % 2 == 0 else given["heads"])
    if _is_count(given.get("d_model")):
        given.setdefault("d_feed_forward", max(32, round(given["d_model"] * 15 / 8 / 32) * 32))
    return given


def _gpt_widths(sizes: Mapping[str, Any]) -> dict[str, Any]:
    """Multi-head attention, and four times d_model."""
    given = dict(sizes)
    if "heads" in given:
        given.setdefault("kv_heads", given["heads"])
    if _is_count(given.get("d_model")):
        given.setdefault("d_feed_forward", 4 * given["d_model"])
    return given


def _with_experts(base: DecoderConfig, sizes: Mapping[str, Any]) -> dict[str, Any]:
    """`experts` may be their number alone."""
    given, experts = dict(sizes), sizes.get("experts")
    if isinstance(experts, int) and base.experts is not None:
        given["experts"] = replace(base.experts, n=experts)
    return given


def _windowed(sizes: Mapping[str, Any]) -> dict[str, Any]:
    given = dict(sizes)
    if _is_count(given.get("max_positions")):
        given.setdefault("window", max(1, given["max_positions"] // 8))
    return given


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and value > 0
