"""`Rows` (rows.py) of the default kind of decoder, by the passes of `prepared.py`."""
# N tokens of one pass, B rows, H heads, G kv groups, R = H/G heads a group, d head dimension, L layers, S slots,
# T tokens of a piece, V vocabulary

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from axon_models.decoder.model import Decoder
from axon_models.generation.caches import FIRST_SLOTS, grown, move_rows
from axon_models.generation.prepared import Prepared, Work
from axon_models.layers.attend import as_bias, causal, masked


class _Piece(NamedTuple):
    """Tokens start … stop−1 of a row's prompt, which stand at `place` of a packed pass."""

    row: int
    start: int
    tokens: Sequence[int]
    place: int
    bias: Tensor | None  # (1, 1, T, S) where the row holds earlier tokens
    is_last: bool


_Attends = Callable[[int, Tensor], Tensor]
"""Layer and queries (B·G, R, d), scaled, to what they see, B·H·d numbers in this order."""


class _StepWork(NamedTuple):
    """The buffers of a step: those of its pass, and its queries, keys and values in the type that is stored."""

    work: Work
    queries: Tensor  # (B, H, d)
    queries_by_group: Tensor  # the same as (B·G, R, d)
    stored: Tensor  # (B, 2, G, d)
    stored_flat: Tensor  # the same as (B·2·G, d)


