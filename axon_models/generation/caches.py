"""Where decoding keeps keys and values: buffers of full length, buffers that grow with what is written, or the last
window of positions alone."""
# L layers, N buffers (keys or values of a layer), B rows, G kv groups, S slots, d head dimension

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from axon_models.decoder.model import Decoder
from axon_models.layers.cache import KVCache
from axon_models.layers.language_model import Cache, LanguageModel
from axon_models.layers.rolling_cache import RollingCache

FIRST_SLOTS = 64  # of a buffer that grows


class GrowingKVCache(KVCache):
    """A `KVCache` whose number of slots doubles when it has to, up to `max_length`."""

    max_length: int

    def reserve(self, n_slots: int) -> None:
        """Make room for `n_slots` slots; what is stored stays."""
        self.keys = grown(self.keys, n_slots, self.max_length)
        self.values = grown(self.values, n_slots, self.max_length)


def new_cache(module: LanguageModel, n_rows: int, length: int, *, growing: bool) -> Cache:
    """An empty cache of a decoder for `n_rows` rows of up to `length` tokens. The only place that makes one here.

    One that grows keeps a window alone where every layer has the same, shorter than `length`.
    """
    config = module.config
    sizes: dict[str, Any] = {
        "n_layers": config.n_layers,
        "batch": n_rows,
        "kv_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "dtype": module.embedding.weight.dtype,
        "device": module.embedding.weight.device,
    }
    window = _window(module)
    if growing and window is not None and window < length:
        return RollingCache(**sizes, window=window, n_slots=FIRST_SLOTS)
    if not growing:
        return KVCache(**sizes, length=length)
    cache = GrowingKVCache(**sizes, length=min(length, FIRST_SLOTS))
    cache.max_length = length
    return cache


def _window(module: LanguageModel) -> int | None:
    """The window of positions that every layer sees, None where layers differ or see everything."""
    if isinstance(module, Decoder) and len(set(module.config.windows)) == 1:
        return module.config.windows[0]
    return None


AnyCache = TypeVar("AnyCache", bound=Cache)


def rows_of(cache: AnyCache, start: int, stop: int) -> AnyCache:
    """A cache that is rows start … stop−1 of `cache`, in the same memory."""
    part = copy.copy(cache)
    part.keys, part.values = cache.keys[:, start:stop], cache.values[:, start:stop]
    if isinstance(part, RollingCache):
        part.held = part.held[start:stop]
    return part


def grown(buffer: Tensor, n_slots: int, max_length: int) -> Tensor:
    """`buffer` (..., S, d) if it has `n_slots` slots, else a copy with twice as many, or as many as it takes."""
    held = buffer.shape[-2]
    if n_slots <= held:
        return buffer
    if n_slots > max_length:
        raise ValueError(f"{n_slots} slots of keys and values are asked for, at most {max_length} are allowed")
    wider = buffer.new_zeros(*buffer.shape[:-2], min(max(n_slots, 2 * held), max_length), buffer.shape[-1])
    wider[..., :held, :] = buffer
    return wider


def move_rows(buffer: Tensor, order: Sequence[int], n_slots: int) -> None:
    """Row i of `buffer` (N, B, G, S, d) becomes what row order[i] was, in its first `n_slots` slots, in place.

    Only rows that change are copied; a row may go to several places.
    """
    moved = [(to, source) for to, source in enumerate(order) if to != source]
    if moved:
        to, sources = torch.tensor(moved, device=buffer.device).unbind(1)
        buffer[:, to, :, :n_slots] = buffer[:, sources, :, :n_slots]
