"""Data-parallel training: each worker computes its part of a step's rows, and gradients are summed over all of them.

A step is the same for any number of workers: the same rows, each loss divided by the targets of the whole step. Only
the order of floating-point additions differs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from axon_models.layers.block import ModelBlock
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

    def add_up(self, tensors: Iterable[Tensor]) -> None:
        """Sum each tensor over all workers, in place."""
        if self.size > 1:
            for tensor in tensors:
                dist.all_reduce(tensor)

    def rows(self, n: int) -> range:
        """Those of `n` rows that are this worker's; none where there are more workers than rows."""
        return range(*(round(i * n / self.size) for i in (self.rank, self.rank + 1)))

    def gather(self, own: bytes) -> list[bytes]:
        """The bytes of every worker, by rank; all of one length. Torch's own gathering of objects pickles them."""
        if self.size == 1:
            return [own]
        tensor = torch.frombuffer(bytearray(own), dtype=torch.uint8)
        every = [torch.empty_like(tensor) for _ in range(self.size)]
        dist.all_gather(every, tensor)
        return [bytes(t.tolist()) for t in every]

    def broadcast(self, tensor: Tensor, source: int) -> Tensor:
        """`tensor` as worker `source` has it."""
        if self.size > 1:
            dist.broadcast(tensor, source)
        return tensor

    def gather_text(self, own: str) -> list[str]:
        """The text of every worker, by rank."""
        content = own.encode()
        lengths = [int.from_bytes(length, "big") for length in self.gather(len(content).to_bytes(8, "big"))]
        padded = self.gather(content.ljust(max(lengths)))
        return [text[:length].decode() for text, length in zip(padded, lengths, strict=True)]

    def part(self, rows: Batch, accumulation: int) -> list[tuple[dict[str, Tensor], float]]:
        """This worker's micro-batches of `rows`, each with its weight; `accumulation` of them over all workers.

        A worker for which no row is left gets the first one with weight 0: it still has to take part in the sum.
        """
        parts = rows.split(-(-accumulation // self.size) * self.size)
        own = [(parts[i], 1.0) for i in self.rows(len(parts))]
        return own or [({name: tensor[:1] for name, tensor in rows.tensors.items()}, 0.0)]


ALONE = World()


class Objective(nn.Module):
    """A model and its batch loss as one module, since `forward` is where torch's wrappers hook in."""

    def __init__(self, model: nn.Module, loss: Callable[[Any, dict[str, Tensor]], Tensor]) -> None:
        super().__init__()
        self.model, self.loss = model, loss

    def forward(self, rows: dict[str, Tensor]) -> Tensor:
        return self.loss(self.model, rows)


class Partitioned(nn.Module, ABC):
    """An objective whose model has its blocks in parts over the workers, and the rest whole on each of them."""

    def __init__(self, objective: Objective) -> None:
        super().__init__()
        self.objective = objective

    @abstractmethod
    def exchange(self) -> None:
        """After `backward`: make the gradients of what is whole those of all workers' work."""

    @abstractmethod
    def put_together(self) -> None:
        """Have the whole model on every worker from here on."""

    @abstractmethod
    def gradients(self) -> tuple[list[Tensor], list[Tensor]]:
        """This worker's gradients of what is in parts, and those of what is whole."""

    def clip(self, max_norm: float) -> float:
        """Scale all gradients so that their norm is at most `max_norm`; returns the norm before."""
        parts, wholes = self.gradients()
        squares = torch.zeros((), dtype=torch.float64)
        for part in parts:
            squares += part.double().square().sum().cpu()
        dist.all_reduce(squares)
        for gradient in wholes:
            squares += gradient.double().square().sum().cpu()
        norm = squares.sqrt().item()
        for gradient in (*parts, *wholes):
            gradient.mul_(min(1.0, max_norm / (norm + 1e-6)))
        return norm


class Sharded(Partitioned):
    """Every block in shards, one a worker, with their gradients and optimiser state; each worker has rows of its own.

    FSDP2 (Zhao et al. 2023, "PyTorch FSDP") puts a block together where it is needed.
    """

    def __init__(self, objective: Objective) -> None:
        from torch.distributed.fsdp import fully_shard  # a second that one worker does not spend

        super().__init__(objective)
        blocks = [m for m in objective.modules() if isinstance(m, ModelBlock) and _is_trained(m)]
        # Left to itself FSDP keeps a block together after an evaluation, and the optimiser's state is not found.
        self._blocks = [fully_shard(block, reshard_after_forward=True) for block in blocks]

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

    def exchange(self) -> None:
        for gradient in self.gradients()[1]:
            dist.all_reduce(gradient)
            gradient /= dist.get_world_size()

    def gradients(self) -> tuple[list[Tensor], list[Tensor]]:
        every: list[Any] = [p.grad for p in self.parameters() if p.grad is not None]
        return [g.to_local() for g in every if is_part(g)], [g for g in every if not is_part(g)]

    def put_together(self) -> None:
        for block in self._blocks:
            block.set_reshard_after_forward(False)
            block.unshard()


def _is_trained(module: nn.Module) -> bool:
    return all(p.requires_grad for p in module.parameters())


def clip(objective: nn.Module, max_norm: float) -> float:
    """Scale all gradients so that their norm is at most `max_norm`; returns the norm before."""
    if isinstance(objective, Partitioned):
        return objective.clip(max_norm)
    return nn.utils.clip_grad_norm_(objective.parameters(), max_norm).item()


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
