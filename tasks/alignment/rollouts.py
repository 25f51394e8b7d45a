"""What PPO learns from: answers sampled by the policy, with everything about them that stays fixed while it learns."""

# B rows (rollouts), T time, D model. A place t of (B, T−1) speaks of the choice of token t+1.

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from axon_models.generation.engine import generate
from axon_models.layers.language_model import LanguageModel
from axon_models.objectives.cross_entropy import token_logprobs_and_entropy
from axon_models.objectives.ppo import gae, kl_penalized_rewards, whiten
from tasks.alignment.rewards import Shifted, final_scalars, scalars
from tasks.tokenizers.chat import END, PAD
from tasks.training.batches import pad_rows
from tasks.training.device import autocast
from tasks.training.parallel import ALONE, World


@dataclass(frozen=True, kw_only=True)
class Rollouts:
    """One iteration's answers. All but tokens, scores and ended are (B, T−1), zero where mask is false."""

    tokens: Tensor  # (B, T) int64: prompt, answer, padding
    mask: Tensor  # bool: the next token belongs to the answer
    logprobs: Tensor  # of the policy that sampled
    ref_logprobs: Tensor
    entropy: Tensor
    values: Tensor
    advantages: Tensor
    returns: Tensor
    scores: Tensor  # (B,): shifted reward of the whole answer, less the penalty for not ending
    ended: Tensor  # (B,) bool

    def rows(self, rows: Tensor) -> Rollouts:
        return Rollouts(**{name: t[rows] for name, t in self.tensors().items()})

    def tensors(self) -> dict[str, Tensor]:
        return {f.name: getattr(self, f.name) for f in fields(self)}


@dataclass(frozen=True, kw_only=True)
class RolloutSettings:
    prompt_tokens: int
    max_new_tokens: int
    temperature: float
    missing_end_penalty: float
    kl_coef: float
    gamma: float
    gae_lambda: float
    whiten_advantages: bool
    batch_size: int  # rows of a forward pass
    precision: str


def answer_statistics(model: LanguageModel, tokens: Tensor, mask: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Log-probabilities of the answers' tokens and entropies of the choices, (B, T−1) each, at `temperature`."""
    hidden = model.hidden(tokens)[:, :-1][mask] / temperature  # (N, D)
    logprobs, entropy = token_logprobs_and_entropy(hidden, model.output_weight, tokens[:, 1:][mask])  # (N,), (N,)
    places = torch.zeros(mask.shape, device=mask.device)
    return places.masked_scatter(mask, logprobs), places.masked_scatter(mask, entropy)


def state_values(model: Shifted, tokens: Tensor, mask: Tensor) -> Tensor:
    """(B, T−1): the value of the state in which each answer token is chosen."""
    return (scalars(model.model, tokens)[:, :-1] - model.shift) * mask


@torch.no_grad()
def collect(
    policy: LanguageModel,
    reference: LanguageModel,
    reward: Shifted,
    value: Shifted,
    prompts: Sequence[list[int]],
    settings: RolloutSettings,
    *,
    seed: int,
    world: World = ALONE,
) -> Rollouts:
    """Sample one answer to each of `prompts` and compute rewards, advantages and returns.

    Of several workers each samples and judges its part; all of them return the same.
    """
    own = world.rows(len(prompts))
    sampled = generate(
        policy,
        [prompts[row] for row in own],
        max_new_tokens=settings.max_new_tokens,
        temperature=settings.temperature,
        eos_id=END,
        seed=seed,
        first_row=own.start,
        kv_length=settings.prompt_tokens + settings.max_new_tokens,
        prompt_length=settings.prompt_tokens,
    )
    answers: list[list[int]] = [
        answer for part in world.gather_text(json.dumps(sampled)) for answer in json.loads(part)
    ]
    device = policy.output_weight.device
    sequences = [prompt + answer for prompt, answer in zip(prompts, answers, strict=True)]
    tokens = pad_rows(sequences, pad_id=PAD).to(device)  # (B, T)
    starts = torch.tensor([len(prompt) for prompt in prompts], device=device)
    lengths = torch.tensor([len(sequence) for sequence in sequences], device=device)
    targets = torch.arange(1, tokens.shape[1], device=device)
    mask = (targets >= starts[:, None]) & (targets < lengths[:, None])  # (B, T−1)
    ended = torch.tensor([answer[-1:] == [END] for answer in answers], device=device)  # (B,)

    logprobs, entropy, ref_logprobs, values = (torch.zeros(mask.shape, device=device) for _ in range(4))
    scores = torch.zeros(len(sequences), device=device)  # (B,)
    for first in range(own.start, own.stop, settings.batch_size):
        rows = slice(first, min(first + settings.batch_size, own.stop))
        with autocast(device, settings.precision):
            logprobs[rows], entropy[rows] = answer_statistics(policy, tokens[rows], mask[rows], settings.temperature)
            ref_logprobs[rows], _ = answer_statistics(reference, tokens[rows], mask[rows], settings.temperature)
            values[rows] = state_values(value, tokens[rows], mask[rows])
            scores[rows] = final_scalars(reward.model, tokens[rows], lengths[rows]) - reward.shift
    world.add_up([logprobs, entropy, ref_logprobs, values, scores])  # zero where another worker has worked
    scores = scores - settings.missing_end_penalty * (~ended)
    per_token = kl_penalized_rewards(scores, logprobs, ref_logprobs, mask, kl_coef=settings.kl_coef)
    advantages, returns = gae(per_token, values, mask, gamma=settings.gamma, lam=settings.gae_lambda)
    if settings.whiten_advantages:
        advantages = whiten(advantages, mask)
    return Rollouts(
        tokens=tokens,
        mask=mask,
        logprobs=logprobs,
        ref_logprobs=ref_logprobs,
        entropy=entropy,
        values=values,
        advantages=advantages,
        returns=returns,
        scores=scores,
        ended=ended,
    )
