"""Stateless sampling: which rows are in batch k is a function of (seed, k), so a resumed run needs no position.

Rows are taken by epoch: each epoch is a permutation of all rows, so that none comes twice before all came once.
Nothing here imports torch: what only asks which rows were taken need not wait for it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from tasks.errors import UserError


def seed_of(*parts: int | str | bytes) -> int:
    """A 63-bit seed from all of `parts`, the same in every process."""
    text = "\x00".join(p.hex() if isinstance(p, bytes) else str(p) for p in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


@lru_cache(maxsize=4)
def permutation(n_rows: int, seed: int, epoch: int) -> NDArray[np.int64]:
    order = np.random.Generator(np.random.PCG64(seed_of(seed, "epoch", epoch))).permutation(n_rows)
    order.flags.writeable = False
    return order


def rows_of_batch(k: int, *, n_rows: int, batch_size: int, seed: int) -> NDArray[np.int64]:
    """The (batch_size,) row numbers of batch `k`; a batch may span the end of one epoch and the next one's start."""
    if n_rows == 0:
        raise UserError("there are no rows to sample a batch from", exit_code=1)
    places = np.arange(k * batch_size, (k + 1) * batch_size)
    return np.array([permutation(n_rows, seed, int(i // n_rows))[i % n_rows] for i in places], dtype=np.int64)


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
        order = permutation(len(self._lengths), self._seed, epoch).tolist()
        width = self._batch_size * self._WINDOW
        by_length: list[int] = []
        for start in range(0, len(order), width):
            by_length += sorted(order[start : start + width], key=lambda row: self._lengths[row])
        batches = [by_length[i : i + self._batch_size] for i in range(0, len(by_length), self._batch_size)]
        return [batches[i] for i in permutation(len(batches), seed_of(self._seed, "order"), epoch)]
