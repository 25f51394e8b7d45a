"""Stateless sampling: which rows are in batch k is a function of (seed, k), so a resumed run needs no position.

Rows are taken by epoch: each epoch is a permutation of all rows, so that none comes twice before all came once.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tasks.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Batch:
    """The rows of one optimiser step.

    tensors: each with the rows first, so that a step can be cut into micro-batches.
    n_targets: what the summed loss is divided by: predicted tokens, prompts or pairs, over the whole step.
    n_tokens: tokens other than padding that go through the model.
    """

    tensors: dict[str, Tensor]
    n_targets: int
    n_tokens: int

    def split(self, n_parts: int) -> list[dict[str, Tensor]]:
        """Micro-batches of as equal a number of rows as can be; fewer than `n_parts` if there are fewer rows."""
        n_rows = len(next(iter(self.tensors.values())))
        bounds = [round(i * n_rows / n_parts) for i in range(n_parts + 1)]
        cuts = [(a, b) for a, b in itertools.pairwise(bounds) if b > a]
        return [{name: t[a:b] for name, t in self.tensors.items()} for a, b in cuts]


def seed_of(*parts: int | str | bytes) -> int:
    """A 63-bit seed from all of `parts`, the same in every process."""
    text = "\x00".join(p.hex() if isinstance(p, bytes) else str(p) for p in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


@lru_cache(maxsize=4)
def _permutation(n_rows: int, seed: int, epoch: int) -> NDArray[np.int64]:
    order = np.random.Generator(np.random.PCG64(seed_of(seed, "epoch", epoch))).permutation(n_rows)
    order.flags.writeable = False
    return order


def rows_of_batch(k: int, *, n_rows: int, batch_size: int, seed: int) -> NDArray[np.int64]:
    """The (batch_size,) row numbers of batch `k`; a batch may span the end of one epoch and the next one's start."""
    if n_rows == 0:
        raise UserError("there are no rows to sample a batch from", exit_code=1)
    places = np.arange(k * batch_size, (k + 1) * batch_size)
    return np.array([_permutation(n_rows, seed, int(i // n_rows))[i % n_rows] for i in places], dtype=np.int64)


def stream_batch(
    stream: NDArray[np.uint16], k: int, *, batch_size: int, seq_len: int, seed: int, device: torch.device
) -> Batch:
    """Batch `k` of a token stream: rows of `seq_len` inputs, and the same moved by one as targets.

    The stream is cut into blocks at another phase in every epoch, so that the cuts do not fall in the same
    places. Raises `UserError` when the stream is shorter than two blocks.
    """
    n_blocks = (len(stream) - 1) // seq_len - 1  # one fewer than fit, so that every phase has as many
    if n_blocks < 1:
        raise UserError(
            f"the training text has {len(stream)} tokens, too few for rows of {seq_len}; "
            "add text to data or lower pretrain.seq_len in params.yaml",
            exit_code=1,
        )
    blocks = rows_of_batch(k, n_rows=n_blocks, batch_size=batch_size, seed=seed)
    places = np.arange(k * batch_size, (k + 1) * batch_size)
    phases = [seed_of(seed, "phase", int(i // n_blocks)) % seq_len for i in places]
    starts = [phase + int(block) * seq_len for phase, block in zip(phases, blocks, strict=True)]
    rows = np.stack([stream[s : s + seq_len + 1] for s in starts]).astype(np.int64)  # (B, T+1)
    both = torch.from_numpy(rows).to(device)
    tensors = {"tokens": both[:, :-1].contiguous(), "targets": both[:, 1:].contiguous()}  # (B, T) each
    return Batch(tensors=tensors, n_targets=batch_size * seq_len, n_tokens=batch_size * seq_len)


def pad_rows(rows: list[list[int]], *, pad_id: int, multiple: int = 16) -> Tensor:
    """(B, T) int64: `rows` padded on the right to the longest of them, rounded up to `multiple`."""
    longest = max(len(row) for row in rows)
    width = -(-longest // multiple) * multiple
    out = torch.full((len(rows), width), pad_id, dtype=torch.int64)  # (B, T)
    for i, row in enumerate(rows):
        out[i, : len(row)] = torch.tensor(row, dtype=torch.int64)
    return out


class Buckets:
    """Batches of rows of about one length, so that little of a batch is padding.

    Every epoch is a permutation of the rows; within windows of some batches rows are sorted by length, cut into
    batches, and the batches are shuffled. Batch k remains a function of (seed, k).
    """

    _WINDOW = 8  # batches: wide enough to sort, narrow enough that neighbours in length still mix

    def __init__(self, lengths: Sequence[int], *, batch_size: int, seed: int) -> None:
        self._lengths, self._batch_size, self._seed = lengths, batch_size, seed
        self.n_batches = -(-len(lengths) // batch_size)
        self._epoch: tuple[int, list[list[int]]] = (-1, [])

    def rows(self, k: int) -> list[int]:
        """The row numbers of batch `k`; the smallest batch of an epoch has what is left over."""
        epoch, place = divmod(k, self.n_batches)
        if self._epoch[0] != epoch:
            self._epoch = (epoch, self._batches_of(epoch))
        return self._epoch[1][place]

    def _batches_of(self, epoch: int) -> list[list[int]]:
        order = _permutation(len(self._lengths), self._seed, epoch).tolist()
        width = self._batch_size * self._WINDOW
        by_length: list[int] = []
        for start in range(0, len(order), width):
            by_length += sorted(order[start : start + width], key=lambda row: self._lengths[row])
        batches = [by_length[i : i + self._batch_size] for i in range(0, len(by_length), self._batch_size)]
        return [batches[i] for i in _permutation(len(batches), seed_of(self._seed, "order"), epoch)]
