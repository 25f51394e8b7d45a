"""Train a reward model: the SFT model with a scalar head, by InstructGPT's loss on ranked answers."""

from __future__ import annotations

import torch
from torch import Tensor

from axon_models.layers.language_model import ScalarModel, scalar_head
from axon_models.objectives.reward import pairwise_accuracy, reward_loss
from tasks.alignment import comparisons, rewards
from tasks.alignment.comparisons import Comparison
from tasks.alignment.preference_batches import ranked_batch
from tasks.steps.context import StepContext
from tasks.training import tokens
from tasks.training.device import setup
from tasks.training.loop import Recipe, fit
from tasks.training.outputs import read_model, write_metrics
from tasks.training.sampling import Buckets, seed_of

STAGE = "reward_model"
_N_DEMONSTRATIONS = 256  # whose mean reward becomes 0
_N_REMEMBERED = 256  # prompts of the training split whose accuracy is measured too, to see what was learnt by heart


def run(context: StepContext) -> None:
    """Read `models/sft/` and the comparisons, write `models/reward_model/`, metrics and the curve."""
    params, section = context.params, context.params.reward_model
    device = setup(params)
    backbone = read_model(context, "sft")
    model = ScalarModel(backbone, scalar_head(backbone.config.d_model)).to(device)
    train = comparisons.read(context.root, "train")
    held_out = comparisons.read(context.root, "validation")
    buckets = Buckets([c.longest() for c in train], batch_size=section.batch_size, seed=seed_of(params.seed, STAGE))
    recipe = Recipe.over_epochs(STAGE, section, params.precision, n_batches=buckets.n_batches, evaluations_an_epoch=1)
    fitted = fit(
        model,
        recipe,
        batch=lambda k: ranked_batch([train[row] for row in buckets.rows(k)], device),
        loss=ranking_loss,
        evaluate=lambda: accuracy(model, held_out, section.batch_size),
        context=context,
    )
    examples = tokens.demonstrations(context.root, "train")
    examples.sort(key=lambda e: seed_of(params.seed, "demonstrations", e.record_id))
    shift = rewards.demonstration_mean(model, [e.tokens for e in examples[:_N_DEMONSTRATIONS]])
    rewards.write(context, STAGE, model, shift=shift)
    by_task = {
        task: accuracy(model, [c for c in held_out if c.task == task], section.batch_size)["pairwise_accuracy"]
        for task in sorted({c.task for c in held_out})
    }
    write_metrics(
        context,
        STAGE,
        fitted.curve,
        {
            "pairwise_accuracy": fitted.curve.last("validation_pairwise_accuracy"),
            "pairwise_accuracy_train": accuracy(model, train[:_N_REMEMBERED], section.batch_size)["pairwise_accuracy"],
            "pairwise_accuracy_by_task": by_task,
            "loss": fitted.curve.mean_of_last("loss", 20),
            "validation_loss": fitted.curve.last("validation_loss"),
            "n_pairs": sum(c.n_pairs() for c in train),
            "n_validation_pairs": sum(c.n_pairs() for c in held_out),
            "reward_shift": shift,
            "tokens": fitted.tokens,
            **fitted.recorded(),
        },
    )


def ranking_loss(model: ScalarModel, rows: dict[str, Tensor]) -> Tensor:
    """Summed loss of the prompts in `rows` (see `ranked_batch`): each counts once, whatever its number of pairs."""
    scores = _scores(model, rows)  # (P, K)
    total = scores.new_zeros(())
    for k in rows["n_answers"].unique().tolist():
        of_k = rows["n_answers"] == k
        total = total + reward_loss(scores[of_k, :k], rows["ranks"][of_k, :k]) * int(of_k.sum())
    return total


def _scores(model: ScalarModel, rows: dict[str, Tensor]) -> Tensor:
    """(P, K) float32: the scalar at the last token of every answer, one pass per answer."""
    tokens, lengths = rows["tokens"].flatten(0, 1), rows["lengths"].flatten()  # (P·K, T), (P·K,)
    return rewards.final_scalars(model, tokens, lengths).unflatten(0, rows["lengths"].shape)


@torch.no_grad()
def accuracy(model: ScalarModel, found: list[Comparison], batch_size: int) -> dict[str, float]:
    """Fraction of pairs with a winner that the model orders as the judge did, and the mean loss of a prompt."""
    device = next(model.parameters()).device
    by_length = sorted(found, key=lambda c: (c.longest(), c.record_id))
    right = n_pairs = loss = 0.0
    for start in range(0, len(by_length), batch_size):
        rows = ranked_batch(by_length[start : start + batch_size], device).tensors
        scores = _scores(model, rows)
        for k in rows["n_answers"].unique().tolist():
            of_k = rows["n_answers"] == k
            n_right, n = pairwise_accuracy(scores[of_k, :k], rows["ranks"][of_k, :k])
            right, n_pairs = right + n_right.item(), n_pairs + n.item()
            loss += reward_loss(scores[of_k, :k], rows["ranks"][of_k, :k]).item() * int(of_k.sum())
    return {"pairwise_accuracy": right / n_pairs, "loss": loss / len(found)}
