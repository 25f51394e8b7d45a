"""One pass of a decoder over a few tokens, at the cost of little more than reading its weights.

A step of one row reads every weight once, so on a processor the memory sets the pace, and every small operation beside
the products is lost time. So the weights are laid out once, as `products.py` says, what stands beside products goes
into their weights, as `folding.py` says, and most results are written into buffers that stay. In float32 only the
order of additions differs from the modules': logits agree within 1e-5 of their scale (tests/axon_models/test_rows.py).

In bfloat16 the factors of every product are rounded to 8 bits; the residual stream, the norms, the rotation and a
prompt's attention to itself stay in float32.
"""
# N tokens of one pass (B rows in a step, packed pieces of prompts in a pre-fill), D model, H heads, G kv groups,
# d head dimension, F feed-forward, P positions, V vocabulary

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from axon_models.decoder.config import DecoderConfig
from axon_models.decoder.model import Block, Decoder
from axon_models.generation import folding
from axon_models.generation.folding import Affine
from axon_models.generation.products import Plain, Product, layout
from axon_models.layers.attention import Attention
from axon_models.layers.block import ParallelBlock, PostNormBlock, RoutedBlock
from axon_models.layers.feed_forward import FeedForward, SwiGLU, silu_product
from axon_models.layers.language_model import LanguageModel
from axon_models.layers.moe.experts import ReluExperts, SwiGLUExperts, through_experts
from axon_models.layers.moe.routing import RoutedExperts
from axon_models.layers.norm import RMSNorm
from axon_models.layers.position import NoRotation
from axon_models.layers.rotary import Rotary

_KNOWN = {
    "family", "vocab_size", "d_model", "n_layers", "heads", "kv_heads", "d_feed_forward", "max_positions", "block",
    "norm", "norm_eps", "feed_forward", "experts", "positions", "position_scale", "rope_theta", "rotary_fraction",
    "rope_scaling", "window", "windowed_layers", "biases", "output_bias", "tied_embeddings", "init_std",
}  # fmt: skip
_PAD = 16  # columns behind the residual stream: one holds √(D·ε), and rows stay aligned


def can_prepare(module: LanguageModel) -> TypeGuard[Decoder]:
    """Whether this is a decoder that `Prepared` knows, in float32 on a processor.

    A setting that it does not know by name must stand at its default, so that a new variant is never run as an old one.
    """
    others = [field for field in dataclasses.fields(DecoderConfig) if field.name not in _KNOWN]
    weight = module.embedding.weight
    return (
        type(module) is Decoder
        and weight.device.type == "cpu"
        and weight.dtype == torch.float32
        and type(module.rotary) in (Rotary, NoRotation)  # what grows with a text's length is not in its table
        and (type(module.rotary) is NoRotation or module.config.head_dim % 2 == 0)
        and all(getattr(module.config, field.name) == field.default for field in others)
        and all(map(_is_known, module.blocks))
    )


