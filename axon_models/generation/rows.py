"""The rows that are being written, with their keys and values: pre-fill prompts, add a token to each, drop some.

`ModuleRows` asks the model's own modules and works for every language model. `prepared.py` has the same for decoders
on a processor, with everything prepared for single tokens; `rows_for` chooses, once.
"""
# B rows, T time, S slots, D model, V vocabulary

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from axon_models.generation.caches import GrowingKVCache, move_rows, new_cache, rows_of
from axon_models.generation.prepared import can_prepare
from axon_models.generation.prepared_rows import PreparedRows
from axon_models.generation.products import DTYPES
from axon_models.layers.language_model import LanguageModel
from axon_models.layers.rolling_cache import RollingCache


class Rows(Protocol):
    """Rows 0 … B−1 that are being written; each stands at its own position."""

    def add(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """Pre-fill each prompt as a further row; the logits after each, (number of prompts, V)."""
        ...

    def keep(self, order: Sequence[int]) -> None:
        """Row i becomes what row order[i] was; a row may be dropped or doubled."""
        ...

    def step(self, tokens: Tensor) -> Tensor:
        """Write one token (B,) int64 to each row; the logits after them, (B, V)."""
        ...


def rows_for(
    module: LanguageModel,
    *,
    n_rows: int,
    length: int,
    chunk: int,
    growing: bool = True,
    prepare: bool = True,
    dtype: torch.dtype | None = None,
) -> Rows:
    """Rows of a decoder: at most `n_rows` of up to `length` tokens, pre-filled at most `chunk` tokens at a time.

    `growing` buffers take memory for what is written, or for the window where the decoder sees no more, others for
    `length` from the start. `prepare`: bring the weights into the layout of `prepared.py` where that knows the decoder;
    they must not change afterwards. dtype: that weights are rounded to, float32 or bfloat16 (default: their own); where
    `prepared.py` does not know the decoder, a rounded copy of it is made. Raises `ValueError` for another type.
    """
    own = module.embedding.weight.dtype
    if dtype not in (None, *DTYPES):
        raise ValueError(f"dtype={dtype} must be torch.float32 or torch.bfloat16, or None for that of the weights")
    if prepare and can_prepare(module):
        return PreparedRows(module, n_rows=n_rows, length=length, chunk=chunk, growing=growing, dtype=dtype or own)
    module = module if dtype in (None, own) else copy.deepcopy(module).to(dtype)
    return ModuleRows(module, n_rows=n_rows, length=length, chunk=chunk, growing=growing)


class ModuleRows:
    """`Rows` by the modules of any decoder."""

    def __init__(self, module: LanguageModel, *, n_rows: int, length: int, chunk: int, growing: bool = True) -> None:
        self._module, self._chunk = module, chunk
        self._cache = new_cache(module, n_rows, length, growing=growing)
        self._slots = torch.arange(length, device=module.embedding.weight.device)  # (S,)
        self._lengths: list[int] = []

    def add(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """As `Rows.add`; prompt by prompt, without padding."""
        return torch.cat([self._fill(prompt) for prompt in prompts])

    def _fill(self, prompt: Sequence[int]) -> Tensor:
        """The logits (1, V) after a prompt that becomes a further row."""
        row = len(self._lengths)
        self._reserve(len(prompt))
        for start in range(0, len(prompt), self._chunk):
            positions = self._slots[start : start + self._chunk][: len(prompt) - start].unsqueeze(0)  # (1, T)
            tokens = torch.tensor([prompt[start : start + self._chunk]], device=positions.device)  # (1, T)
            hidden = self._hidden(tokens, positions, row, start + tokens.shape[1], is_first=start == 0)
        self._lengths.append(len(prompt))
        return F.linear(hidden[:, -1], self._module.output_weight)

    def keep(self, order: Sequence[int]) -> None:
        """As `Rows.keep`."""
        n_slots = max(self._lengths, default=0)
        if isinstance(self._cache, RollingCache):
            self._cache.held[: len(order)] = self._cache.held[list(order)]
            n_slots = self._cache.n_slots
        move_rows(self._cache.keys, order, n_slots)
        move_rows(self._cache.values, order, n_slots)
        self._lengths = [self._lengths[row] for row in order]

    def step(self, tokens: Tensor) -> Tensor:
        """As `Rows.step`."""
        n_slots = max(self._lengths) + 1
        self._reserve(n_slots)
        positions = torch.tensor(self._lengths, device=tokens.device).unsqueeze(1)  # (B, 1)
        hidden = self._hidden(tokens.unsqueeze(1), positions, 0, n_slots)  # (B, 1, D)
        self._lengths = [length + 1 for length in self._lengths]
        return F.linear(hidden.squeeze(1), self._module.output_weight)

    def _hidden(self, tokens: Tensor, positions: Tensor, row: int, n_slots: int, *, is_first: bool = False) -> Tensor:
        """The states (B, T, D) of `tokens` at `positions` (B, T), of the rows from `row` on, below position `n_slots`.

        is_first: these are positions 0 … T−1.
        """
        cache = rows_of(self._cache, row, row + len(tokens))
        if is_first:
            if isinstance(cache, RollingCache):
                cache.clear()
            return self._module.hidden(tokens, cache=cache)
        if isinstance(cache, RollingCache):
            return self._module.hidden(tokens, positions=positions, cache=cache)
        mask = (self._slots[:n_slots] <= positions.unsqueeze(2)).unsqueeze(1)  # (B, 1, T, S)
        return self._module.hidden(tokens, positions=positions, mask=mask, cache=cache)

    def _reserve(self, n_slots: int) -> None:
        if isinstance(self._cache, (GrowingKVCache, RollingCache)):
            self._cache.reserve(n_slots)
