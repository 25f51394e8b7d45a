"""Direct preference optimisation."""
# P pairs

from __future__ import annotations

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor


class DPOLoss(NamedTuple):
    """`loss` is a scalar; the implicit rewards β·log(π/π_ref) of the two answers are (P,), without gradient."""

    loss: Tensor
    chosen_rewards: Tensor
    rejected_rewards: Tensor


def dpo_loss(
    policy_chosen: Tensor, policy_rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor, *, beta: float
) -> DPOLoss:
    """Mean of −log σ(β·(log π(chosen)/π_ref(chosen) − log π(rejected)/π_ref(rejected))).

    Rafailov et al. 2023, equation 7. Each argument is (P,): log-probabilities summed over an answer's tokens. At
    policy = reference the loss is log 2.
    """
    chosen = beta * (policy_chosen - ref_chosen)  # (P,)
    rejected = beta * (policy_rejected - ref_rejected)  # (P,)
    return DPOLoss(F.softplus(rejected - chosen).mean(), chosen.detach(), rejected.detach())
