"""Which store keeps the keys and values of which layers: those that see as many positions share one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from axon_models.decoder.config import DecoderConfig
from axon_models.generation.prepared import Attend, Work
from axon_models.generation.stores import ManyRows, OneRow, Store


def slots_of(window: int | None, length: int) -> int:
    """How many positions a layer with this window ever sees of a row of `length`."""
    return length if window is None else min(window, length)


def store_for(config: DecoderConfig, *, n_rows: int, length: int, growing: bool, dtype: torch.dtype) -> Store:
    """A store of `n_rows` rows of up to `length` tokens. dtype: of keys and values of several rows.

    Those of a single row are float32: a batch of two small products in bfloat16 takes four times as long.
    """

    def store(n_layers: int, n_slots: int) -> Store:
        sizes = replace(config, n_layers=n_layers)
        if n_rows == 1:
            return OneRow(sizes, length=n_slots, growing=growing)
        return ManyRows(sizes, n_rows=n_rows, length=n_slots, growing=growing, dtype=dtype)

    by_layer = [slots_of(window, length) for window in config.windows]
    stores = {n_slots: store(by_layer.count(n_slots), n_slots) for n_slots in dict.fromkeys(by_layer)}
    return stores[by_layer[0]] if len(stores) == 1 else _ByWindow(stores, by_layer)


class _ByWindow:
    """One store for all layers that have the same number of slots."""

    def __init__(self, stores: Mapping[int, Store], by_layer: Sequence[int]) -> None:
        self._stores = list(stores.values())
        self._places = [(stores[n], by_layer[:layer].count(n)) for layer, n in enumerate(by_layer)]

    @property
    def slots(self) -> list[int]:
        """As `Store.slots`."""
        return [store.slots[place] for store, place in self._places]

    def reserve(self, n_slots: int) -> None:
        """As `Store.reserve`."""
        for store in self._stores:
            store.reserve(n_slots)

    def clear(self, row: int) -> None:
        """As `Store.clear`."""
        for store in self._stores:
            store.clear(row)

    def put(self, layer: int, row: int, start: int, kv: Tensor) -> None:
        """As `Store.put`."""
        store, place = self._places[layer]
        store.put(place, row, start, kv)

    def get(self, layer: int, row: int, stop: int) -> tuple[Tensor, Tensor]:
        """As `Store.get`."""
        store, place = self._places[layer]
        return store.get(place, row, stop)

    def move(self, order: Sequence[int]) -> None:
        """As `Store.move`."""
        for store in self._stores:
            store.move(order)

    def step(self, lengths: Sequence[int]) -> Attend:
        """As `Store.step`."""
        attends = {id(store): store.step(lengths) for store in self._stores}
        by_layer = [(attends[id(store)], place) for store, place in self._places]

        def attend(layer: int, work: Work) -> Tensor:
            of_store, place = by_layer[layer]
            return of_store(place, work)

        return attend
