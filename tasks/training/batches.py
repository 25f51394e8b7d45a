"""The tensors of an optimiser step."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tasks.errors import UserError
from tasks.training.sampling import rows_of_batch, seed_of


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
