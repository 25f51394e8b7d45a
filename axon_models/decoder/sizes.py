"""The decoders of the papers by name, in their published sizes: what released checkpoints of them have."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from axon_models.decoder.config import DecoderConfig, Experts
from axon_models.decoder.presets import gpt, gpt2, gpt3_sparse, mistral, mixtral, phi, x_llama


def _gpt2(d_model: int, n_layers: int, heads: int) -> DecoderConfig:
    return gpt2(vocab_size=50257, d_model=d_model, n_layers=n_layers, heads=heads, max_positions=1024)


def _gpt3(d_model: int, n_layers: int, heads: int) -> DecoderConfig:
    """Alternately banded, as in section 2.1 of the paper, which does not give the width of the band.

    Table 2.1 has 24 heads of 128 for a width of 2,048, and a width of 5,140 for 40 of them: here 16, and 5,120.
    """
    return gpt3_sparse(vocab_size=50257, max_positions=2048, d_model=d_model, n_layers=n_layers, heads=heads)


def _llama(
    d_model: int, n_layers: int, heads: int, d_feed_forward: int, *, kv_heads: int | None = None, context: int = 2048
) -> DecoderConfig:
    """Llama 1 has a context of 2,048 and an epsilon of 1e-6, Llama 2 of 4,096 and 1e-5."""
    config = x_llama(
        vocab_size=32000,
        d_model=d_model,
        n_layers=n_layers,
        heads=heads,
        kv_heads=kv_heads or heads,
        d_feed_forward=d_feed_forward,
        max_positions=context,
        tied_embeddings=False,
        init_std=0.02,
    )
    return replace(config, norm_eps=1e-6) if context == 2048 else config


_MISTRAL = {
    "vocab_size": 32000,
    "d_model": 4096,
    "n_layers": 32,
    "heads": 32,
    "kv_heads": 8,
    "d_feed_forward": 14336,
    "max_positions": 32768,
    "tied_embeddings": False,
    "init_std": 0.02,
}
_PHI = {"vocab_size": 51200, "heads": 32, "max_positions": 2048}

SIZES: dict[str, Callable[[], DecoderConfig]] = {
    "gpt_117m": partial(gpt, vocab_size=40478, d_model=768, n_layers=12, heads=12, max_positions=512),
    "gpt2_124m": partial(_gpt2, 768, 12, 12),
    "gpt2_355m": partial(_gpt2, 1024, 24, 16),
    "gpt2_774m": partial(_gpt2, 1280, 36, 20),
    "gpt2_1558m": partial(_gpt2, 1600, 48, 25),
    "gpt3_125m": partial(_gpt3, 768, 12, 12),
    "gpt3_350m": partial(_gpt3, 1024, 24, 16),
    "gpt3_760m": partial(_gpt3, 1536, 24, 16),
    "gpt3_1_3b": partial(_gpt3, 2048, 24, 16),
    "gpt3_2_7b": partial(_gpt3, 2560, 32, 32),
    "gpt3_6_7b": partial(_gpt3, 4096, 32, 32),
    "gpt3_13b": partial(_gpt3, 5120, 40, 40),
    "gpt3_175b": partial(_gpt3, 12288, 96, 96),
    "llama_7b": partial(_llama, 4096, 32, 32, 11008),
    "llama_13b": partial(_llama, 5120, 40, 40, 13824),
    "llama_33b": partial(_llama, 6656, 60, 52, 17920),
    "llama_65b": partial(_llama, 8192, 80, 64, 22016),
    "llama2_7b": partial(_llama, 4096, 32, 32, 11008, context=4096),
    "llama2_13b": partial(_llama, 5120, 40, 40, 13824, context=4096),
    "llama2_70b": partial(_llama, 8192, 80, 64, 28672, kv_heads=8, context=4096),
    "mistral_7b": partial(mistral, window=4096, **_MISTRAL),
    "mixtral_8x7b": partial(
        mixtral, rope_theta=1e6, experts=Experts(n=8, per_token=2, router_coef=0.02), window=None, **_MISTRAL
    ),
    "phi_1": partial(phi, d_model=2048, n_layers=24, **_PHI),
    "phi_1_5": partial(phi, d_model=2048, n_layers=24, **_PHI),
    "phi_2": partial(phi, d_model=2560, n_layers=32, rotary_fraction=0.4, **_PHI),
}
