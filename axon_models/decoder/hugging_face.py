"""The decoder in the words of Hugging Face's Llama: its config and the names and cuts of its tensors."""
# D model, H heads, G kv groups, d head dimension, F feed-forward, V vocabulary

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from axon_models.decoder.config import DecoderConfig
from axon_models.errors import CheckpointError, ConfigError, raise_all

_SIZES = {
    "vocab_size": "vocab_size",
    "d_model": "hidden_size",
    "n_layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "d_feed_forward": "intermediate_size",
    "max_positions": "max_position_embeddings",
    "norm_eps": "rms_norm_eps",
}


def to_json(config: DecoderConfig, *, bos_id: int, eos_id: int, pad_id: int, n_labels: int) -> dict[str, Any]:
    """`config.json`; n_labels > 0 says that a head of so many numbers stands beside the language model."""
    architecture = "LlamaForSequenceClassification" if n_labels else "LlamaForCausalLM"
    labels = {f"LABEL_{i}": i for i in range(n_labels)}
    # transformers' default is two labels, so one label has to be spelt out.
    head = {"id2label": {str(i): name for name, i in labels.items()}, "label2id": labels} if n_labels else {}
    return {
        "architectures": [architecture],
        "model_type": "llama",
        **{theirs: getattr(config, ours) for ours, theirs in _SIZES.items()},
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "rope_theta": config.rope_theta,  # read by transformers 4; version 5 reads rope_parameters
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "initializer_range": config.init_std,
        "tie_word_embeddings": config.tied_embeddings,
        "hidden_act": "silu",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "mlp_bias": False,
        "bos_token_id": bos_id,
        "eos_token_id": eos_id,
        "pad_token_id": pad_id,
        "dtype": "float32",
        "use_cache": True,
        **head,
    }


def from_json(tree: Mapping[str, Any]) -> DecoderConfig:
    """The config in a `config.json` of model type llama; what this decoder cannot do is refused, all at once."""
    missing = [f"{theirs} is missing" for theirs in _SIZES.values() if theirs not in tree]
    raise_all(CheckpointError, "config.json", _unsupported(tree) + missing)
    heads = tree["num_attention_heads"]
    sizes = {ours: tree[theirs] for ours, theirs in _SIZES.items()}
    rope = tree.get("rope_parameters") or {}
    try:
        config = DecoderConfig(
            **sizes,
            kv_heads=tree.get("num_key_value_heads") or heads,
            rope_theta=rope.get("rope_theta", tree.get("rope_theta", 10000.0)),
            tied_embeddings=tree.get("tie_word_embeddings", False),
            init_std=tree.get("initializer_range", 0.02),
        )
    except ConfigError as error:
        raise CheckpointError(f"config.json: {error}") from error
    head_dim = tree.get("head_dim") or config.head_dim
    if head_dim != config.head_dim:
        raise CheckpointError(f"config.json: head_dim={head_dim} must be hidden_size/heads={config.head_dim}")
    return config


def _unsupported(tree: Mapping[str, Any]) -> list[str]:
    rope = tree.get("rope_parameters") or tree.get("rope_scaling") or {}
    rope_type = rope.get("rope_type", rope.get("type", "default"))
    needed = {
        "model_type": (tree.get("model_type"), "llama"),
        "hidden_act": (tree.get("hidden_act", "silu"), "silu"),
        "attention_bias": (tree.get("attention_bias", False), False),
        "mlp_bias": (tree.get("mlp_bias", False), False),
        "rope_type": (rope_type, "default"),
    }
    return [
        f"{key}={value!r} is not supported, only {only!r}" for key, (value, only) in needed.items() if value != only
    ]


# Our fused tensor of a layer: the names and, for a config, the rows of its parts in Hugging Face's.
def _fused(config: DecoderConfig) -> dict[str, tuple[tuple[str, ...], tuple[int, ...]]]:
    queries, keys = config.heads * config.head_dim, config.kv_heads * config.head_dim
    names = ("self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight")
    return {
        "attention.qkv.weight": (names, (queries, keys, keys)),
        "feed_forward.gate_up.weight": (
            ("mlp.gate_proj.weight", "mlp.up_proj.weight"),
            (config.d_feed_forward, config.d_feed_forward),
        ),
        "attention_norm.weight": (("input_layernorm.weight",), (config.d_model,)),
        "attention.output.weight": (("self_attn.o_proj.weight",), (config.d_model,)),
        "feed_forward_norm.weight": (("post_attention_layernorm.weight",), (config.d_model,)),
        "feed_forward.down.weight": (("mlp.down_proj.weight",), (config.d_model,)),
    }


def _pieces(config: DecoderConfig) -> dict[str, tuple[tuple[str, ...], tuple[int, ...]]]:
    """Every tensor of the decoder: the Hugging Face tensors it is made of, and the rows of each."""
    pieces: dict[str, tuple[tuple[str, ...], tuple[int, ...]]] = {
        "embedding.weight": (("model.embed_tokens.weight",), (config.vocab_size,)),
        "norm.weight": (("model.norm.weight",), (config.d_model,)),
    }
    if not config.tied_embeddings:
        pieces["output.weight"] = (("lm_head.weight",), (config.vocab_size,))
    for layer in range(config.n_layers):
        for ours, (theirs, rows) in _fused(config).items():
            pieces[f"blocks.{layer}.{ours}"] = tuple(f"model.layers.{layer}.{name}" for name in theirs), rows
    return pieces


def shapes(config: DecoderConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor that a Hugging Face checkpoint of this config holds."""
    columns = {"down.weight": config.d_feed_forward, "attention.output.weight": config.heads * config.head_dim}
    found: dict[str, tuple[int, ...]] = {}
    for ours, (theirs, rows) in _pieces(config).items():
        if ours.endswith("norm.weight"):
            found.update({name: (n,) for name, n in zip(theirs, rows, strict=True)})
            continue
        width = next((n for end, n in columns.items() if ours.endswith(end)), config.d_model)
        found.update({name: (n, width) for name, n in zip(theirs, rows, strict=True)})
    return found


def to_tensors(config: DecoderConfig, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The decoder's state dict cut into Hugging Face's tensors (float32, on the CPU)."""
    cut: dict[str, Tensor] = {}
    for ours, (theirs, rows) in _pieces(config).items():
        parts = state[ours].detach().to("cpu", torch.float32).split(rows)
        cut.update({name: part.contiguous() for name, part in zip(theirs, parts, strict=True)})
    return cut


def from_tensors(config: DecoderConfig, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The decoder's state dict (float32) from Hugging Face's tensors, whose names and shapes have been checked."""
    pieces = _pieces(config).items()
    return {ours: torch.cat([tensors[name].float() for name in theirs]) for ours, (theirs, _) in pieces}
