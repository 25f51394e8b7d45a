"""One pass of the default kind of decoder over a few tokens, at the cost of little more than reading its weights.

A step of one row reads every weight once, so on a processor the memory sets the pace, and every small operation beside
the products is lost time. So the weights are laid out once, as `products.py` says, a norm's gain and the 1/√d of
queries go into the product after it, heads have the two halves of a rotated pair side by side, so that rotation is one
complex product in place, and most results are written into buffers that stay. In float32 only the order of additions
differs from the modules': logits agree within 1e-5 of their scale (tests/axon_models/test_rows.py).

In bfloat16 the factors of every product are rounded to 8 bits; the residual stream, the norms, the rotation and a
prompt's attention to itself stay in float32.
"""
# N tokens of one pass (B rows in a step, packed pieces of prompts in a pre-fill), D model, H heads, G kv groups,
# d head dimension, F feed-forward, P positions, V vocabulary

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor

from axon_models.decoder.config import DecoderConfig
from axon_models.decoder.model import Block, Decoder
from axon_models.generation.products import Product, layout
from axon_models.layers.attention import Attention
from axon_models.layers.feed_forward import SwiGLU
from axon_models.layers.language_model import LanguageModel
from axon_models.layers.norm import RMSNorm

_KNOWN = {
    "vocab_size", "d_model", "n_layers", "heads", "kv_heads", "d_feed_forward", "max_positions", "rope_theta",
    "norm_eps", "tied_embeddings", "init_std",
}  # fmt: skip
_PAD = 16  # columns behind the residual stream: one holds √(D·ε), and rows stay aligned


def can_prepare(module: LanguageModel) -> TypeGuard[Decoder]:
    """Whether this is the kind of decoder that `Prepared` knows: rotary, RMSNorm, SwiGLU, in float32 on a processor.

    A setting that it does not know by name must stand at its default, so that a new variant is never run as an old one.
    """
    others = [field for field in dataclasses.fields(DecoderConfig) if field.name not in _KNOWN]
    weight = module.embedding.weight
    return (
        type(module) is Decoder
        and weight.device.type == "cpu"
        and weight.dtype == torch.float32
        and type(module.norm) is RMSNorm
        and all(getattr(module.config, field.name) == field.default for field in others)
        and all(map(_is_known, module.blocks))
    )


def _is_known(block: torch.nn.Module) -> bool:
    kinds = {"attention_norm": RMSNorm, "attention": Attention, "feed_forward_norm": RMSNorm, "feed_forward": SwiGLU}
    return type(block) is Block and all(type(getattr(block, name)) is kind for name, kind in kinds.items())


class _Layer(NamedTuple):
    """The products of one block."""

    qkv: Product  # D to (H + 2G)·d
    output: Product  # H·d to D
    gate_up: Product  # D to 2F
    down: Product  # F to D


