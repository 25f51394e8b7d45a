"""Single-token steps of the default kind of decoder, at the cost of little more than reading its weights.

A step of one row reads every weight once, so on a processor the memory sets the pace, and every small operation beside
the products is lost time. So the weights are laid out once: in the order in which products of few rows read them
fastest (up to twice as fast as in `nn.Linear`'s), a norm's gain goes into the product after it, heads have the two
halves of a rotated pair side by side, so that rotation is one complex product in place, and results are written into
buffers that stay. Only the order of additions differs from the modules': logits agree within 1e-5 of
their scale (tests/axon_models/test_rows.py).
"""
# N tokens of one pass (B rows in a step, packed pieces of prompts in a pre-fill), D model, H heads, G kv groups,
# R = H/G heads a group, d head dimension, F feed-forward, L layers, S slots, V vocabulary

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor

from axon_models.decoder.config import DecoderConfig
from axon_models.decoder.model import Block, Decoder
from axon_models.generation.caches import FIRST_SLOTS, grown, move_rows
from axon_models.layers.attend import as_bias, causal, masked
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
    """Weights of one block, input × output."""

    qkv: Tensor  # (D, (H + 2G)·d)
    output: Tensor  # (H·d, D)
    gate_up: Tensor  # (D, 2F)
    down: Tensor  # (F, D)


