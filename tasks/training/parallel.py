"""Data-parallel training: each worker computes its part of a step's rows, and gradients are summed over all of them.

A step is the same for any number of workers: the same rows, each loss divided by the targets of the whole step. Only
the order of floating-point additions differs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from axon_models.decoder.model import Block
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


class Sharded(nn.Module):
    """An objective whose model has its blocks in parts, one a worker, with their gradients and optimiser state.

    FSDP2 (Zhao et al. 2023, "PyTorch FSDP") puts a block together where it is needed. What is outside of blocks, the
    embedding and the final norm, is whole on every worker, and its gradients are averaged by `average`.
    """

    def __init__(self, objective: Objective) -> None:
        from torch.distributed.fsdp import fully_shard  # a second that one worker does not spend

        super().__init__()
        self.objective = objective
        self._blocks = [fully_shard(m) for m in objective.modules() if isinstance(m, Block) and _is_trained(m)]

    def forward(self, rows: dict[str, Tensor]) -> Tensor:
        return self.objective(rows)

    @contextmanager
    def no_sync(self) -> Iterator[None]:
        """Gradients of micro-batches are summed before they are exchanged."""
        for block in self._blocks:
            block.set_requires_gradient_sync(False)
        yield
        for block in self._blocks:
            block.set_requires_gradient_sync(True)

    def average(self) -> None:
        """Average the gradients that FSDP does not know of."""
        for p in self.parameters():
            if p.grad is not None and not is_part(p):
                dist.all_reduce(p.grad)
                p.grad /= dist.get_world_size()

    def put_together(self) -> None:
        """Have the whole model on every worker from here on."""
        for block in self._blocks:
            block.set_reshard_after_forward(False)
            block.unshard()


def _is_trained(module: nn.Module) -> bool:
    return all(p.requires_grad for p in module.parameters())


def spread(objective: Objective, world: World, *, shard: bool = False) -> nn.Module:
    """The objective with gradients averaged over all workers (Li et al. 2020, "PyTorch Distributed"); see `Sharded`."""
    if world.size == 1:
        return objective
    if shard:
        return Sharded(objective)
    return DistributedDataParallel(objective, broadcast_buffers=False, gradient_as_bucket_view=True)


def clip(objective: nn.Module, max_norm: float) -> float:
    """Scale all gradients so that their norm is at most `max_norm`; returns the norm before."""
    if not isinstance(objective, Sharded):
        return nn.utils.clip_grad_norm_(objective.parameters(), max_norm).item()
    gradients: list[Any] = [p.grad for p in objective.parameters() if p.grad is not None]
    parts = [g.to_local() for g in gradients if is_part(g)]
    squares = torch.stack([part.double().square().sum() for part in parts]).sum()
    dist.all_reduce(squares)
    squares += sum(g.double().square().sum() for g in gradients if not is_part(g))
    norm = squares.sqrt().item()
    for gradient in gradients:
        gradient.mul_(min(1.0, max_norm / (norm + 1e-6)))
    return norm


def is_part(tensor: Tensor) -> bool:
    """Whether this worker has but a part of it: a `DTensor`, which only `Sharded` makes."""
    return hasattr(tensor, "full_tensor")


def whole(tensor: Any) -> Tensor:
    """The tensor of which this worker may have a part; every worker has to ask."""
    return tensor.full_tensor() if is_part(tensor) else tensor


def part_like(tensor: Tensor, like: Any) -> Tensor:
    """This worker's part of a whole `tensor`, in parts as `like` is."""
    if not is_part(like):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
