"""The loss of a reward model on ranked answers."""
# P prompts, K answers of a prompt

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def reward_loss(rewards: Tensor, ranks: Tensor) -> Tensor:
    """−(1/pairs) Σ log σ(r_better − r_worse), averaged over prompts; a scalar.

    InstructGPT (Ouyang et al. 2022), equation 1: all pairs of a prompt are one batch element, so a prompt counts
    once however many answers it has. K = 2 is the Bradley–Terry likelihood. Adding a constant to a prompt's rewards
    changes nothing.

    rewards (P, K) float; ranks (P, K) int64, 1 = best. Ties are skipped: only pairs with different ranks count, and a
    prompt without any such pair is left out of the mean. The loss is 0 (with zero gradients) if no pair is left.
    Raises `ValueError` for shapes that do not match.
    """
    better = _better(rewards, ranks)  # (P, K, K)
    margins = rewards.unsqueeze(2) - rewards.unsqueeze(1)  # (P, K, K): [i, j] = r_i − r_j
    losses = (F.softplus(-margins) * better).sum((1, 2))  # (P,)
    n_pairs = better.sum((1, 2))  # (P,)
    n_prompts = (n_pairs > 0).sum().clamp(min=1)
    return (losses / n_pairs.clamp(min=1)).sum() / n_prompts


def pairwise_accuracy(rewards: Tensor, ranks: Tensor) -> tuple[Tensor, Tensor]:
    """How many pairs of different ranks the rewards order rightly (equal rewards: half), and how many there are.

    Shapes as in `reward_loss`; two scalars in float32, to be summed over batches before dividing.
    """
    better = _better(rewards, ranks)
    margins = rewards.unsqueeze(2) - rewards.unsqueeze(1)
    right = (margins > 0).float() + 0.5 * (margins == 0).float()
    return (right * better).sum(), better.sum().float()


def _better(rewards: Tensor, ranks: Tensor) -> Tensor:
    """(P, K, K) bool: answer i is ranked above answer j."""
    if rewards.dim() != 2 or rewards.shape != ranks.shape:
        raise ValueError(f"rewards and ranks must both be (P, K), but are {(*rewards.shape,)} and {(*ranks.shape,)}")
    return torch.lt(ranks.unsqueeze(2), ranks.unsqueeze(1))
