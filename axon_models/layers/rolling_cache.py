"""Keys and values of the last positions alone, for models whose every layer has the same window."""
# B batch, T time of queries, S slots, W window, K keys, H heads, G kv groups, d head dimension, L layers

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from axon_models.layers.attend import Attend, as_bias, banded, both_seen, causal, masked


class RollingCache:
    """A token at position p stands in slot p mod W (Jiang et al. 2023, "Mistral 7B", section 2, rolling buffer).

    A prompt may come in chunks of any length: tokens see one another and what is kept, as the window says, so no mask
    is needed in any call. A mask (B, 1, T, S), where one is given, is over positions 0 … S−1, as with the `KVCache`.
    Rows may stand at different positions. A token at position −1 is padding: it is neither kept nor seen. A row that
    is given positions that it already has goes on from the first of them, with what is still kept of those before.

    n_slots: how many there are at first (default: the window); `reserve` makes them more, before positions need them.
    """

    def __init__(
        self,
        *,
        n_layers: int,
        batch: int,
        window: int,
        kv_heads: int,
        head_dim: int,
        n_slots: int | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        self.window = window
        self.n_slots = window if n_slots is None else min(n_slots, window)
        # What is not kept is written too, into one more slot: rows of one call differ in how much they keep.
        shape = (n_layers, batch, kv_heads, self.n_slots + 1, head_dim)
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros(shape, dtype=dtype, device=device)
        self.held = torch.full((batch, self.n_slots + 1), -1, device=device)  # the position in each slot; −1: none

    def reserve(self, n_positions: int) -> None:
        """Have slots for positions 0 … n_positions−1, or for a whole window; what is stored stays."""
        wanted, n = min(n_positions, self.window), self.n_slots
        if wanted <= n:
            return
        self.n_slots = min(max(wanted, 2 * n), self.window)
        more = self.n_slots - n
        # The slot of what is not kept becomes one like the others; nothing that it holds is ever seen.
        self.keys, self.values = (
            torch.cat([x, x.new_zeros(*x.shape[:3], more, x.shape[4])], dim=3) for x in (self.keys, self.values)
        )
        self.held = torch.cat([self.held, self.held.new_full((len(self.held), more), -1)], dim=1)

    def clear(self) -> None:
        """Forget everything, also what was no number: a weight of 0 times that would be none either."""
        self.keys.zero_()
        self.values.zero_()
        self.held.fill_(-1)

    def keep_rows(self, rows: Tensor) -> None:
        """Drop all rows but `rows` (n,) int64, in that order."""
        self.keys, self.values = self.keys.index_select(1, rows), self.values.index_select(1, rows)
        self.held = self.held.index_select(0, rows)

    def attends(self, positions: Tensor | None, mask: Tensor | None, n_tokens: int) -> list[Attend]:
        """One `Attend` a layer, for T = n_tokens at `positions` (B, T), 0 … T−1 if None; they are stored on the way."""
        begins = positions is None and mask is None
        if positions is None:
            positions = torch.arange(n_tokens, device=self.held.device).expand(len(self.held), -1)
        real = positions >= 0  # (B, T)
        start = torch.where(real, positions, torch.iinfo(torch.int64).max).amin(1, keepdim=True)  # (B, 1)
        before = torch.where(self.held < start, self.held, -1)  # (B, S+1)
        kept = real & (positions > positions.amax(1, keepdim=True) - self.window)
        slots = torch.where(kept, positions % self.window, self.n_slots)  # (B, T)
        after = before.scatter(1, slots, torch.where(kept, positions, -1))
        self.held.copy_(after)
        look: _Look
        if begins:  # nothing is kept that these could see
            look = partial(_see_one_another, causal if n_tokens <= self.window else partial(banded, window=self.window))
        elif n_tokens == 1:  # takes the slot of what it does not see any more
            look = partial(_see_kept, self._bias(after, positions, mask))
        else:
            look = partial(_see_both, self._bias(torch.cat([before, positions], dim=1), positions, mask))
        return [partial(look, _Slots(k, v, slots)) for k, v in zip(self.keys, self.values, strict=True)]

    def _bias(self, places: Tensor, positions: Tensor, mask: Tensor | None) -> Tensor:
        """How tokens at `positions` (B, T) see keys that stand at `places` (B, K), −1 for none: (B, 1, T, K)."""
        keys, queries = places[:, None, None], positions[:, None, :, None]  # (B, 1, 1, K), (B, 1, T, 1)
        seen = (keys >= 0) & (keys <= queries) & (keys > queries - self.window)
        return as_bias(seen if mask is None else both_seen(_at(mask, keys.expand(seen.shape)), seen))


def _at(mask: Tensor, places: Tensor) -> Tensor:
    """A mask over positions (B or 1, 1, T, S) as one over keys that stand at `places` (B, 1, T, K), −1 for none."""
    mask = mask.expand(places.shape[0], -1, places.shape[2], -1)
    return mask.gather(3, places.clamp(0, mask.shape[3] - 1))


class _Slots:
    """The slots of one layer, and those that the tokens of a call take."""

    def __init__(self, keys: Tensor, values: Tensor, slots: Tensor) -> None:
        self._keys, self._values, self._slots = keys, values, slots  # (B, G, S+1, d) twice, (B, T)

    def held(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Keys and values (B, S+1, G, d)."""
        return self._keys.transpose(1, 2).to(dtype), self._values.transpose(1, 2).to(dtype)

    def store(self, k: Tensor, v: Tensor) -> None:
        """Put k and v (B, T, G, d) into their slots."""
        slots = self._slots[:, None, :, None].expand(-1, k.shape[2], -1, k.shape[3])  # (B, G, T, d)
        self._keys.scatter_(2, slots, k.transpose(1, 2).to(self._keys.dtype))
        self._values.scatter_(2, slots, v.transpose(1, 2).to(self._values.dtype))


_Look = Callable[[_Slots, Tensor, Tensor, Tensor], Tensor]


def _see_one_another(attend: Attend, slots: _Slots, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    slots.store(k, v)
    return attend(q, k, v)


def _see_kept(bias: Tensor, slots: _Slots, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    slots.store(k, v)
    return masked(q, *slots.held(q.dtype), bias)


def _see_both(bias: Tensor, slots: _Slots, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    keys, values = (torch.cat(pair, dim=1) for pair in zip(slots.held(q.dtype), (k, v), strict=True))
    slots.store(k, v)
    return masked(q, keys, values, bias)
