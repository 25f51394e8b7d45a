"""Keys and values of the last positions alone, for models whose every layer has the same window."""
# B batch, T time of queries, W window, H heads, G kv groups, d head dimension, L layers

from __future__ import annotations

import torch
from torch import Tensor

from axon_models.layers.attend import Attend, as_bias, both_seen, masked


class RollingCache:
    """A token at position p stands in slot p mod W (Jiang et al. 2023, "Mistral 7B", section 2, rolling buffer).

    A prompt may come in chunks of any length: tokens see one another and what is kept, as the window says, so no mask
    is needed in any call. A mask (B, 1, T, S), where one is given, is over positions 0 … S−1, as with the `KVCache`.
    Rows may stand at different positions. A token at position −1 is padding: it is neither kept nor seen. A row that
    is given positions that it already has goes on from the first of them.
    """

    def __init__(
        self,
        *,
        n_layers: int,
        batch: int,
        window: int,
        kv_heads: int,
        head_dim: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        # What is not kept is written too, into one more slot: rows of one call differ in how much they keep.
        shape = (n_layers, batch, kv_heads, window + 1, head_dim)
        self.window = window
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros(shape, dtype=dtype, device=device)
        self.held = torch.full((batch, window + 1), -1, device=device)  # the position in each slot; −1: none

    def keep_rows(self, rows: Tensor) -> None:
        """Drop all rows but `rows` (n,) int64, in that order."""
        self.keys, self.values = self.keys.index_select(1, rows), self.values.index_select(1, rows)
        self.held = self.held.index_select(0, rows)

    def attends(self, positions: Tensor | None, mask: Tensor | None, n_tokens: int) -> list[Attend]:
        """One `Attend` a layer, for T = n_tokens at `positions` (B, T), 0 … T−1 if None; they are stored on the way."""
        if positions is None:
            positions = torch.arange(n_tokens, device=self.held.device).expand(len(self.held), -1)
        real = positions >= 0  # (B, T)
        start = torch.where(real, positions, torch.iinfo(torch.int64).max).amin(1, keepdim=True)  # (B, 1)
        held = torch.where(self.held < start, self.held, -1)  # (B, W+1)
        places = torch.cat([held, positions], dim=1)[:, None, None]  # (B, 1, 1, W+1+T)
        queries = positions[:, None, :, None]  # (B, 1, T, 1)
        seen = (places >= 0) & (places <= queries) & (places > queries - self.window)  # (B, 1, T, W+1+T)
        bias = as_bias(seen if mask is None else both_seen(_at(mask, places.expand(seen.shape)), seen))
        kept = real & (positions > positions.amax(1, keepdim=True) - self.window)
        slots = torch.where(kept, positions % self.window, self.window)  # (B, T)
        self.held.copy_(held.scatter(1, slots, torch.where(kept, positions, -1)))
        return [_RollingLayer(keys, values, slots, bias) for keys, values in zip(self.keys, self.values, strict=True)]


def _at(mask: Tensor, places: Tensor) -> Tensor:
    """A mask over positions (B or 1, 1, T, S) as one over keys that stand at `places` (B, 1, T, K), −1 for none."""
    mask = mask.expand(places.shape[0], -1, places.shape[2], -1)
    return mask.gather(3, places.clamp(0, mask.shape[3] - 1))


class _RollingLayer:
    def __init__(self, keys: Tensor, values: Tensor, slots: Tensor, bias: Tensor) -> None:
        self.keys, self.values, self.slots, self.bias = keys, values, slots, bias  # (B, G, W+1, d) twice

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        keys, values = (  # (B, W+1+T, G, d) twice
            torch.cat([old.transpose(1, 2).to(new.dtype), new], dim=1)
            for old, new in ((self.keys, k), (self.values, v))
        )
        slots = self.slots[:, None, :, None].expand(-1, k.shape[2], -1, k.shape[3])  # (B, G, T, d)
        self.keys.scatter_(2, slots, k.transpose(1, 2).to(self.keys.dtype))
        self.values.scatter_(2, slots, v.transpose(1, 2).to(self.values.dtype))
        return masked(q, keys, values, self.bias)
