"""What the tokens of a call see of its rows, of memory, and of earlier calls: a `See` for each way to call the model.

All ways but `AfterMemory` cut each text into segments by the positions of its tokens: a token at position p is in
segment s = ⌊p/L⌋ and sees the positions from s·L − M up to itself, those before s·L as memory, into which no gradient
flows. So what is computed of a text depends neither on what stands beside it in its row nor on how many calls read it.
"""
# B batch, T time of queries, M memory, S keys, L segment, D model, H heads, d head dimension, n distances

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from axon_models.layers.cache import KVCache, store
from axon_models.memory.attention import RelativeAttention, relative_shift, unseen_keys


@dataclass(frozen=True, kw_only=True)
class Table:
    """The sinusoids of distances 0, 1, …, (n, D), and the lengths of segments and memory."""

    sinusoids: Tensor
    segment_length: int
    memory_length: int

    def descending(self, n: int) -> Tensor:
        """The sinusoids of n−1 … 0, (n, D), or of all distances that there are, if fewer."""
        return self.sinusoids[:n].flip(0)

    def earliest(self, positions: Tensor) -> Tensor:
        """The first position that each of `positions` sees; below 0 where memory is not yet full."""
        return positions.div(self.segment_length, rounding_mode="floor") * self.segment_length - self.memory_length


@dataclass(frozen=True)
class AfterMemory:
    """A segment behind a memory (B, M, D) that is given: distances S−1 … 0 (S, D), unseen (T, S)."""

    memory: Tensor
    distances: Tensor
    unseen: Tensor

    def __call__(self, attention: RelativeAttention, x: Tensor) -> Tensor:
        return _after(attention, x, self.memory, attention.at_distances(self.distances), self.unseen)


def _after(attention: RelativeAttention, x: Tensor, memory: Tensor, r: Tensor, unseen: Tensor) -> Tensor:
    """x (B, T, D) behind memory (B, M, D), with r of S−1 … 0 (H, S, d)."""
    q = attention.queries(x)  # (B, H, T, d)
    keys, values = attention.keys_and_values(torch.cat((memory, x), dim=1))  # (B, H, S, d) twice
    by_position = relative_shift(attention.by_distance(q, r))  # (B, H, T, S)
    return attention.attended(q, keys, values, by_position, unseen)


class Segments:
    """Rows that are a text each, from its start: segment behind segment, each behind a memory of those before."""

    def __init__(self, table: Table, n_tokens: int, device: torch.device) -> None:
        self._distances = table.descending(n_tokens)  # (n, D)
        self._cuts: list[tuple[int, int, int, Tensor]] = []  # start of memory, start, end, unseen (T, S)
        for start in range(0, n_tokens, table.segment_length):
            end, first = min(start + table.segment_length, n_tokens), max(start - table.memory_length, 0)
            self._cuts.append((first, start, end, unseen_keys(end - start, start - first, None, device)))

    def __call__(self, attention: RelativeAttention, x: Tensor) -> Tensor:
        r, remembered = attention.at_distances(self._distances), x.detach()  # (H, n, d)
        parts = [
            _after(attention, x[:, start:end], remembered[:, first:start], r[:, -unseen.shape[1] :], unseen)
            for first, start, end, unseen in self._cuts
        ]
        return torch.cat(parts, dim=1)


