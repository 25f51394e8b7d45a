"""Proximal policy optimisation on tokens: rewards, advantages and the two clipped losses.

The details, numbered as they are used, with where each comes from:
1. Reward per token: −kl_coef·(log π − log π_ref), the score added at the last token (InstructGPT, equation 2;
   Ziegler et al. 2019, section 2.2).
2. Generalised advantage estimation (Schulman et al. 2016, equation 16); after the last token the value is 0.
3. Advantages whitened over the valid tokens of the whole batch ("37 details of PPO", detail 7).
4. Clipped surrogate (Schulman et al. 2017, equation 7), a mean over valid tokens.
5. Clipped value loss, with the factor ½ ("37 details of PPO", detail 9).
"""
# B batch, T time (tokens of answers)

from __future__ import annotations

import torch
from torch import Tensor


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean of x where mask is true; same shapes; a scalar, 0 for an empty mask."""
    mask = mask.to(x.dtype)
    return (x * mask).sum() / mask.sum().clamp(min=1.0)


def whiten(x: Tensor, mask: Tensor, *, eps: float = 1e-8) -> Tensor:
    """x shifted and scaled to mean 0 and variance 1 over the valid places; 0 elsewhere. Same shapes."""
    mean = masked_mean(x, mask)
    variance = masked_mean((x - mean).square(), mask)
    return (x - mean) * torch.rsqrt(variance + eps) * mask.to(x.dtype)


def kl_penalized_rewards(
    scores: Tensor, logprobs: Tensor, ref_logprobs: Tensor, mask: Tensor, *, kl_coef: float
) -> Tensor:
    """−kl_coef·(logprobs − ref_logprobs) at each valid token, with the score added at the last one: (B, T).

    scores (B,); the others (B, T), mask true on an answer's tokens (its end included), which stand together.
    A row without valid tokens gets no reward. Source: detail 1.
    """
    valid = mask.to(logprobs.dtype)
    rewards = -kl_coef * (logprobs - ref_logprobs) * valid
    return rewards + scores.unsqueeze(1) * _is_last(mask).to(logprobs.dtype)


def _is_last(mask: Tensor) -> Tensor:
    """(B, T) bool: true at the last valid place of each row."""
    after = torch.zeros_like(mask[:, :1], dtype=torch.long)
    n_after = torch.cat(
        [mask[:, 1:].long().flip(1).cumsum(1).flip(1), after], dim=1
    )  # (B, T) valid places to the right
    return mask.bool() & (n_after == 0)


def gae(rewards: Tensor, values: Tensor, mask: Tensor, *, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """Advantages and returns (their sum with the values), both (B, T), 0 where mask is false.

    δ_t = r_t + γ·V_{t+1} − V_t and A_t = δ_t + γλ·A_{t+1}; the value after a row's last token is 0. With λ = 1 the
    advantage is the Monte Carlo return less the value, with λ = 0 it is δ. Source: detail 2. All inputs (B, T).
    """
    valid = mask.to(values.dtype)
    rewards, values = rewards * valid, values * valid
    advantage = next_value = torch.zeros_like(values[:, 0])  # (B,)
    columns = []
    for t in reversed(range(values.shape[1])):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        advantage = (delta + gamma * lam * advantage) * valid[:, t]
        next_value = values[:, t]
        columns.append(advantage)
    advantages = torch.stack(columns[::-1], dim=1)  # (B, T)
    return advantages, advantages + values


def policy_loss(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor, *, clip_ratio: float
) -> tuple[Tensor, Tensor]:
    """−mean min(ρ·A, clip(ρ, 1 ± clip_ratio)·A) with ρ = exp(logprobs − old_logprobs), and the clipped fraction.

    All (B, T); two scalars, the second without gradient. At ρ = 1 the gradient is the policy gradient −A·∇log π.
    Source: detail 4.
    """
    # Places outside the mask may hold anything; a ratio of 1 there keeps infinities out of the sum.
    ratio = torch.where(mask.bool(), logprobs - old_logprobs, 0.0).exp()
    clipped = ratio.clamp(1 - clip_ratio, 1 + clip_ratio)
    loss = -masked_mean(torch.minimum(ratio * advantages, clipped * advantages), mask)
    bites = clipped * advantages < ratio * advantages
    return loss, masked_mean(bites.to(ratio.dtype), mask).detach()


def value_loss(
    values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor, *, clip_value: float
) -> tuple[Tensor, Tensor]:
    """½·mean max((V − R)², (clip(V, V_old ± clip_value) − R)²), and the fraction where clipping decides.

    All (B, T); two scalars, the second without gradient. Source: detail 5.
    """
    clipped = old_values + (values - old_values).clamp(-clip_value, clip_value)
    plain_error, clipped_error = (values - returns).square(), (clipped - returns).square()
    loss = 0.5 * masked_mean(torch.maximum(plain_error, clipped_error), mask)
    return loss, masked_mean((clipped_error > plain_error).to(values.dtype), mask).detach()


def approximate_kl(logprobs: Tensor, ref_logprobs: Tensor, mask: Tensor) -> Tensor:
    """Estimate of KL(π ‖ π_ref) per token from samples of π: mean of (e^d − 1) − d with d = log π_ref − log π.

    All (B, T), a scalar ≥ 0: unbiased, of lower variance than the mean of −d (Schulman 2020, "Approximating KL
    divergence", estimator k3).
    """
    d = torch.where(mask.bool(), ref_logprobs - logprobs, 0.0)
    return masked_mean(d.expm1() - d, mask)