class _Work:
    """The buffers of a pass over N tokens, and the views of them that its operations use."""

    def __init__(self, config: DecoderConfig, n: int) -> None:
        width, groups, dim = config.heads * config.head_dim, config.kv_heads, config.head_dim
        self.stream = torch.zeros(n, config.d_model + _PAD)
        # With this column the norm of a row of `stream` is √(Σx² + D·ε).
        self.stream[:, config.d_model] = math.sqrt(config.d_model * config.norm_eps)
        self.x = self.stream[:, : config.d_model]  # (N, D)
        self.length = torch.empty(n, 1)
        self.normed = torch.empty(n, config.d_model)
        self.qkv = torch.empty(n, width + 2 * groups * dim)
        turned = self.qkv[:, : width + groups * dim].unflatten(1, (config.heads + groups, dim // 2, 2))
        self.turned = torch.view_as_complex(turned)  # (N, H + G, d/2)
        self.q = self.qkv[:, :width].unflatten(1, (config.heads, dim))  # (N, H, d)
        self.kv = self.qkv[:, width:].unflatten(1, (2, groups, dim))  # (N, 2, G, d)
        self.gate_up = torch.empty(n, 2 * config.d_feed_forward)
        self.gate, self.up = self.gate_up.chunk(2, dim=1)  # (N, F) each

    def normalize(self) -> Tensor:
        """x / √(Σx² + D·ε), (N, D); the factor √D and the gain are in the next weights."""
        torch.linalg.vector_norm(self.stream, dim=1, keepdim=True, out=self.length)
        return torch.div(self.x, self.length, out=self.normed)


_Attend = Callable[[int, _Work], Tensor]  # layer, buffers → (N, H·d); stores keys and values on the way


class Prepared:
    """The weights of a decoder in this file's layout: a copy, to be made anew when they have changed."""

    def __init__(self, module: Decoder) -> None:
        config = module.config
        self.config = config
        self.embedding = module.embedding.weight.detach()  # (V, D)
        half = config.head_dim // 2
        cos, sin = module.get_buffer("rotary.cos"), module.get_buffer("rotary.sin")  # (P, d)
        self.rotation = torch.complex(cos[:, :half], sin[:, half:])  # (P, d/2)
        self.layers = [_layer(block, config) for block in module.blocks if isinstance(block, Block)]
        self.scores = _with_gain(module.output_weight, module.norm)  # (D, V)

    def run(self, tokens: Tensor, positions: Tensor, work: _Work, attend: _Attend) -> Tensor:
        """`tokens` (N,) int64 at `positions` (N,) through all blocks; the states (N, D) for `scores`."""
        rotation = self.rotation.index_select(0, positions).unsqueeze(1)  # (N, 1, d/2)
        work.x.copy_(self.embedding.index_select(0, tokens))
        for number, layer in enumerate(self.layers):
            torch.mm(work.normalize(), layer.qkv, out=work.qkv)
            work.turned.mul_(rotation)
            work.x.addmm_(attend(number, work), layer.output)
            torch.mm(work.normalize(), layer.gate_up, out=work.gate_up)
            F.silu(work.gate, inplace=True).mul_(work.up)
            work.x.addmm_(work.gate, layer.down)
        return work.normalize()


def _layer(block: Block, config: DecoderConfig) -> _Layer:
    """The weights of a block that `_is_known`."""
    attention, feed_forward = block.attention, block.feed_forward
    assert isinstance(attention, Attention)
    assert isinstance(feed_forward, SwiGLU)
    dim = config.head_dim
    side_by_side = torch.arange(dim).view(2, dim // 2).t().flatten()  # (d,): 0, d/2, 1, d/2 + 1, …
    turned = torch.arange((config.heads + config.kv_heads) * dim).view(-1, dim)[:, side_by_side].flatten()
    same = torch.arange(turned.shape[0], turned.shape[0] + config.kv_heads * dim)
    return _Layer(
        qkv=_with_gain(attention.qkv.get_parameter("weight"), block.attention_norm)[
            :, torch.cat((turned, same))
        ].contiguous(),
        output=attention.output.get_parameter("weight").detach().t().contiguous(),
        gate_up=_with_gain(feed_forward.gate_up.get_parameter("weight"), block.feed_forward_norm),
        down=feed_forward.down.get_parameter("weight")
        .detach()
        .clone()
        .t(),  # of many inputs and few outputs: read faster this way
    )


def _with_gain(weight: Tensor, norm: torch.nn.Module) -> Tensor:
    """weight (outputs, D) with the gain of the norm before it, and √D, in it: (D, outputs)."""
    gain = norm.get_parameter("weight").detach() * math.sqrt(weight.shape[1])
    return (weight.detach() * gain).t().contiguous()


class _Piece(NamedTuple):
    """Tokens start … stop−1 of a row's prompt, which stand at `place` of a packed pass."""

    row: int
    start: int
    tokens: Sequence[int]
    place: int
    bias: Tensor | None  # (1, 1, T, S) where the row holds earlier tokens
    is_last: bool


class PreparedRows:
    """`Rows` (rows.py) by `Prepared`. Pieces of several prompts are pre-filled in one pass, without padding."""

    def __init__(self, module: Decoder, *, n_rows: int, length: int, chunk: int, growing: bool = True) -> None:
        self._model, self._n_rows, self._length, self._chunk = Prepared(module), n_rows, length, chunk
        config = self._model.config
        slots = min(length, FIRST_SLOTS) if growing else length
        self._hold(torch.zeros(2 * config.n_layers, n_rows, config.kv_heads, slots, config.head_dim))
        self._works: dict[int, _Work] = {}
        self._lengths: list[int] = []

    def _hold(self, buffer: Tensor) -> None:
        """Take `buffer` (2L, B, G, S, d), keys and values of the layers in turn, and make the views that steps use."""
        _, n_rows, groups, slots, dim = buffer.shape
        self._buffer = buffer
        self._flat = buffer.view(-1, 2 * n_rows * groups * slots, dim).unbind(0)  # (2·B·G·S, d) for each layer
        by_group = buffer.view(-1, 2, n_rows * groups, slots, dim)
        self._keys = by_group[:, 0].transpose(2, 3).unbind(0)  # (B·G, d, S) for each layer
        self._values = by_group[:, 1].unbind(0)  # (B·G, S, d) for each layer
        row = torch.arange(n_rows * groups).view(n_rows, 1, groups) * slots
        self._places = torch.cat((row, row + n_rows * groups * slots), dim=1)  # (B, 2, G): where a row begins
        self._slots = torch.arange(slots)  # (S,)

    def _reserve(self, n_slots: int) -> None:
        if n_slots > self._buffer.shape[-2]:
            self._hold(grown(self._buffer, n_slots, self._length))

    def add(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """As `Rows.add`."""
        self._reserve(max(map(len, prompts)))
        logits = [self._fill(pieces) for pieces in self._passes(prompts)]
        self._lengths += [len(prompt) for prompt in prompts]
        return torch.cat(logits)

    def _passes(self, prompts: Sequence[Sequence[int]]) -> list[list[_Piece]]:
        """The prompts cut and packed into passes of at most `chunk` tokens, in order."""
        passes: list[list[_Piece]] = []
        place = self._chunk
        for row, prompt in enumerate(prompts, start=len(self._lengths)):
            start = 0
            while start < len(prompt):
                if place == self._chunk:
                    passes.append([])
                    place = 0
                tokens = prompt[start : start + self._chunk - place]
                stop = start + len(tokens)
                seen = self._slots[:stop] <= self._slots[start:stop].unsqueeze(1)  # (T, S)
                bias = as_bias(seen[None, None]) if start else None
                passes[-1].append(_Piece(row, start, tokens, place, bias, stop == len(prompt)))
                start, place = stop, place + len(tokens)
        return passes

    def _fill(self, pieces: Sequence[_Piece]) -> Tensor:
        """The logits (n, V) after those of the pieces that end their prompts."""
        tokens = torch.tensor([token for piece in pieces for token in piece.tokens])  # (N,)
        positions = torch.cat([self._slots[p.start : p.start + len(p.tokens)] for p in pieces])  # (N,)
        buffer = self._buffer.unflatten(0, (-1, 2))  # (L, 2, B, G, S, d)

        def attend(layer: int, work: _Work) -> Tensor:
            outputs = torch.empty_like(work.q)  # (N, H, d)
            for piece in pieces:
                here, stop = slice(piece.place, piece.place + len(piece.tokens)), piece.start + len(piece.tokens)
                stored = buffer[layer, :, piece.row]  # (2, G, S, d)
                stored[:, :, piece.start : stop] = work.kv[here].permute(1, 2, 0, 3)
                k, v = stored[:, :, :stop].transpose(1, 2).unsqueeze(1)  # (1, S, G, d) each
                q = work.q[here].unsqueeze(0)  # (1, T, H, d)
                outputs[here] = (causal(q, k, v) if piece.bias is None else masked(q, k, v, piece.bias))[0]
            return outputs.flatten(1)

        states = self._model.run(tokens, positions, _Work(self._model.config, len(tokens)), attend)  # (N, D)
        ends = [piece.place + len(piece.tokens) - 1 for piece in pieces if piece.is_last]
        return torch.mm(states[ends], self._model.scores)

    def keep(self, order: Sequence[int]) -> None:
        """As `Rows.keep`."""
        move_rows(self._buffer, order, max(self._lengths, default=0))
        self._lengths = [self._lengths[row] for row in order]

    def step(self, tokens: Tensor) -> Tensor:
        """As `Rows.step`."""
        config, n = self._model.config, len(self._lengths)
        n_slots = max(self._lengths) + 1
        self._reserve(n_slots)
        positions = torch.tensor(self._lengths)  # (B,)
        places = (self._places[:n] + positions[:, None, None]).flatten()  # (B·2·G,)
        groups, n_products = config.kv_heads, n * config.kv_heads
        bias, beta = torch.zeros(1), 0
        if min(self._lengths) + 1 < n_slots:
            unseen = self._slots[:n_slots] > positions.unsqueeze(1)  # (B, S)
            bias = torch.zeros(n, n_slots).masked_fill_(unseen, float("-inf"))  # every row sees at least itself
            bias, beta = bias.repeat_interleave(groups, dim=0).unsqueeze(1), 1  # (B·G, 1, S)
        scale = 1 / math.sqrt(config.head_dim)

        def attend(layer: int, work: _Work) -> Tensor:
            self._flat[layer].index_copy_(0, places, work.kv.reshape(-1, config.head_dim))
            q = work.q.reshape(n_products, -1, config.head_dim)  # (B·G, R, d)
            keys, values = self._keys[layer][:n_products, :, :n_slots], self._values[layer][:n_products, :n_slots]
            p = torch.baddbmm(bias, q, keys, beta=beta, alpha=scale).softmax(-1)  # (B·G, R, S)
            return torch.bmm(p, values).view(n, -1)  # (B, H·d)

        states = self._model.run(tokens, positions, self._work(n), attend)  # (B, D)
        self._lengths = [length + 1 for length in self._lengths]
        return torch.mm(states, self._model.scores)

    def _work(self, n: int) -> _Work:
        if n not in self._works:
            self._works[n] = _Work(self._model.config, n)
        return self._works[n]
