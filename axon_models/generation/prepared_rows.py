"""`Rows` (rows.py) by the passes of `prepared.py`."""
# N tokens of one pass, B rows, H heads, G kv groups, d head dimension, S slots, T tokens of a piece, V vocabulary

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from axon_models.decoder.model import Decoder
from axon_models.generation.prepared import Prepared, Work
from axon_models.generation.stores_by_window import slots_of, store_for
from axon_models.layers.attend import as_bias


class _Piece(NamedTuple):
    """Tokens start … stop−1 of a row's prompt, which stand at `place` of a packed pass."""

    row: int
    start: int
    tokens: Sequence[int]
    place: int
    is_last: bool


class PreparedRows:
    """Pieces of several prompts are pre-filled in one pass, without padding. dtype: of the weights' products."""

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
        self._model, self._chunk = Prepared(module, n_rows=n_rows, dtype=dtype), chunk
        self._store = store_for(self._model.config, n_rows=n_rows, length=length, growing=growing, dtype=dtype)
        self._positions = torch.arange(length)
        self._slots = [slots_of(window, length) for window in self._model.config.windows]
        self._works: dict[int, Work] = {}
        self._lengths: list[int] = []

    def add(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """As `Rows.add`."""
        self._store.reserve(max(map(len, prompts)))
        for row in range(len(self._lengths), len(self._lengths) + len(prompts)):
            self._store.clear(row)
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
                passes[-1].append(_Piece(row, start, tokens, place, stop == len(prompt)))
                start, place = stop, place + len(tokens)
        return passes

    def _bias(self, piece: _Piece, n_slots: int) -> Tensor | None:
        """What a piece's queries see of the `n_slots` before it and of one another; None: all causally, none before."""
        start, stop = piece.start, piece.start + len(piece.tokens)
        if start == 0 and stop <= n_slots:
            return None
        queries, keys = self._positions[start:stop].unsqueeze(1), self._positions[max(0, start - n_slots) : stop]
        return as_bias(((keys <= queries) & (keys > queries - n_slots))[None, None])  # (1, 1, T, S)

    def _fill(self, pieces: Sequence[_Piece]) -> Tensor:
        """The logits (n, V) after those of the pieces that end their prompts."""
        tokens = torch.tensor([token for piece in pieces for token in piece.tokens])  # (N,)
        positions = torch.cat([self._positions[p.start : p.start + len(p.tokens)] for p in pieces])  # (N,)

        biases = {(p.place, slots): self._bias(p, slots) for p in pieces for slots in set(self._slots)}

        def attend(layer: int, work: Work) -> Tensor:
            outputs = torch.empty_like(work.q)  # (N, H, d)
            for piece in pieces:
                here, bias = (
                    slice(piece.place, piece.place + len(piece.tokens)),
                    biases[piece.place, self._slots[layer]],
                )
                q = work.q[here].transpose(0, 1).unsqueeze(0)  # (1, H, T, d)
                k, v = work.kv[here].permute(1, 2, 0, 3).unsqueeze(1)  # (1, G, T, d) each
                if piece.start:
                    earlier = self._store.get(layer, piece.row, piece.start)
                    k, v = (torch.cat((old.to(q.dtype), new), dim=2) for old, new in zip(earlier, (k, v), strict=True))
                self._store.put(layer, piece.row, piece.start, work.kv[here])
                seen = F.scaled_dot_product_attention(
                    q, k, v, attn_mask=bias, is_causal=bias is None, scale=1.0, enable_gqa=True
                )  # (1, H, T, d); queries are scaled already
                outputs[here] = seen[0].transpose(0, 1)
            return outputs.flatten(1)

        states = self._model.run(tokens, positions, self._model.work(len(tokens)), attend)  # (N, D)
        ends = [piece.place + len(piece.tokens) - 1 for piece in pieces if piece.is_last]
        return self._model.scores(states[ends])

    def keep(self, order: Sequence[int]) -> None:
        """As `Rows.keep`."""
        self._store.move(order)
        self._lengths = [self._lengths[row] for row in order]

    def step(self, tokens: Tensor) -> Tensor:
        """As `Rows.step`."""
        n = len(self._lengths)
        self._store.reserve(max(self._lengths) + 1)
        if n not in self._works:
            self._works[n] = self._model.work(n)
        attend = self._store.step(self._lengths)
        states = self._model.run(tokens, torch.tensor(self._lengths), self._works[n], attend)  # (B, D)
        self._lengths = [length + 1 for length in self._lengths]
        return self._model.scores(states)