def _is_known(block: nn.Module) -> bool:
    """Whether a block and all in it are of the kinds that are known, plain linear layers among them."""
    if type(block) not in (Block, PostNormBlock, ParallelBlock, RoutedBlock):
        return False
    attention, feed_forward = block.attention, block.feed_forward
    if type(attention) is not Attention or type(block.attention_norm) not in (RMSNorm, nn.LayerNorm):
        return False
    linears = [attention.qkv, attention.output]
    if type(feed_forward) is SwiGLU:
        linears += [feed_forward.gate_up, feed_forward.down]
    elif type(feed_forward) is FeedForward:
        linears += [feed_forward.up, feed_forward.down]
    elif not isinstance(feed_forward, RoutedExperts) or type(block.feed_forward_norm) is not RMSNorm:
        return False
    return all(type(linear) is nn.Linear for linear in linears)


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
        if dim % 2 == 0:
            turned = self.qkv[:, : width + groups * dim].unflatten(1, (config.heads + groups, dim // 2, 2))
            self.turned = torch.view_as_complex(turned)  # (N, H + G, d/2)
        self.q = self.qkv[:, :width].unflatten(1, (config.heads, dim))  # (N, H, d), scaled
        self.kv = self.qkv[:, width:].unflatten(1, (2, groups, dim))  # (N, 2, G, d)
        self.gated = torch.empty(n, config.d_feed_forward, dtype=dtype)

    def normalize(self) -> Tensor:
        """x / √(Σx² + D·ε), (N, D); the factor √D and the gain are in the next weights."""
        torch.linalg.vector_norm(self.stream, dim=1, keepdim=True, out=self.length)
        return torch.div(self.x, self.length, out=self.normed)

    def rounded(self) -> Tensor:
        """x in the type of the products, (N, D)."""
        return self.normed.copy_(self.x)


Attend = Callable[[int, Work], Tensor]
"""Layer and buffers to what its queries see, (N, H·d); keys and values are stored on the way."""
FeedForwards = Callable[[Tensor, Work], None]
"""What enters the feed-forward layer, (N, D), and buffers, to whose x its result is added."""


class _Layer(NamedTuple):
    """What one block computes."""

    qkv: Product  # D to (H + 2G)·d
    output: Product  # H·d to D
    feed_forward: FeedForwards
    norms: tuple[nn.Module, ...]  # behind the sums, where they stand there


class Prepared:
    """The weights of a decoder in this file's layout: a copy, to be made anew when they have changed."""

    def __init__(self, module: Decoder, *, n_rows: int, dtype: torch.dtype) -> None:
        config = module.config
        self.config, self.dtype = config, dtype
        self._lay_out = layout(dtype, n_rows)
        # Where a LayerNorm reads the residual stream, nothing that is written there has a mean.
        self._is_post_norm = config.block == "post_norm"
        self._is_parallel = config.block == "parallel"
        self._is_centred = config.norm == "layer" and not self._is_post_norm
        self._embedding = self._rows_of_stream(module.embedding.weight.detach())  # (V, D)
        table = folding.added(module)
        self._added = None if table is None else self._rows_of_stream(table)  # (P, D)
        self._rotation = folding.rotation(module)  # (P, d/2)
        self._layers = [self._layer(block) for block in module.blocks if isinstance(block, Block)]
        output = folding.scores(module)
        self._scores = self._product(output if self._is_post_norm else output.behind(module.norm))  # D to V

    def work(self, n: int) -> Work:
        """The buffers of a pass over n tokens."""
        return Work(self.config, n, self.dtype)

    def run(self, tokens: Tensor, positions: Tensor, work: Work, attend: Attend) -> Tensor:
        """`tokens` (N,) int64 at `positions` (N,) through all blocks; the states (N, D) for `scores`."""
        read = work.rounded if self._is_post_norm else work.normalize
        work.x.copy_(self._embedding.index_select(0, tokens))
        if self._added is not None:
            work.x.add_(self._added.index_select(0, positions))
        turns = (
            None if self._rotation is None else self._rotation.index_select(0, positions).unsqueeze(1)
        )  # (N, 1, d/2)
        for number, layer in enumerate(self._layers):
            x = read()
            layer.qkv.into(x, work.qkv)
            if turns is not None:
                work.turned.mul_(turns)
            layer.output.onto(attend(number, work).to(self.dtype), work.x)
            if self._is_post_norm:
                work.x.copy_(layer.norms[0](work.x))
            if not self._is_parallel:
                x = read()
            layer.feed_forward(x, work)
            if self._is_post_norm:
                work.x.copy_(layer.norms[1](work.x))
        return read()

    def scores(self, states: Tensor) -> Tensor:
        """States (N, D) of `run` to logits (N, V), float32."""
        return self._scores.of(states).float()

    def _product(self, affine: Affine) -> Product:
        return self._lay_out(affine.weight.to(self.dtype), affine.bias)

    def _rows_of_stream(self, table: Tensor) -> Tensor:
        return table - table.mean(1, keepdim=True) if self._is_centred else table

    def _onto_stream(self, linear: nn.Module) -> Product:
        return self._product(folding.of(linear).centred() if self._is_centred else folding.of(linear))

    def _layer(self, block: Block) -> _Layer:
        """A block that `_is_known`."""
        assert isinstance(block.attention, Attention)
        first = block.attention_norm
        second = first if self._is_parallel else block.feed_forward_norm
        qkv = folding.queries_keys_values(block.attention.qkv, self.config)
        return _Layer(
            qkv=self._product(qkv if self._is_post_norm else qkv.behind(first)),
            output=self._onto_stream(block.attention.output),
            feed_forward=self._feed_forward(block.feed_forward, second),
            norms=(copy.deepcopy(first), copy.deepcopy(second)) if self._is_post_norm else (),
        )

    def _feed_forward(self, module: nn.Module, norm: nn.Module) -> FeedForwards:
        if isinstance(module, RoutedExperts):
            return self._routed(module, norm)
        assert isinstance(module, SwiGLU | FeedForward)
        into = folding.of(module.gate_up if isinstance(module, SwiGLU) else module.up)
        up, down = self._product(into if self._is_post_norm else into.behind(norm)), self._onto_stream(module.down)
        return _gated(up, down) if isinstance(module, SwiGLU) else _activated(up, down, module.activation)

    def _routed(self, module: RoutedExperts, norm: nn.Module) -> FeedForwards:
        """What the router sees is not rounded: that would send tokens elsewhere."""
        router = Plain(folding.of(module.router).behind(norm).weight.float())
        experts, choices = self._experts(module.get_submodule("experts"), norm), module.choices

        def several(rows: Tensor, counts: Sequence[int]) -> Tensor:
            return torch.cat([experts[i](x) for i, x in enumerate(rows.split(list(counts))) if len(x)])

        def feed_forward(x: Tensor, work: Work) -> None:
            chosen, weights = choices(router.of(work.x / work.length))  # (N, K) twice
            if len(x) > 1:
                work.x.add_(through_experts(x, chosen, weights, several, len(experts)))
                return
            for expert, weight in zip(chosen[0].tolist(), weights[0].tolist(), strict=True):
                work.x.add_(experts[expert](x), alpha=weight)

        return feed_forward

    def _experts(self, module: nn.Module, norm: nn.Module) -> list[Callable[[Tensor], Tensor]]:
        """Each expert, (N, D) to (N, D)."""
        assert isinstance(module, SwiGLUExperts | ReluExperts)
        gated = isinstance(module, SwiGLUExperts)
        into = module.get_parameter("gate_up" if gated else "up").detach()
        activation = silu_product if gated else F.relu
        found: list[Callable[[Tensor], Tensor]] = []
        for first, second in zip(into, module.down.detach(), strict=True):
            products = self._product(Affine(first, None).behind(norm)), self._product(Affine(second, None))
            found.append(partial(_expert, *products, activation))
        return found


def _expert(into: Product, down: Product, activation: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    return down.of(activation(into.of(x)))


def _gated(gate_up: Product, down: Product) -> FeedForwards:
    def feed_forward(x: Tensor, work: Work) -> None:
        gate, up = gate_up.of(x).chunk(2, dim=1)  # (N, F) each
        torch.mul(F.silu(gate, inplace=True), up, out=work.gated)
        down.onto(work.gated, work.x)

    return feed_forward


def _activated(up: Product, down: Product, activation: Callable[[Tensor], Tensor]) -> FeedForwards:
    def feed_forward(x: Tensor, work: Work) -> None:
        down.onto(activation(up.of(x)), work.x)

    return feed_forward
