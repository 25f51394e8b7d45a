"""Short examples packed into rows of one length, each blind to the others in its row.

Packed rows train as the same examples would in rows of their own: positions restart at every example and attention
is block-diagonal (Krell et al. 2021, "Efficient Sequence Packing without Cross-contamination").
"""

# B rows, T places of a row

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tasks.errors import UserError
from tasks.steps.context import StepContext
from tasks.tokenizers.chat import PAD
from tasks.training.batches import Batch
from tasks.training.examples import Example, pack
from tasks.training.sampling import rows_of_batch, seed_of
from tasks.training.tokens import demonstrations


def packed_batch(rows: Sequence[Sequence[Example]], *, seq_len: int, pad_id: int, device: torch.device) -> Batch:
    """The tensors of packed rows.

    tokens, targets, positions (B, T) int64; weights (B, T) float32, 1 where the target belongs to an answer;
    segments (B, T) int64, the number of the example in its row, −1 at padding.
    """
    shape = (len(rows), seq_len)
    tokens = torch.full(shape, pad_id, dtype=torch.int64)  # (B, T)
    targets = torch.full(shape, pad_id, dtype=torch.int64)  # (B, T)
    positions = torch.zeros(shape, dtype=torch.int64)  # (B, T)
    weights = torch.zeros(shape, dtype=torch.float32)  # (B, T)
    segments = torch.full(shape, -1, dtype=torch.int64)  # (B, T)
    n_targets = n_tokens = 0
    for b, row in enumerate(rows):
        start = 0
        for segment, example in enumerate(row):
            n = len(example.tokens) - 1
            place = slice(start, start + n)
            both = torch.tensor(example.tokens, dtype=torch.int64)  # (n+1,)
            tokens[b, place], targets[b, place] = both[:-1], both[1:]
            positions[b, place] = torch.arange(n)
            segments[b, place] = segment
            # The target of place t is token t+1, so the first answer token is the target of prompt_length−1.
            weights[b, start + example.prompt_length - 1 : start + n] = 1.0
            n_targets += n - example.prompt_length + 1
            n_tokens += n
            start += n
    tensors = {
        "tokens": tokens,
        "targets": targets,
        "positions": positions,
        "weights": weights,
        "segments": segments,
    }
    return Batch(tensors={name: t.to(device) for name, t in tensors.items()}, n_targets=n_targets, n_tokens=n_tokens)


def block_causal_mask(segments: Tensor) -> Tensor:
    """(B, T) segment numbers -> (B, 1, T, T) bool: True where place t may look at place s.

    Causal, and within one segment. Padding is a segment too, so that no row of the softmax is empty.
    """
    same = segments[:, :, None] == segments[:, None, :]  # (B, T, T)
    return same.tril()[:, None]  # (B, 1, T, T)


@dataclass(frozen=True, kw_only=True)
class PackedData:
    """The demonstrations of a split in packed rows, from which batch k is a function of (seed, k)."""

    rows: list[list[Example]]
    n_tokens: list[int]  # of each row, padding aside
    n_too_long: int
    seq_len: int
    batch_size: int
    seed: int

    @classmethod
    def of(cls, examples: Sequence[Example], *, seq_len: int, batch_size: int, seed: int) -> PackedData:
        rows, n_too_long = pack(examples, seq_len=seq_len, seed=seed)
        if not rows:
            raise UserError(
                f"none of {len(examples)} demonstrations fits rows of {seq_len} tokens; "
                "add demonstrations to data or raise sft.seq_len in params.yaml",
                exit_code=1,
            )
        n_tokens = [sum(len(example.tokens) - 1 for example in row) for row in rows]
        return cls(
            rows=rows,
            n_tokens=n_tokens,
            n_too_long=n_too_long,
            seq_len=seq_len,
            batch_size=batch_size,
            seed=seed,
        )

    @property
    def n_batches(self) -> int:
        """Batches in one epoch, the last of which may reach into the next."""
        return -(-len(self.rows) // self.batch_size)

    def rows_of(self, k: int) -> list[int]:
        found = rows_of_batch(k, n_rows=len(self.rows), batch_size=self.batch_size, seed=self.seed)
        return [int(row) for row in found]

    def batch(self, k: int, device: torch.device) -> Batch:
        rows = [self.rows[row] for row in self.rows_of(k)]
        return packed_batch(rows, seq_len=self.seq_len, pad_id=PAD, device=device)


def packed_demonstrations(context: StepContext, split: str, *, seed_name: str, batch_size: int) -> PackedData:
    """The demonstrations of `split` in rows of `sft.seq_len`, sampled by a seed of the stage's own."""
    return PackedData.of(
        demonstrations(context.root, split),
        seq_len=context.params.sft.seq_len,
        batch_size=batch_size,
        seed=seed_of(context.params.seed, seed_name),
    )