class Places:
    """Rows with a mask: several texts, or one with padding. The distance of two tokens is that of their places.

    Every token stands in the row twice: without gradient, as memory, and as it is, for those of its own segment.
    """

    def __init__(self, table: Table, positions: Tensor, mask: Tensor) -> None:
        """positions (B, T) int64 in the texts, mask (B or 1, 1, T, T) bool, True where seen."""
        n_tokens = positions.shape[1]
        own_segment = (positions - positions.remainder(table.segment_length))[:, None, :, None]  # (B, 1, T, 1)
        keys = positions[:, None, None, :]  # (B, 1, 1, T)
        near = mask & (keys >= own_segment)  # (B, 1, T, T)
        far = mask & (keys < own_segment) & (keys >= table.earliest(positions)[:, None, :, None])
        # Texts in rows that are no longer than a segment have no use for memory.
        self._n_remembered = n_tokens if n_tokens > table.segment_length else 0
        self._unseen = ~torch.cat((far[..., : self._n_remembered], near), dim=-1)  # (B, 1, T, T or 2T)
        self._distances = table.descending(n_tokens)  # (n, D)

    def __call__(self, attention: RelativeAttention, x: Tensor) -> Tensor:
        q = attention.queries(x)  # (B, H, T, d)
        states = torch.cat((x[:, : self._n_remembered].detach(), x), dim=1)  # (B, S, D), S being T or 2T
        keys, values = attention.keys_and_values(states)  # (B, H, S, d) twice
        by_distance = attention.by_distance(q, attention.at_distances(self._distances))  # (B, H, T, n)
        # Distances that the table does not have are those of keys that are not seen.
        by_place = relative_shift(F.pad(by_distance, (x.shape[1] - by_distance.shape[-1], 0)))  # (B, H, T, T)
        by_position = torch.cat((by_place[..., : self._n_remembered], by_place), dim=-1)  # (B, H, T, S)
        return attention.attended(q, keys, values, by_position, self._unseen)


class Slots:
    """Where the tokens of a call stand among those of earlier calls, and what they see of them; for all layers."""

    def __init__(self, table: Table, cache: KVCache, positions: Tensor | None, mask: Tensor | None, n: int) -> None:
        """n tokens at positions (B, T), 0 … T−1 if None; mask (B or 1, 1, T, S) bool over S slots, None for causal."""
        device = cache.keys.device
        places = torch.arange(n, device=device)[None] if positions is None else positions  # (B or 1, T)
        self.positions, self.sinusoids, self.tables = positions, table.sinusoids, cache.tables
        self.n_slots = n if mask is None else mask.shape[-1]
        slots = torch.arange(self.n_slots, device=device)  # (S,)
        distances = places[:, None, :, None] - slots  # (B or 1, 1, T, S)
        seen = (distances >= 0) & (slots >= table.earliest(places)[:, None, :, None])
        self.unseen = ~(seen if mask is None else seen & mask)
        self.columns = distances.clamp(0, len(table.sinusoids) - 1)

    def of_layers(self, cache: KVCache) -> list[Stored]:
        layers = zip(cache.keys, cache.values, strict=True)
        return [Stored(self, layer, keys, values) for layer, (keys, values) in enumerate(layers)]


class Stored:
    """A layer whose keys and values go into slots (B, H, S, d), and which sees what is there."""

    def __init__(self, slots: Slots, layer: int, keys: Tensor, values: Tensor) -> None:
        self._slots, self._layer, self._keys, self._values = slots, layer, keys, values

    def __call__(self, attention: RelativeAttention, x: Tensor) -> Tensor:
        slots, q = self._slots, attention.queries(x)  # (B, H, T, d)
        k, v = attention.keys_and_values(x)  # (B, H, T, d) twice
        store(self._keys, self._values, k.transpose(1, 2), v.transpose(1, 2), slots.positions)
        keys, values = (kept[:, :, : slots.n_slots].to(q.dtype) for kept in (self._keys, self._values))  # (B, H, S, d)
        by_distance = attention.by_distance(q, self._at_distances(attention))  # (B, H, T, n)
        by_position = by_distance.gather(-1, slots.columns.expand(*by_distance.shape[:3], -1))  # (B, H, T, S)
        return attention.attended(q, keys, values, by_position, slots.unseen)

    def _at_distances(self, attention: RelativeAttention) -> Tensor:
        """r of all distances, (H, n, d), which no token changes: made once a cache."""
        if self._layer not in self._slots.tables:
            self._slots.tables[self._layer] = attention.at_distances(self._slots.sinusoids)
        return self._slots.tables[self._layer]
