"""Keys and values of earlier calls, kept in buffers of a fixed size."""
# B batch, T time of queries, S slots, H heads, G kv groups, d head dimension, L layers

from __future__ import annotations

import torch
from torch import Tensor

from axon_models.layers.attend import Attend, as_bias, causal, masked


class KVCache:
    """Static buffers (L, B, G, S, d) for keys and for values; slot s of a row holds the token at position s."""

    def __init__(
        self,
        *,
        n_layers: int,
        batch: int,
        length: int,
        kv_heads: int,
        head_dim: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        shape = (n_layers, batch, kv_heads, length, head_dim)
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros(shape, dtype=dtype, device=device)
        # What a layer makes of its weights alone and needs in every call; all views of this cache have the same one.
        self.tables: dict[int, Tensor] = {}

    def keep_rows(self, rows: Tensor) -> None:
        """Drop all rows but `rows` (n,) int64, in that order."""
        self.keys, self.values = self.keys.index_select(1, rows), self.values.index_select(1, rows)

    def attends(self, positions: Tensor | None, mask: Tensor | None) -> list[Attend]:
        """One `Attend` a layer, for tokens at `positions` (B, T), or 0 … T−1 if None; they are stored on the way.

        With `mask` (B, 1, T, S) the first S slots are seen through it. Without, the new tokens see one another
        causally, which is right for the first call only.
        """
        bias = None if mask is None else as_bias(mask)
        return [_LayerCache(keys, values, positions, bias) for keys, values in zip(self.keys, self.values, strict=True)]


class _LayerCache:
    def __init__(self, keys: Tensor, values: Tensor, positions: Tensor | None, bias: Tensor | None) -> None:
        self.keys, self.values, self.positions, self.bias = keys, values, positions, bias  # (B, G, S, d) twice

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        store(self.keys, self.values, k, v, self.positions)
        if self.bias is None:
            return causal(q, k, v)
        n_slots = self.bias.shape[-1]
        keys, values = (x[:, :, :n_slots].transpose(1, 2).to(q.dtype) for x in (self.keys, self.values))  # (B, S, G, d)
        return masked(q, keys, values, self.bias)


def store(keys: Tensor, values: Tensor, k: Tensor, v: Tensor, positions: Tensor | None) -> None:
    """Put k and v (B, T, G, d) into the slots (B, G, S, d) of positions (B, T), or of 0 … T−1 if None."""
    k, v = k.transpose(1, 2).to(keys.dtype), v.transpose(1, 2).to(values.dtype)  # (B, G, T, d)
    if positions is None:
        keys[:, :, : k.shape[2]], values[:, :, : v.shape[2]] = k, v
        return
    slots = positions[:, None, :, None].expand_as(k)
    keys.scatter_(2, slots, k)
    values.scatter_(2, slots, v)