class Work:
    """The buffers of a pass over N tokens, and the views of them that its operations use."""

    def __init__(self, config: DecoderConfig, n: int, dtype: torch.dtype) -> None:
        width, groups, dim = config.heads * config.head_dim, config.kv_heads, config.head_dim
        self.stream = torch.zeros(n, config.d_model + _PAD)
        # With this column the norm of a row of `stream` is √(Σx² + D·ε).
        self.stream[:, config.d_model] = math.sqrt(config.d_model * config.norm_eps)
        self.x = self.stream[:, : config.d_model]  # (N, D)
        self.length = torch.empty(n, 1)
        self.normed = torch.empty(n, config.d_model, dtype=dtype)
        self.qkv = torch.empty(n, width + 2 * groups * dim)
        turned = self.qkv[:, : width + groups * dim].unflatten(1, (config.heads + groups, dim // 2, 2))
        self.turned = torch.view_as_complex(turned)  # (N, H + G, d/2)
        self.q = self.qkv[:, :width].unflatten(1, (config.heads, dim))  # (N, H, d), scaled
        self.kv = self.qkv[:, width:].unflatten(1, (2, groups, dim))  # (N, 2, G, d)
        self.gated = torch.empty(n, config.d_feed_forward, dtype=dtype)

    def normalize(self) -> Tensor:
        """x / √(Σx² + D·ε), (N, D); the factor √D and the gain are in the next weights."""
        torch.linalg.vector_norm(self.stream, dim=1, keepdim=True, out=self.length)
        return torch.div(self.x, self.length, out=self.normed)


Attend = Callable[[int, Work], Tensor]
"""Layer and buffers to what its queries see, (N, H·d); keys and values are stored on the way."""


class Prepared:
    """The weights of a decoder in this file's layout: a copy, to be made anew when they have changed."""

    def __init__(self, module: Decoder, *, n_rows: int, dtype: torch.dtype) -> None:
        config = module.config
        self.config, self.dtype = config, dtype
        lay_out = layout(dtype, n_rows)
        self._embedding = module.embedding.weight.detach()  # (V, D)
        half = config.head_dim // 2
        cos, sin = module.get_buffer("rotary.cos"), module.get_buffer("rotary.sin")  # (P, d)
        self._rotation = torch.complex(cos[:, :half], sin[:, half:])  # (P, d/2)
        weights = [_weights(block, config) for block in module.blocks if isinstance(block, Block)]
        self._layers = [_Layer(*(lay_out(weight.to(dtype)) for weight in layer)) for layer in weights]
        self._scores = lay_out(_with_gain(module.output_weight, module.norm).to(dtype))  # D to V

    def work(self, n: int) -> Work:
        """The buffers of a pass over n tokens."""
        return Work(self.config, n, self.dtype)

    def run(self, tokens: Tensor, positions: Tensor, work: Work, attend: Attend) -> Tensor:
        """`tokens` (N,) int64 at `positions` (N,) through all blocks; the states (N, D) for `scores`."""
        rotation = self._rotation.index_select(0, positions).unsqueeze(1)  # (N, 1, d/2)
        work.x.copy_(self._embedding.index_select(0, tokens))
        for number, layer in enumerate(self._layers):
            layer.qkv.into(work.normalize(), work.qkv)
            work.turned.mul_(rotation)
            layer.output.onto(attend(number, work).to(self.dtype), work.x)
            gate, up = layer.gate_up.of(work.normalize()).chunk(2, dim=1)  # (N, F) each
            torch.mul(F.silu(gate, inplace=True), up, out=work.gated)
            layer.down.onto(work.gated, work.x)
        return work.normalize()

    def scores(self, states: Tensor) -> Tensor:
        """States (N, D) of `run` to logits (N, V), float32."""
        return self._scores.of(states).float()


def _weights(block: Block, config: DecoderConfig) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The weights of a block that `_is_known`, each (outputs, inputs), in the order of `_Layer`."""
    attention, feed_forward = block.attention, block.feed_forward
    assert isinstance(attention, Attention)
    assert isinstance(feed_forward, SwiGLU)
    dim = config.head_dim
    side_by_side = torch.arange(dim).view(2, dim // 2).t().flatten()  # (d,): 0, d/2, 1, d/2 + 1, …
    turned = torch.arange((config.heads + config.kv_heads) * dim).view(-1, dim)[:, side_by_side].flatten()
    same = torch.arange(turned.shape[0], turned.shape[0] + config.kv_heads * dim)
    qkv = attention.qkv.get_parameter("weight").detach()[torch.cat((turned, same))]
    qkv[: config.heads * dim] *= 1 / math.sqrt(dim)
    return (
        _with_gain(qkv, block.attention_norm),
        attention.output.get_parameter("weight").detach(),
        _with_gain(feed_forward.gate_up.get_parameter("weight"), block.feed_forward_norm),
        feed_forward.down.get_parameter("weight").detach(),
    )


def _with_gain(weight: Tensor, norm: torch.nn.Module) -> Tensor:
    """weight (outputs, D) with the gain of the norm before it, and √D, in it."""
    return weight.detach() * (norm.get_parameter("weight").detach() * math.sqrt(weight.shape[1]))
