"""Direct preference optimisation of the SFT model on the ranked answers, without a reward model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from axon_models.layers.language_model import LanguageModel
from axon_models.objectives.cross_entropy import token_logprobs
from axon_models.objectives.dpo import dpo_loss
from tasks.alignment import comparisons
from tasks.alignment.preference_batches import Pair, best_worst_pair, pair_batch
from tasks.files import write_json
from tasks.steps.context import StepContext
from tasks.training.device import autocast, setup
from tasks.training.loop import Recipe, fit
from tasks.training.lora import attach
from tasks.training.outputs import read_model, write_metrics, write_model
from tasks.training.sampling import Buckets, seed_of

STAGE = "dpo"


def run(context: StepContext) -> None:
    """Read `models/sft/` and the comparisons, write `models/dpo/`, metrics and the curve."""
    params, section = context.params, context.params.dpo
    device = setup(params)
    model = read_model(context, "sft")
    # The reference is the model before training, so its log-probabilities are taken now, once.
    with autocast(device, params.precision):
        train = with_reference(model, _pairs(context, "train"), section.batch_size)
        held_out = with_reference(model, _pairs(context, "validation"), section.batch_size)
    adapters = attach(context, STAGE, model)
    buckets = Buckets([p.longest for p in train], batch_size=section.batch_size, seed=seed_of(params.seed, STAGE))
    recipe = Recipe.over_epochs(STAGE, section, params.precision, n_batches=buckets.n_batches, evaluations_an_epoch=4)
    fitted = fit(
        model,
        recipe,
        batch=lambda k: pair_batch([train[row] for row in buckets.rows(k)], device),
        loss=lambda m, rows: pair_loss(m, rows, beta=section.beta, nll_coef=section.nll_coef),
        evaluate=lambda: validation(model, held_out, beta=section.beta, batch_size=section.batch_size),
        context=context,
    )
    write_model(context, STAGE, model, adapters=adapters)
    curve = fitted.curve
    # A file of its own, so that the control runs again only when its budget changes, not when a figure of DPO does.
    budget = {"tokens": fitted.tokens, "n_steps": recipe.n_steps}
    if not context.rank:
        write_json(context.root / "metrics" / "dpo_tokens.json", budget)
    write_metrics(
        context,
        STAGE,
        curve,
        {
            "loss": curve.mean_of_last("loss", 20),
            "validation_loss": curve.last("validation_loss"),
            "reward_accuracy": curve.last("validation_reward_accuracy"),
            "reward_margin": curve.last("validation_reward_margin"),
            "chosen_reward": curve.last("validation_chosen_reward"),
            "tokens": fitted.tokens,
            **fitted.recorded(),
            "n_steps": recipe.n_steps,
            "n_pairs": len(train),
            "n_validation_pairs": len(held_out),
        },
    )


def _pairs(context: StepContext, split: str) -> list[Pair]:
    return [best_worst_pair(c) for c in comparisons.read(context.root, split)]


def answer_logprobs(model: LanguageModel, rows: dict[str, Tensor]) -> Tensor:
    """(P, 2) float32: log-probabilities of the chosen and the rejected answers, summed over their tokens."""
    tokens, answer = rows["tokens"].flatten(0, 1), rows["answer"].flatten(0, 1)  # (2P, T), (2P, T−1)
    hidden = model.hidden(tokens)[:, :-1]  # (2P, T−1, D)
    logprobs = token_logprobs(hidden[answer], model.output_weight, tokens[:, 1:][answer])  # (N,)
    by_place = torch.zeros(answer.shape, device=logprobs.device).masked_scatter(answer, logprobs)  # (2P, T−1)
    return by_place.sum(-1).unflatten(0, (-1, 2))


@torch.no_grad()
def with_reference(model: LanguageModel, pairs: Sequence[Pair], batch_size: int) -> list[Pair]:
    """The same pairs with their log-probabilities under `model`."""
    order = sorted(range(len(pairs)), key=lambda i: pairs[i].longest)
    found = list(pairs)
    for start in range(0, len(order), batch_size):
        part = order[start : start + batch_size]
        rows = pair_batch([pairs[i] for i in part], model.output_weight.device).tensors
        for i, (chosen, rejected) in zip(part, answer_logprobs(model, rows).tolist(), strict=True):
            found[i] = replace(pairs[i], ref_chosen=chosen, ref_rejected=rejected)
    return found


def pair_loss(model: LanguageModel, rows: dict[str, Tensor], *, beta: float, nll_coef: float) -> Tensor:
    """Summed loss of the pairs in `rows`: DPO's, and `nll_coef` times the chosen answer's loss per token.

    The second term keeps the chosen answers likely: DPO alone only widens the gap, and may lower both (Pang et al.
    2024, "Iterative Reasoning Preference Optimization", equation 1).
    """
    logprobs = answer_logprobs(model, rows)  # (P, 2)
    reference = rows["reference"]  # (P, 2)
    n_pairs = logprobs.shape[0]
    preference = dpo_loss(logprobs[:, 0], logprobs[:, 1], reference[:, 0], reference[:, 1], beta=beta)
    n_tokens = rows["answer"][:, 0].sum(-1)  # (P,)
    return preference.loss * n_pairs - nll_coef * (logprobs[:, 0] / n_tokens).sum()


@torch.no_grad()
def validation(model: LanguageModel, pairs: Sequence[Pair], *, beta: float, batch_size: int) -> dict[str, float]:
    """DPO's loss on held-out pairs, and how its implicit reward β·log(π/π_ref) orders them."""
    by_length = sorted(pairs, key=lambda p: p.longest)
    loss = right = margin = chosen_reward = 0.0
    for start in range(0, len(by_length), batch_size):
        part = by_length[start : start + batch_size]
        rows = pair_batch(part, model.output_weight.device).tensors
        logprobs, reference = answer_logprobs(model, rows), rows["reference"]  # (P, 2) each
        result = dpo_loss(logprobs[:, 0], logprobs[:, 1], reference[:, 0], reference[:, 1], beta=beta)
        difference = result.chosen_rewards - result.rejected_rewards  # (P,)
        loss += result.loss.item() * len(part)
        right += ((difference > 0).sum() + 0.5 * (difference == 0).sum()).item()
        margin += difference.sum().item()
        chosen_reward += result.chosen_rewards.sum().item()
    n = len(pairs)
    return {
        "loss": loss / n,
        "reward_accuracy": right / n,
        "reward_margin": margin / n,
        "chosen_reward": chosen_reward / n,
    }
