"""Checkpoints of Llama and of its kind: Mistral and Mixtral."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from axon_models.decoder.config import DecoderConfig, Experts
from axon_models.decoder.families.family import (
    Family,
    Piece,
    checked,
    per_expert,
    rope_json,
    rope_of,
    scaling_of,
    sizes_of,
    stacked,
    whole,
)
from axon_models.errors import CheckpointError

_WORDS = {
    "vocab_size": "vocab_size",
    "d_model": "hidden_size",
    "n_layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "d_feed_forward": "intermediate_size",
    "max_positions": "max_position_embeddings",
    "norm_eps": "rms_norm_eps",
}


def _common_json(config: DecoderConfig) -> dict[str, Any]:
    return {
        **{theirs: getattr(config, ours) for ours, theirs in _WORDS.items()},
        **rope_json(config),
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "initializer_range": config.init_std,
        "tie_word_embeddings": config.tied_embeddings,
        "hidden_act": "silu",
        "attention_dropout": 0.0,
    }


def _common(tree: Mapping[str, Any], family: str, needed: Mapping[str, Any], **values: Any) -> DecoderConfig:
    rope = rope_of(tree)
    sizes = sizes_of(
        tree,
        _WORDS,
        {
            "hidden_act": (tree.get("hidden_act", "silu"), ("silu",)),
            **{key: (tree.get(key, only), (only,)) for key, only in needed.items()},
            "rope_type": (rope["rope_type"], ("default", "linear", "dynamic")),
        },
    )
    sizes |= scaling_of(rope, sizes["max_positions"])
    config = checked(
        family=family,
        **sizes,
        kv_heads=tree.get("num_key_value_heads") or sizes["heads"],
        rope_theta=rope["rope_theta"],
        tied_embeddings=tree.get("tie_word_embeddings", False),
        init_std=tree.get("initializer_range", 0.02),
        **values,
    )
    head_dim = tree.get("head_dim") or config.head_dim
    if head_dim != config.head_dim:
        raise CheckpointError(f"config.json: head_dim={head_dim} must be hidden_size/heads={config.head_dim}")
    return config


def _llama_json(config: DecoderConfig) -> dict[str, Any]:
    slices = {} if config.pretraining_tp == 1 else {"pretraining_tp": config.pretraining_tp}
    return {**_common_json(config), "attention_bias": False, "mlp_bias": False, **slices}


def _from_llama(tree: Mapping[str, Any]) -> DecoderConfig:
    needed = {"attention_bias": False, "mlp_bias": False}
    return _common(tree, "llama", needed, pretraining_tp=tree.get("pretraining_tp") or 1)


def _mistral_json(config: DecoderConfig) -> dict[str, Any]:
    return {**_common_json(config), "sliding_window": config.window}


def _from_mistral(tree: Mapping[str, Any]) -> DecoderConfig:
    return _common(tree, "mistral", {}, window=tree.get("sliding_window"))


def _mixtral_json(config: DecoderConfig) -> dict[str, Any]:
    experts = config.experts or Experts(n=1, per_token=1)
    return {
        **_common_json(config),
        "sliding_window": config.window,
        "num_local_experts": experts.n,
        "num_experts_per_tok": experts.per_token,
        "router_aux_loss_coef": experts.router_coef,
        "router_jitter_noise": 0.0,
        "output_router_logits": False,
    }


def _from_mixtral(tree: Mapping[str, Any]) -> DecoderConfig:
    experts = Experts(
        n=tree.get("num_local_experts", 8),
        per_token=tree.get("num_experts_per_tok", 2),
        router_coef=tree.get("router_aux_loss_coef", 0.001),
    )
    needed = {"router_jitter_noise": 0.0}
    return _common(tree, "mixtral", needed, window=tree.get("sliding_window"), experts=experts)


def around_blocks(config: DecoderConfig, final_norm: str = "model.norm") -> dict[str, Piece]:
    """Embedding, final norm and output."""
    pieces = {"embedding.weight": whole("model.embed_tokens.weight"), "norm.weight": whole(f"{final_norm}.weight")}
    return pieces if config.tied_embeddings else {**pieces, "output.weight": whole("lm_head.weight")}


def _attention(config: DecoderConfig, ours: str, theirs: str) -> dict[str, Piece]:
    queries, keys = config.heads * config.head_dim, config.kv_heads * config.head_dim
    qkv = [f"{theirs}self_attn.{name}_proj.weight" for name in "qkv"]
    return {
        f"{ours}attention.qkv.weight": stacked(qkv, (queries, keys, keys)),
        f"{ours}attention_norm.weight": whole(f"{theirs}input_layernorm.weight"),
        f"{ours}attention.output.weight": whole(f"{theirs}self_attn.o_proj.weight"),
        f"{ours}feed_forward_norm.weight": whole(f"{theirs}post_attention_layernorm.weight"),
    }


def _pieces(config: DecoderConfig) -> dict[str, Piece]:
    pieces = around_blocks(config)
    for layer in range(config.n_layers):
        ours, theirs = f"blocks.{layer}.", f"model.layers.{layer}."
        inner = [f"{theirs}mlp.{name}_proj.weight" for name in ("gate", "up")]
        pieces |= _attention(config, ours, theirs)
        pieces[f"{ours}feed_forward.gate_up.weight"] = stacked(inner, (config.d_feed_forward,) * 2)
        pieces[f"{ours}feed_forward.down.weight"] = whole(f"{theirs}mlp.down_proj.weight")
    return pieces


def _mixtral_pieces(config: DecoderConfig) -> dict[str, Piece]:
    pieces = around_blocks(config)
    n_experts = config.experts.n if config.experts is not None else 0
    for layer in range(config.n_layers):
        ours, theirs = f"blocks.{layer}.", f"model.layers.{layer}."
        pieces |= _attention(config, ours, theirs)
        inside = f"{theirs}block_sparse_moe."
        each = [f"{inside}experts.{expert}." for expert in range(n_experts)]
        down = [(f"{one}w2.weight",) for one in each]
        gate_up = [(f"{one}w1.weight", f"{one}w3.weight") for one in each]
        pieces[f"{ours}feed_forward.router.weight"] = whole(f"{inside}gate.weight")
        pieces[f"{ours}feed_forward.experts.gate_up"] = per_expert(gate_up, (config.d_feed_forward,) * 2)
        pieces[f"{ours}feed_forward.experts.down"] = per_expert(down, (config.d_model,))
    return pieces


LLAMA = Family(
    model_type="llama",
    causal="LlamaForCausalLM",
    classifier="LlamaForSequenceClassification",
    to_json=_llama_json,
    from_json=_from_llama,
    pieces=_pieces,
    ignored=("rotary_emb.inv_freq",),
)
MISTRAL = Family(
    model_type="mistral",
    causal="MistralForCausalLM",
    classifier="MistralForSequenceClassification",
    to_json=_mistral_json,
    from_json=_from_mistral,
    pieces=_pieces,
    ignored=("rotary_emb.inv_freq",),
)
MIXTRAL = Family(
    model_type="mixtral",
    causal="MixtralForCausalLM",
    classifier="MixtralForSequenceClassification",
    to_json=_mixtral_json,
    from_json=_from_mixtral,
    pieces=_mixtral_pieces,
    ignored=("rotary_emb.inv_freq",),
)
