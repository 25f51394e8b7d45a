"""Checkpoints of Phi-1, Phi-1.5 and Phi-2."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from axon_models.decoder.config import DecoderConfig
from axon_models.decoder.families.family import (
    Family,
    Piece,
    both,
    checked,
    rope_json,
    rope_of,
    scaling_of,
    sizes_of,
    stacked,
    whole,
    with_bias,
)

_WORDS = {
    "vocab_size": "vocab_size",
    "d_model": "hidden_size",
    "n_layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "d_feed_forward": "intermediate_size",
    "max_positions": "max_position_embeddings",
    "norm_eps": "layer_norm_eps",
}


def _to_json(config: DecoderConfig) -> dict[str, Any]:
    rope = rope_json(config)
    rope["rope_parameters"]["partial_rotary_factor"] = config.rotary_fraction
    return {
        **{theirs: getattr(config, ours) for ours, theirs in _WORDS.items()},
        **rope,
        "partial_rotary_factor": config.rotary_fraction,  # read by transformers 4
        "num_key_value_heads": config.kv_heads,
        "initializer_range": config.init_std,
        "tie_word_embeddings": config.tied_embeddings,
        "hidden_act": "gelu_new",
        "qk_layernorm": False,
        **dict.fromkeys(("resid_pdrop", "embd_pdrop", "attention_dropout"), 0.0),
    }


def _from_json(tree: Mapping[str, Any]) -> DecoderConfig:
    rope = rope_of(tree)
    sizes = sizes_of(
        tree,
        _WORDS,
        {
            "hidden_act": (tree.get("hidden_act", "gelu_new"), ("gelu_new", "gelu_pytorch_tanh")),
            "qk_layernorm": (tree.get("qk_layernorm", False), (False,)),
            "tie_word_embeddings": (tree.get("tie_word_embeddings", False), (False,)),
            "rope_type": (rope["rope_type"], ("default", "linear", "dynamic")),
        },
    )
    sizes |= scaling_of(rope, sizes["max_positions"])
    return checked(
        family="phi",
        **sizes,
        kv_heads=tree.get("num_key_value_heads") or sizes["heads"],
        block="parallel",
        norm="layer",
        feed_forward="gelu_tanh",
        rope_theta=rope["rope_theta"],
        rotary_fraction=rope.get("partial_rotary_factor", tree.get("partial_rotary_factor", 0.5)),
        biases=True,
        output_bias=True,
        tied_embeddings=False,
        init_std=tree.get("initializer_range", 0.02),
    )


def _pieces(config: DecoderConfig) -> dict[str, Piece]:
    queries, keys = config.heads * config.head_dim, config.kv_heads * config.head_dim
    layer = {
        "attention_norm": whole("input_layernorm"),
        "attention.qkv": stacked([f"self_attn.{name}_proj" for name in "qkv"], (queries, keys, keys)),
        "attention.output": whole("self_attn.dense"),
        "feed_forward.up": whole("mlp.fc1"),
        "feed_forward.down": whole("mlp.fc2"),
    }
    pieces = {"embedding.weight": whole("model.embed_tokens.weight"), "output.weight": with_bias("lm_head")}
    pieces |= both({"norm": whole("model.final_layernorm")}, of="", named="")
    for i in range(config.n_layers):
        pieces |= both(layer, of=f"blocks.{i}.", named=f"model.layers.{i}.")
    return pieces


PHI = Family(
    model_type="phi",
    causal="PhiForCausalLM",
    classifier="PhiForSequenceClassification",
    to_json=_to_json,
    from_json=_from_json,
    pieces=_pieces,
    ignored=("rotary_emb.inv_freq",),
)
