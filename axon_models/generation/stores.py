"""Where the passes of `prepared.py` keep keys and values, and how a step's single queries look at them.

A batch of products with one or two queries each is what processors do slowest: of 64 rows and 192 slots the scores
took 0.9 ms in bfloat16 and 2.1 ms in float32, on one thread of an AMD Zen 4. As sums of weighted rows of a matrix
(`embedding_bag`, a bag for each query) they take 0.17 and 0.41 ms: scores are the rows of keysᵀ weighted by a query's
numbers, and what a query sees are the values weighted by its probabilities. A bag is summed by itself, in float32, so
a row's numbers do not depend on what stands beside it.
"""
# B rows, H heads, G kv groups, R = H/G heads a group, d head dimension, L layers, S slots, T tokens of a piece

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from axon_models.decoder.config import DecoderConfig
from axon_models.generation.caches import FIRST_SLOTS, grown, move_rows
from axon_models.generation.prepared import Attend, Work

_STEP = 32  # slots by which a buffer of many rows grows: scores are computed of all that it has


class Store(Protocol):
    """Keys and values of rows that stand at positions of their own.

    Slot s of a row holds position s. Of a layer with a window of W positions there are no more than W slots, and slot s
    holds the last position that leaves the rest s when divided by W: a token takes the place of the one that leaves
    its window, and what is seen has no order.
    """

    @property
    def slots(self) -> list[int]:
        """How many slots each layer has by now."""
        ...

    def reserve(self, n_slots: int) -> None:
        """Make room for `n_slots` positions, or for a layer's window; what is stored stays."""
        ...

    def clear(self, row: int) -> None:
        """A row begins anew: what its slots hold is never seen again."""
        ...

    def put(self, layer: int, row: int, start: int, kv: Tensor) -> None:
        """Store `kv` (T, 2, G, d) of positions from `start` on."""
        ...

    def get(self, layer: int, row: int, stop: int) -> tuple[Tensor, Tensor]:
        """Keys and values, (1, G, S, d) each, of a row's last S positions before `stop`, up to which it is filled.

        S is `stop`, or the window's width where that is less.
        """
        ...

    def move(self, order: Sequence[int]) -> None:
        """Row i becomes what row order[i] was."""
        ...

    def step(self, lengths: Sequence[int]) -> Attend:
        """How rows that hold `lengths` tokens each see their keys when each writes one more, which it stores."""
        ...


def _places(start: int, stop: int, length: int) -> Tensor | slice:
    """Where the positions start … stop−1 stand among `length` slots, in order."""
    if stop <= length:
        return slice(start, stop)
    return torch.arange(start, stop) % length


class OneRow:
    """Of a single row, which sees all that it holds."""

    def __init__(self, config: DecoderConfig, *, length: int, growing: bool) -> None:
        self._config, self._length = config, length
        slots = min(length, FIRST_SLOTS) if growing else length
        self._buffer = torch.zeros(config.n_layers, 2, config.kv_heads, slots, config.head_dim)

    @property
    def slots(self) -> list[int]:
        """As `Store.slots`."""
        return [self._buffer.shape[3]] * self._config.n_layers

    def reserve(self, n_slots: int) -> None:
        """As `Store.reserve`."""
        self._buffer = grown(self._buffer, min(n_slots, self._length), self._length)

    def clear(self, row: int) -> None:
        """As `Store.clear`: slots past a row's length are never read."""

    def put(self, layer: int, row: int, start: int, kv: Tensor) -> None:
        """As `Store.put`."""
        stop, kept = start + kv.shape[0], kv[-self._length :]
        self._buffer[layer, :, :, _places(stop - kept.shape[0], stop, self._length)] = kept.permute(1, 2, 0, 3)

    def get(self, layer: int, row: int, stop: int) -> tuple[Tensor, Tensor]:
        """As `Store.get`."""
        slots = _places(max(0, stop - self._length), stop, self._length)
        keys, values = self._buffer[layer, :, None, :, slots].unbind(0)
        return keys, values

    def move(self, order: Sequence[int]) -> None:
        """As `Store.move`: there is no other row."""

    def step(self, lengths: Sequence[int]) -> Attend:
        """As `Store.step`."""
        config, (length,) = self._config, lengths
        n_seen = min(length + 1, self._length)
        written = self._buffer[:, :, :, length % self._length].unbind(0)  # (2, G, d) for each layer
        keys = self._buffer[:, 0, :, :n_seen].transpose(2, 3).unbind(0)  # (G, d, S)
        values = self._buffer[:, 1, :, :n_seen].unbind(0)  # (G, S, d)
        by_group = config.kv_heads, config.heads // config.kv_heads, config.head_dim

        def attend(layer: int, work: Work) -> Tensor:
            written[layer].copy_(work.kv[0])
            scores = torch.bmm(work.q.view(by_group), keys[layer])  # (G, R, S)
            return torch.bmm(scores.softmax(-1), values[layer]).view(1, -1)

        return attend


