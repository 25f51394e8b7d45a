"""Data-parallel training: each worker computes its part of a step's rows, and gradients are summed over all of them.

A step is the same for any number of workers: the same rows, each loss divided by the targets of the whole step. Only
the order of floating-point additions differs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from tasks.training.batches import Batch


@dataclass(frozen=True)
class World:
    """This process among the `size` workers of a stage. One worker alone needs no process group.

    node_rank: its number among those on its node, where nodes have a folder of checkpoints each; None: all share one.
    """

    rank: int = 0
    size: int = 1
    node_rank: int | None = None

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    @property
    def is_keeper(self) -> bool:
        """Whether it is the one that makes and removes folders of checkpoints where it is."""
        return (self.rank if self.node_rank is None else self.node_rank) == 0

    def total(self, values: Sequence[float]) -> list[float]:
        """The sum of each value over all workers, the same on every worker; a barrier too."""
        if self.size == 1:
            return list(values)
        summed = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(summed)
        return list(summed.tolist())

    def gather(self, own: bytes) -> list[bytes]:
        """The bytes of every worker, by rank; all of one length. Torch's own gathering of objects pickles them."""
        if self.size == 1:
            return [own]
        tensor = torch.frombuffer(bytearray(own), dtype=torch.uint8)
        every = [torch.empty_like(tensor) for _ in range(self.size)]
        dist.all_gather(every, tensor)
        return [bytes(t.tolist()) for t in every]

    def part(self, rows: Batch, accumulation: int) -> list[tuple[dict[str, Tensor], float]]:
        """This worker's micro-batches of `rows`, each with its weight; `accumulation` of them over all workers.

        A worker for which no row is left gets the first one with weight 0: it still has to take part in the sum.
        """
        parts = rows.split(-(-accumulation // self.size) * self.size)
        first, last = (round(i * len(parts) / self.size) for i in (self.rank, self.rank + 1))
        own = [(part, 1.0) for part in parts[first:last]]
        return own or [({name: tensor[:1] for name, tensor in rows.tensors.items()}, 0.0)]


class Objective(nn.Module):
    """A model and its batch loss as one module, since `forward` is where torch's wrappers hook in."""

    def __init__(self, model: nn.Module, loss: Callable[[Any, dict[str, Tensor]], Tensor]) -> None:
        super().__init__()
        self.model, self.loss = model, loss

    def forward(self, rows: dict[str, Tensor]) -> Tensor:
        return self.loss(self.model, rows)


def spread(objective: Objective, world: World) -> nn.Module:
    """The objective with gradients averaged over all workers (Li et al. 2020, "PyTorch Distributed")."""
    if world.size == 1:
        return objective
    return DistributedDataParallel(objective, broadcast_buffers=False, gradient_as_bucket_view=True)
