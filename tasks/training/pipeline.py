"""A decoder cut into parts of consecutive blocks, one a worker, through which micro-batches flow one behind another.

The schedule is GPipe's (Huang et al. 2019, "GPipe", section 2.3), by `torch.distributed.pipelining`. All workers have
all rows of a step; the embedding and the final norm are whole on each of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from axon_models.layers.language_model import LanguageModel
from tasks.training.batches import Batch
from tasks.training.device import autocast
from tasks.training.parallel import Objective, Partitioned, World


class _Asked(Exception):
    """What a loss asks the model for: its call of `hidden`."""

    def __init__(self, tokens: Tensor, positions: Tensor | None, mask: Tensor | None) -> None:
        super().__init__()
        self.tokens, self.positions, self.mask = tokens, positions, mask


class _Asking:
    def hidden(self, tokens: Tensor, *, positions: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        raise _Asked(tokens, positions, mask)

    def hidden_and_penalty(
        self, tokens: Tensor, *, counted: Tensor | None = None, **arguments: Tensor | None
    ) -> tuple[Tensor, None]:
        return self.hidden(tokens, **arguments), None


@dataclass(frozen=True)
class _Answering:
    """A model for a loss whose states are known already."""

    states: Tensor  # (B, T, D)
    output_weight: Tensor

    def hidden(self, _tokens: Tensor, **_: Any) -> Tensor:
        return self.states

    def hidden_and_penalty(self, _tokens: Tensor, **_: Any) -> tuple[Tensor, None]:
        return self.states, None  # models with a router are not trained in a pipeline


class Part(nn.Module):
    """The blocks of one worker; the first part embeds, the last one normalises."""

    def __init__(self, model: LanguageModel, world: World, precision: str) -> None:
        super().__init__()
        self.model, self._precision = model, precision
        n_blocks = len(model.blocks)
        first, last = (round(i * n_blocks / world.size) for i in (world.rank, world.rank + 1))
        self.blocks = slice(first, last)
        self.is_first, self.is_last = world.rank == 0, world.rank == world.size - 1

    def forward(self, x: Tensor, *, positions: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """Tokens (B, T) in the first part, else states (B, T, D), to states, in the last part those of `hidden`."""
        with autocast(x.device, self._precision):
            x = self.model.embed(x, positions) if self.is_first else x
            x = self.model.through(x, self.blocks, positions=positions, mask=mask)
            return self.model.before_output(self.model.norm(x)) if self.is_last else x


class Pipelined(Partitioned):
    """An objective whose loss asks its decoder for hidden states once, with the blocks of the decoder in parts.

    Blocks of other workers are on the meta device. `model.hidden` answers on all workers, without gradients.
    """

    def __init__(self, objective: Objective, world: World, precision: str) -> None:
        super().__init__(objective)
        self._world, self._precision = world, precision
        self._model: LanguageModel = objective.model  # type: ignore[assignment]
        self._device = self._model.embedding.weight.device
        self._part = Part(self._model, world, precision)
        self._own = set(range(*self._part.blocks.indices(len(self._model.blocks))))
        for i, block in enumerate(self._model.blocks):
            if i not in self._own:
                block.to("meta")
        # In place of the methods, for whoever evaluates.
        self._model.__dict__.update(hidden=self._hidden, hidden_and_penalty=self._hidden_and_penalty)
        self._schedules: dict[tuple[int, int, int], Any] = {}
        self._micro: list[dict[str, Tensor]] = []
        self._n_targets = 1

    def run(self, rows: Batch, accumulation: int) -> float:
        """Add the gradients of the mean loss of `rows` to this worker's parameters; the last returns it, others 0."""
        n_rows = len(next(iter(rows.tensors.values())))
        n_micro = _n_micro(n_rows, max(accumulation, self._world.size))
        self._micro, self._n_targets = rows.split(n_micro), rows.n_targets
        asked = self._ask(rows.tensors)
        schedule = self._schedule(n_micro, n_rows // n_micro, asked.tokens.shape[1])
        given = {"positions": asked.positions, "mask": asked.mask}
        given = {name: tensor for name, tensor in given.items() if tensor is not None}
        losses: list[Tensor] = []
        inputs = (asked.tokens,) if self._part.is_first else ()
        target = torch.arange(n_micro) if self._part.is_last else None
        schedule.step(*inputs, target=target, losses=losses, return_outputs=False, **given)
        return sum(loss.item() for loss in losses)

    def _ask(self, rows: dict[str, Tensor]) -> _Asked:
        try:
            self.objective.loss(_Asking(), rows)
        except _Asked as asked:
            return asked
        raise TypeError("this loss does not ask its model for hidden states")

    def _loss(self, states: Tensor, number: Tensor) -> Tensor:
        with autocast(self._device, self._precision):
            answering = _Answering(states, self._model.output_weight)
            return self.objective.loss(answering, self._micro[int(number)]) / self._n_targets

    def _schedule(self, n_micro: int, n_rows: int, length: int) -> Any:
        """The schedule of batches of this shape. Shapes are given: torch would exchange them in pickles."""
        from torch.distributed.pipelining import PipelineStage, ScheduleGPipe

        shape = (n_micro, n_rows, length)
        if shape not in self._schedules:
            tokens = torch.empty(n_rows, length, dtype=torch.int64, device="meta")
            states = torch.empty(n_rows, length, self._model.config.d_model, device="meta", requires_grad=True)
            stage = PipelineStage(
                self._part,
                self._world.rank,
                self._world.size,
                self._device,
                input_args=(tokens if self._part.is_first else states,),
                output_args=(self._hidden_states(tokens) if self._part.is_last else states,),
            )
            self._schedules[shape] = ScheduleGPipe(stage, n_micro, loss_fn=self._loss, scale_grads=False)
        return self._schedules[shape]

    @torch.no_grad()
    def _hidden(self, tokens: Tensor, *, positions: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """`LanguageModel.hidden`, each worker its part, the result on all of them."""
        rank, last = self._world.rank, self._world.size - 1
        states = torch.empty(*tokens.shape, self._model.config.d_model, device=tokens.device)
        if rank:
            dist.recv(states, rank - 1)
        states = self._part(states if rank else tokens, positions=positions, mask=mask).float().contiguous()
        if rank < last:
            dist.send(states, rank + 1)
        hidden = states if rank == last else self._hidden_states(tokens)
        dist.broadcast(hidden, last)
        return hidden

    def _hidden_and_penalty(
        self, tokens: Tensor, *, counted: Tensor | None = None, **arguments: Tensor | None
    ) -> tuple[Tensor, None]:
        return self._hidden(tokens, **arguments), None

    def _hidden_states(self, tokens: Tensor) -> Tensor:
        """Room for what `hidden` gives of `tokens` (B, T)."""
        return torch.empty(*tokens.shape, self._model.hidden_width, device=tokens.device)

    def exchange(self) -> None:
        """What is whole gets gradients in the first part and in the last one: their sum."""
        for p in self._wholes():
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad
            dist.all_reduce(p.grad)

    def _wholes(self) -> list[nn.Parameter]:
        return [p for name, p in self._model.named_parameters() if not name.startswith("blocks.")]

    def gradients(self) -> tuple[list[Tensor], list[Tensor]]:
        parts = [p.grad for i in sorted(self._own) for p in self._model.blocks[i].parameters() if p.grad is not None]
        return parts, [p.grad for p in self._wholes() if p.grad is not None]

    def put_together(self) -> None:
        n_blocks, size = len(self._model.blocks), self._world.size
        for i, block in enumerate(self._model.blocks):
            owner = next(r for r in range(size) if round(r * n_blocks / size) <= i < round((r + 1) * n_blocks / size))
            if i not in self._own:
                block.to_empty(device=self._device)
            for p in block.parameters():
                dist.broadcast(p.data, owner)
        del self._model.__dict__["hidden"], self._model.__dict__["hidden_and_penalty"]


def _n_micro(n_rows: int, at_least: int) -> int:
    """The smallest number of equal micro-batches that is not below `at_least`, where rows suffice."""
    return next((n for n in range(at_least, n_rows + 1) if n_rows % n == 0), n_rows)


def pipelines(loss: Callable[..., Tensor]) -> bool:
    """Whether a loss asks for hidden states once, and so can be computed at the end of a pipeline."""
    from tasks.training.losses import PackedLoss, stream_loss

    return loss is stream_loss or isinstance(loss, PackedLoss)
