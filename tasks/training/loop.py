"""The one loop of every supervised stage: pretrain, sft, sft_continued, reward_model and dpo.

A stage differs by its model, by which rows are in batch k, and by its batch-loss function; nothing else.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from tasks.training.batches import Batch
from tasks.training.checkpoint import Checkpoints
from tasks.training.curves import Curve
from tasks.training.device import autocast
from tasks.training.divergence import WINDOW, Watch
from tasks.training.learning_rates import own_learning_rate
from tasks.training.optimizer import adamw, set_learning_rate, warmup_cosine
from tasks.training.parallel import Objective, Partitioned, Sharded, World, clip
from tasks.training.pipeline import Pipelined, pipelines
from tasks.training.recomputation import recompute_activations
from tasks.training.state import (
    generator_tensors,
    load_generator_tensors,
    load_training_tensors,
    training_tensors,
)

if TYPE_CHECKING:
    from axon_models.layers.language_model import Sizes
    from tasks.parameter_sections import EpochTraining, Training
    from tasks.steps.context import StepContext

log = logging.getLogger(__name__)

Model = TypeVar("Model", bound=nn.Module)
BatchLoss = Callable[[Model, dict[str, Tensor]], Tensor]
"""Summed loss (a scalar) of some rows of a batch; `fit` divides by the whole step's `n_targets`."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The numbers of one supervised run; `stage` names it in messages and files."""

    stage: str
    n_steps: int
    learning_rate: float
    min_learning_rate: float = 0.0
    warmup_steps: int
    weight_decay: float
    beta2: float = 0.95
    clip_norm: float
    accumulation: int = 1
    evaluate_every: int
    precision: str

    @classmethod
    def of(cls, stage: str, section: Training, precision: str, config: Sizes) -> Recipe:
        """The recipe of pretrain or sft in params.yaml; a learning rate that is null is that of a model of `config`."""
        return cls(
            stage=stage,
            n_steps=section.n_steps,
            learning_rate=section.learning_rate or own_learning_rate(stage, config),
            min_learning_rate=section.min_learning_rate,
            warmup_steps=section.warmup_steps,
            weight_decay=section.weight_decay,
            beta2=section.beta2,
            clip_norm=section.clip_norm,
            accumulation=section.accumulation,
            evaluate_every=section.evaluate_every,
            precision=precision,
        )

    @classmethod
    def over_epochs(
        cls, stage: str, section: EpochTraining, precision: str, *, n_batches: int, evaluations_an_epoch: int
    ) -> Recipe:
        """The recipe of a section that counts epochs of `n_batches` updates each: reward_model or dpo."""
        n_steps = section.n_epochs * n_batches
        return cls(
            stage=stage,
            n_steps=n_steps,
            learning_rate=section.learning_rate,
            warmup_steps=min(section.warmup_steps, n_steps - 1),
            weight_decay=section.weight_decay,
            clip_norm=section.clip_norm,
            evaluate_every=max(1, n_batches // evaluations_an_epoch),
            precision=precision,
        )


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """What `fit` leaves beside the trained model: its curve, the tokens (padding aside) it was trained on, and the
    [first, last] steps that were left out because training diverged."""

    curve: Curve
    tokens: int
    left_out: list[list[int]] = field(default_factory=list)

    def recorded(self) -> dict[str, Any]:
        """What the stage's metrics say of steps that diverged: nothing where none did."""
        return {"left_out_steps": self.left_out} if self.left_out else {}


def fit(
    model: Model,
    recipe: Recipe,
    *,
    batch: Callable[[int], Batch],
    loss: BatchLoss[Model],
    evaluate: Callable[[], dict[str, float]],
    context: StepContext,
) -> Fitted:
    """Train `model` in place for `recipe.n_steps` updates, from the last checkpoint if there is one.

    batch: the rows of update k, a function of k alone, so that a resumed run sees what an uninterrupted one sees.
    evaluate: named values for the curve, called every `evaluate_every` updates, first before any and last after all.
    A step that diverges is dealt with as `divergence` in params.yaml says, which may raise `UserError` (exit code 1).
    Raises `Stopped` when it was asked to.
    """
    device = next(model.parameters()).device
    world = World(context.rank, context.n_workers, context.node_rank)
    if context.params.runtime.activation_checkpointing:
        recompute_activations(model)
    objective = spread(Objective(model, loss), world, context.params.partition, recipe.precision)
    optimizer = adamw(model, learning_rate=recipe.learning_rate, beta2=recipe.beta2, weight_decay=recipe.weight_decay)
    checkpoints = Checkpoints(
        context.checkpoints,
        every_s=context.checkpoint_every_s,
        world=world,
        asked_to_stop=context.asked_to_stop,
    )
    watched = partial(Watch, recipe.stage, context.params.divergence, learning_rate=recipe.learning_rate)
    first, tokens, curve, watch = 0, 0, Curve(), watched()
    saved = checkpoints.load(device)
    if saved is not None:
        tensors, state = saved
        load_training_tensors(model, optimizer, tensors)
        load_generator_tensors(tensors)
        first, tokens, curve = state["step"], state["tokens"], Curve(state["curve"])
        watch = watched(state["left_out"])
        model.train()  # as after the evaluation before the first step; models are read for evaluation

    for step in range(first, recipe.n_steps + 1):
        last = step == recipe.n_steps
        if (step % recipe.evaluate_every == 0 or last) and not (step == first and saved is not None):
            model.eval()
            with torch.no_grad(), autocast(device, recipe.precision):
                validation = {f"validation_{name}": value for name, value in evaluate().items()}
            curve.add(step, validation)
            context.report(step, recipe.n_steps, validation)
            model.train()
            if watch.goes_back and not last:
                state = {"step": step, "tokens": tokens, "curve": curve.rows}
                checkpoints.save_anchor(step, {**training_tensors(model, optimizer), **generator_tensors()}, state)
        if step > first and (last or checkpoints.is_due()):
            state = {"step": step, "tokens": tokens, "curve": curve.rows, "left_out": watch.left_out}
            checkpoints.save(step, {**training_tensors(model, optimizer), **generator_tensors()}, state)
        if last:
            break
        rows = batch(step)
        learning_rate = warmup_cosine(
            step,
            n_steps=recipe.n_steps,
            warmup_steps=recipe.warmup_steps,
            peak=recipe.learning_rate,
            floor=recipe.min_learning_rate,
        )
        set_learning_rate(optimizer, learning_rate)
        step_loss, grad_norm = gradients(objective, optimizer, rows, recipe, device, world)
        fault = watch.fault({"loss": step_loss, "gradient norm": grad_norm}, curve.newest("loss", WINDOW))
        if fault is not None:
            back_to = step
            if watch.goes_back:
                tensors, state = checkpoints.load_anchor(step, device)
                back_to = state["step"]
                load_training_tensors(model, optimizer, tensors)
                load_generator_tensors(tensors)
                tokens, curve = state["tokens"], Curve(state["curve"])
            watch.leave_out(back_to, step, fault)
            log.warning(
                "%s: %s at step %d; left out: steps %d to %d", recipe.stage, fault, step + 1, back_to + 1, step + 1
            )
            context.report(step + 1, recipe.n_steps, {"left_out": float(step + 1 - back_to)})
            continue
        optimizer.step()
        tokens += rows.n_tokens
        values = {
            "tokens": tokens,
            "loss": step_loss,
            "learning_rate": learning_rate,
            "grad_norm": grad_norm,
        }
        curve.add(step + 1, values)
        context.report(step + 1, recipe.n_steps, values)
    if isinstance(objective, Partitioned):
        objective.put_together()
    return Fitted(curve=curve, tokens=tokens, left_out=watch.left_out)


def spread(objective: Objective, world: World, partition: str, precision: str) -> nn.Module:
    """The objective over all workers: the model whole on each (Li et al. 2020, "PyTorch Distributed"), or in parts."""
    if world.size == 1:
        return objective
    if partition == "pipeline" and pipelines(objective.loss):
        return Pipelined(objective, world, precision)
    if partition != "none":
        return Sharded(objective)
    return DistributedDataParallel(objective, forward_sync_buffers=False, gradient_as_bucket_view=True)


def gradients(
    objective: nn.Module,
    optimizer: torch.optim.Optimizer,
    rows: Batch,
    recipe: Recipe,
    device: torch.device,
    world: World,
) -> tuple[float, float]:
    """The clipped gradients of all micro-batches of `rows`; returns their mean loss and the norm before clipping."""
    optimizer.zero_grad(set_to_none=True)
    own = objective.run(rows, recipe.accumulation) if isinstance(objective, Pipelined) else 0.0
    parts = [] if isinstance(objective, Pipelined) else world.part(rows, recipe.accumulation)
    for i, (part, weight) in enumerate(parts):
        is_last = i == len(parts) - 1
        # Gradients are exchanged once a step.
        with nullcontext() if is_last or world.size == 1 else objective.no_sync():  # type: ignore[operator]
            with autocast(device, recipe.precision):
                # Divided by the targets of the whole step, not of the part: a part with few targets would otherwise
                # weigh as much as one with many, and accumulation would change the result.
                part_loss = objective(part) * weight / rows.n_targets
            # Torch averages over workers; a step is a sum.
            (part_loss * world.size).backward()
        own += part_loss.item()
    if isinstance(objective, Partitioned):
        objective.exchange()
    (total,) = world.total([own])
    return total, clip(objective, recipe.clip_norm)