class _Bags(NamedTuple):
    """Which rows of a matrix each bag sums."""

    rows: Tensor  # int32
    starts: Tensor  # int32, one for each bag

    def sums(self, matrix: Tensor, weights: Tensor) -> Tensor:
        """Each bag's rows of `matrix` (rows, width), by `weights` of any shape with as many numbers: (bags, width)."""
        # Mode 0 is the sum; `F.embedding_bag` calls this after checks of its own.
        return torch.embedding_bag(matrix, self.rows, self.starts, False, 0, False, weights.view(-1))[0]


class _StepWork(NamedTuple):
    """What a step of n rows writes and reads, for as long as n and the number of slots stay."""

    queries: Tensor  # (B, H, d+1), the last column 1
    keys: Tensor  # (B, G, d+1), the last column 0
    values: Tensor  # (B, G, d)
    key_places: Tensor  # (B, G, d+1): where slot 0 of each of a row's numbers stands
    value_places: Tensor  # (B, G)
    scores: _Bags
    seen: _Bags


class ManyRows:
    """Of several rows: keys as (d, S), so that a step's scores are sums of their rows.

    Below a group's keys stands one row more, 0 where the slot is written and −∞ elsewhere, and behind each query a 1:
    so what is unseen is masked by the sum itself.
    """

    def __init__(self, config: DecoderConfig, *, n_rows: int, length: int, growing: bool, dtype: torch.dtype) -> None:
        self._config, self._n_rows, self._length, self._dtype = config, n_rows, length, dtype
        self._first_slots = min(length, FIRST_SLOTS) if growing else length
        self._empty()

    def _empty(self) -> None:
        shape = self._config.n_layers, self._n_rows, self._config.kv_heads
        keys = torch.zeros(*shape, self._config.head_dim + 1, 0, dtype=self._dtype)
        values = torch.zeros(*shape, self._first_slots, self._config.head_dim, dtype=self._dtype)
        self._hold(_wider(keys, self._first_slots), values)

    def _hold(self, keys: Tensor, values: Tensor) -> None:
        """Take keys (L, B, G, d+1, S) and values (L, B, G, S or more, d), and make the views that steps use."""
        self._keys, self._values = keys, values
        self._key_rows = keys.flatten(1, 3).unbind(0)  # (B·G·(d+1), S) for each layer
        self._key_numbers = keys.flatten(1).unbind(0)  # (B·G·(d+1)·S,)
        self._value_rows = values.flatten(1, 3).unbind(0)  # (B·G·S, d)
        self._works: dict[int, _StepWork] = {}

    @property
    def slots(self) -> list[int]:
        """As `Store.slots`."""
        return [self._keys.shape[4]] * self._config.n_layers

    def reserve(self, n_slots: int) -> None:
        """As `Store.reserve`."""
        n_slots = min(-(-n_slots // _STEP) * _STEP, self._length)
        if n_slots > self._keys.shape[4]:
            self._hold(_wider(self._keys, n_slots), grown(self._values, n_slots, self._length))

    def clear(self, row: int) -> None:
        """As `Store.clear`."""
        self._keys[:, row, :, -1] = float("-inf")

    def put(self, layer: int, row: int, start: int, kv: Tensor) -> None:
        """As `Store.put`."""
        stop, kept = start + kv.shape[0], kv[-self._length :]
        slots = _places(stop - kept.shape[0], stop, self._length)
        keys, values = kept.to(self._dtype).unbind(1)  # (T, G, d)
        self._keys[layer, row, :, :-1, slots] = keys.permute(1, 2, 0)
        self._keys[layer, row, :, -1, slots] = 0.0
        self._values[layer, row, :, slots] = values.transpose(0, 1)

    def get(self, layer: int, row: int, stop: int) -> tuple[Tensor, Tensor]:
        """As `Store.get`."""
        slots = _places(max(0, stop - self._length), stop, self._length)
        keys = self._keys[layer, None, row, :, :-1, slots].transpose(2, 3)
        return keys, self._values[layer, None, row, :, slots]

    def move(self, order: Sequence[int]) -> None:
        """As `Store.move`."""
        if not order:
            self._empty()  # the next rows may be shorter
            return
        move_rows(self._keys, order, self._config.head_dim + 1)
        move_rows(self._values, order, self._keys.shape[4])

    def step(self, lengths: Sequence[int]) -> Attend:
        """As `Store.step`."""
        n, dim = len(lengths), self._config.head_dim
        if n not in self._works:
            self._works[n] = self._work(n)
        queries, keys, values, key_places, value_places, scores, seen = self._works[n]
        slots = torch.tensor([length % self._length for length in lengths])[:, None, None]  # (B, 1, 1)
        key_places = (key_places + slots).flatten()  # (B·G·(d+1),)
        value_places = (value_places + slots[:, 0]).flatten()  # (B·G,)
        query_numbers, written = queries[..., :dim], keys[..., :dim]
        flat_keys, flat_values = keys.view(-1), values.view(-1, dim)

        def attend(layer: int, work: Work) -> Tensor:
            written.copy_(work.kv[:, 0])
            values.copy_(work.kv[:, 1])
            query_numbers.copy_(work.q)
            self._key_numbers[layer].index_copy_(0, key_places, flat_keys)
            self._value_rows[layer].index_copy_(0, value_places, flat_values)
            p = scores.sums(self._key_rows[layer], queries).softmax(-1)  # (B·H, S)
            return seen.sums(self._value_rows[layer], p).view(n, -1)  # (B, H·d)

        return attend

    def _work(self, n: int) -> _StepWork:
        config, n_slots, held = self._config, self._keys.shape[4], self._values.shape[3]
        heads, groups, dim = config.heads, config.kv_heads, config.head_dim
        queries = torch.ones(n, heads, dim + 1, dtype=self._dtype)
        keys = torch.zeros(n, groups, dim + 1, dtype=self._dtype)
        values = torch.empty(n, groups, dim, dtype=self._dtype)
        key_places = torch.arange(n * groups * (dim + 1)).view(n, groups, dim + 1) * n_slots
        value_places = torch.arange(n * groups).view(n, groups) * held
        scores = _bags(n * groups, heads // groups, dim + 1, apart=dim + 1)
        seen = _bags(n * groups, heads // groups, n_slots, apart=held)
        return _StepWork(queries, keys, values, key_places, value_places, scores, seen)


def _wider(keys: Tensor, n_slots: int) -> Tensor:
    """A copy of `keys` (..., d+1, S) with `n_slots` slots; new ones are unseen."""
    held = keys.shape[-1]
    wider = keys.new_empty(*keys.shape[:-1], n_slots)
    wider[..., :held] = keys
    wider[..., :-1, held:] = 0.0
    wider[..., -1, held:] = float("-inf")
    return wider


def _bags(n_groups: int, per_group: int, size: int, *, apart: int) -> _Bags:
    """Bags of `size` rows each, `per_group` times the same: those from row 0 on, from row `apart` on, and so on."""
    begins = torch.arange(n_groups, dtype=torch.int32).view(n_groups, 1, 1) * apart
    rows = (begins + torch.arange(size, dtype=torch.int32)).expand(-1, per_group, -1)
    return _Bags(rows.reshape(-1), torch.arange(n_groups * per_group, dtype=torch.int32) * size)