class PreparedRows:
    """Pieces of several prompts are pre-filled in one pass, without padding. dtype: of the weights' products.

    Keys and values have the type of the products, but those of a single row are float32: a batch of two small
    products in bfloat16 takes four times as long as in float32.
    """

    def __init__(
        self,
        module: Decoder,
        *,
        n_rows: int,
        length: int,
        chunk: int,
        growing: bool = True,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self._model, self._length, self._chunk = Prepared(module, n_rows=n_rows, dtype=dtype), length, chunk
        config = self._model.config
        slots = min(length, FIRST_SLOTS) if growing else length
        self._dtype = torch.float32 if n_rows == 1 else dtype  # of keys and values
        self._hold(torch.zeros(config.n_layers, 2, n_rows, config.kv_heads, slots, config.head_dim, dtype=self._dtype))
        self._attends = self._attends_of_one if n_rows == 1 else self._attends_of_many
        self._works: dict[int, _StepWork] = {}
        self._lengths: list[int] = []

    def _hold(self, buffer: Tensor) -> None:
        """Take `buffer` (L, 2, B, G, S, d), keys and values of each layer, and make the views that steps use."""
        _, _, n_rows, groups, slots, dim = buffer.shape
        self._buffer = buffer
        self._flat = buffer.view(-1, 2 * n_rows * groups * slots, dim).unbind(0)  # (2·B·G·S, d) for each layer
        self._by_group = buffer.flatten(2, 3)  # (L, 2, B·G, S, d)
        row = torch.arange(n_rows * groups).view(n_rows, 1, groups) * slots
        self._begins = torch.cat((row, row + n_rows * groups * slots), dim=1)  # (B, 2, G): where a group's slots begin
        self._slots = torch.arange(slots)  # (S,)

    def _reserve(self, n_slots: int) -> None:
        if n_slots > self._slots.shape[0]:
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

        def attend(layer: int, work: Work) -> Tensor:
            outputs = torch.empty_like(work.q)  # (N, H, d)
            for piece in pieces:
                here, stop = slice(piece.place, piece.place + len(piece.tokens)), piece.start + len(piece.tokens)
                stored = self._buffer[layer, :, piece.row]  # (2, G, S, d)
                stored[:, :, piece.start : stop] = work.kv[here].permute(1, 2, 0, 3)
                q = work.q[here].unsqueeze(0)  # (1, T, H, d)
                if piece.bias is None:
                    k, v = work.kv[here].unsqueeze(0).unbind(2)  # (1, T, G, d) each
                    outputs[here] = causal(q, k, v)[0]
                else:
                    k, v = stored[:, :, :stop].transpose(1, 2).unsqueeze(1).to(q.dtype)  # (1, S, G, d) each
                    outputs[here] = masked(q, k, v, piece.bias)[0]
            return outputs.flatten(1)

        states = self._model.run(tokens, positions, self._model.work(len(tokens)), attend)  # (N, D)
        ends = [piece.place + len(piece.tokens) - 1 for piece in pieces if piece.is_last]
        return self._model.scores(states[ends])

    def keep(self, order: Sequence[int]) -> None:
        """As `Rows.keep`."""
        move_rows(self._buffer.flatten(0, 1), order, max(self._lengths, default=0))
        self._lengths = [self._lengths[row] for row in order]

    def step(self, tokens: Tensor) -> Tensor:
        """As `Rows.step`."""
        config, n = self._model.config, len(self._lengths)
        n_slots = max(self._lengths) + 1
        self._reserve(n_slots)
        positions = torch.tensor(self._lengths)  # (B,)
        places = (self._begins[:n] + positions[:, None, None]).flatten()  # (B·2·G,)
        scale, (work, queries, q, stored, kv) = 1 / math.sqrt(config.head_dim), self._work(n)
        attends = self._attends(positions, n_slots)

        def attend(layer: int, work: Work) -> Tensor:
            stored.copy_(work.kv)
            self._flat[layer].index_copy_(0, places, kv)
            torch.mul(work.q, scale, out=queries)
            return attends(layer, q).view(n, -1)  # (B, H·d)

        states = self._model.run(tokens, positions, work, attend)  # (B, D)
        self._lengths = [length + 1 for length in self._lengths]
        return self._model.scores(states)

    def _attends_of_one(self, positions: Tensor, n_slots: int) -> _Attends:
        """Of a single row, which sees all its keys."""
        seen = self._by_group[:, :, :, :n_slots].unbind(0)  # (2, G, S, d) for each layer

        def attends(layer: int, queries: Tensor) -> Tensor:
            keys, values = seen[layer].unbind(0)
            return torch.bmm(torch.bmm(queries, keys.transpose(1, 2)).softmax(-1), values)

        return attends

    def _attends_of_many(self, positions: Tensor, n_slots: int) -> _Attends:
        """Of rows at `positions` (B,).

        The sum of weighted values is one of `embedding_bag`, a bag for each query, in half the time of a batch of
        products with so few queries. Keys times queries take three quarters of the time of queries times keys.
        """
        config, n = self._model.config, positions.shape[0]
        n_products, per_group = n * config.kv_heads, config.heads // config.kv_heads
        bias = None
        if min(self._lengths) + 1 < n_slots:
            unseen = self._slots[:n_slots] > positions.unsqueeze(1)  # (B, S); every row sees at least itself
            bias = torch.zeros(n, n_slots, dtype=self._dtype).masked_fill_(unseen, float("-inf"))
            bias = bias.repeat_interleave(config.kv_heads, dim=0).unsqueeze(2)  # (B·G, S, 1)
        keys = self._by_group[:, 0, :n_products, :n_slots].unbind(0)  # (B·G, S, d) for each layer
        begins = self._begins[:n, 1].reshape(-1, 1, 1).int()  # (B·G, 1, 1): of values
        slots = (begins + self._slots[:n_slots].int()).expand(-1, per_group, -1).reshape(-1)  # (B·G·R·S,)
        starts = torch.arange(n_products * per_group, dtype=torch.int32) * n_slots  # (B·G·R,)

        def attends(layer: int, queries: Tensor) -> Tensor:
            queries = queries.transpose(1, 2)  # (B·G, d, R)
            scores = torch.bmm(keys[layer], queries) if bias is None else torch.baddbmm(bias, keys[layer], queries)
            p = scores.transpose(1, 2).softmax(-1).reshape(-1)  # (B·G, S, R) to (B·G·R·S,)
            # Mode 0 is the sum; `F.embedding_bag` calls this after checks of its own.
            return torch.embedding_bag(self._flat[layer], slots, starts, False, 0, False, p)[0]

        return attends

    def _work(self, n: int) -> _StepWork:
        if n not in self._works:
            config = self._model.config
            queries = torch.empty(n, config.heads, config.head_dim, dtype=self._dtype)
            stored = torch.empty(n, 2, config.kv_heads, config.head_dim, dtype=self._dtype)
            by_group = queries.view(n * config.kv_heads, -1, config.head_dim)
            self._works[n] = _StepWork(self._model.work(n), queries, by_group, stored, stored.flatten(0, 2))
        return self._works[n]
