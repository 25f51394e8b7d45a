"""Checkpoints of GPT-1 (`openai-gpt`) and GPT-2, whose matrices are stored with their inputs first."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from axon_models.decoder.config import DecoderConfig
from axon_models.decoder.families.family import Family, Piece, both, checked, sizes_of, turned, whole

_WORDS = {
    "vocab_size": "vocab_size",
    "d_model": "n_embd",
    "n_layers": "n_layer",
    "heads": "n_head",
    "max_positions": "n_positions",
    "norm_eps": "layer_norm_epsilon",
}
_GELU = ("gelu_new", "gelu_pytorch_tanh")


def _common_json(config: DecoderConfig) -> dict[str, Any]:
    return {
        **{theirs: getattr(config, ours) for ours, theirs in _WORDS.items()},
        "initializer_range": config.init_std,
        "tie_word_embeddings": config.tied_embeddings,
        **dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0),
    }


def _gpt2_json(config: DecoderConfig) -> dict[str, Any]:
    return {**_common_json(config), "n_inner": config.d_feed_forward, "activation_function": "gelu_new"}


def _from(
    tree: Mapping[str, Any], family: str, activation: str, *, needed: Mapping[str, Any], **values: Any
) -> DecoderConfig:
    # What GPT-1 calls gelu is the approximation by tanh.
    allowed = _GELU if activation == "activation_function" else ("gelu", *_GELU)
    checks = {key: (tree.get(key, only), (only,)) for key, only in needed.items()}
    sizes = sizes_of(tree, _WORDS, {activation: (tree.get(activation, allowed[0]), allowed), **checks})
    width = sizes["d_model"]
    return checked(
        family=family,
        **sizes,
        kv_heads=sizes["heads"],
        d_feed_forward=tree.get("n_inner") or (4 * width if isinstance(width, int) else width),
        norm="layer",
        feed_forward="gelu_tanh",
        positions="learned",
        biases=True,
        tied_embeddings=tree.get("tie_word_embeddings", True),
        init_std=tree.get("initializer_range", 0.02),
        **values,
    )


_PLAIN = {"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False, "add_cross_attention": False}


def _pieces(config: DecoderConfig, *, embedding: str, positions: str, final_norm: str) -> dict[str, Piece]:
    pieces = {
        "embedding.weight": whole(f"transformer.{embedding}.weight"),
        "positions.table.weight": whole(f"transformer.{positions}.weight"),
    }
    if final_norm:
        pieces |= both({"norm": whole(final_norm)}, of="", named="transformer.")
    if not config.tied_embeddings:
        pieces["output.weight"] = whole("lm_head.weight")
    layer = {
        "attention_norm": whole("ln_1"),
        "attention.qkv": turned("attn.c_attn"),
        "attention.output": turned("attn.c_proj"),
        "feed_forward_norm": whole("ln_2"),
        "feed_forward.up": turned("mlp.c_fc"),
        "feed_forward.down": turned("mlp.c_proj"),
    }
    for i in range(config.n_layers):
        pieces |= both(layer, of=f"blocks.{i}.", named=f"transformer.h.{i}.")
    return pieces


_MASKS = (".attn.bias", ".attn.masked_bias")  # of causal attention, in older files
GPT2 = Family(
    model_type="gpt2",
    causal="GPT2LMHeadModel",
    classifier="GPT2ForSequenceClassification",
    to_json=_gpt2_json,
    from_json=partial(_from, family="gpt2", activation="activation_function", needed=_PLAIN),
    pieces=partial(_pieces, embedding="wte", positions="wpe", final_norm="ln_f"),
    prefix="transformer.",
    ignored=_MASKS,
)
OPENAI_GPT = Family(
    model_type="openai-gpt",
    causal="OpenAIGPTLMHeadModel",
    classifier="OpenAIGPTForSequenceClassification",
    to_json=lambda config: {**_common_json(config), "afn": "gelu"},
    from_json=partial(_from, family="openai-gpt", activation="afn", needed={}, block="post_norm"),
    pieces=partial(_pieces, embedding="tokens_embed", positions="positions_embed", final_norm=""),
    prefix="transformer.",
    ignored=_MASKS,
)
