"""Objectives against hand arithmetic and plain torch."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from axon_models.objectives.cross_entropy import (
    linear_cross_entropy,
    token_logprobs,
    token_logprobs_and_entropy,
)
from axon_models.objectives.dpo import dpo_loss
from axon_models.objectives.ppo import (
    approximate_kl,
    gae,
    kl_penalized_rewards,
    masked_mean,
    policy_loss,
    value_loss,
    whiten,
)
from axon_models.objectives.reward import pairwise_accuracy, reward_loss


def inputs(dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(11, 6, dtype=dtype, generator=generator).requires_grad_()
    weight = torch.randn(9, 6, dtype=dtype, generator=generator).requires_grad_()
    return hidden, weight, torch.randint(0, 9, (11,), generator=generator)


@pytest.mark.parametrize("chunk", [1, 4, 11, 100])
@pytest.mark.parametrize("weighted", [False, True])
def test_linear_cross_entropy_is_cross_entropy(chunk: int, weighted: bool) -> None:
    hidden, weight, targets = inputs()
    weights = torch.tensor([1, 0, 2, 0.5, 0, 1, 1, 0, 3, 1, 0.1], dtype=torch.float64) if weighted else None
    loss = linear_cross_entropy(hidden, weight, targets, weights=weights, chunk=chunk)
    losses = F.cross_entropy(hidden @ weight.t(), targets, reduction="none")
    reference = losses.sum() if weights is None else (losses * weights).sum()
    torch.testing.assert_close(loss, reference)
    found = torch.autograd.grad(loss * 3, (hidden, weight))
    torch.testing.assert_close(found, torch.autograd.grad(reference * 3, (hidden, weight)))


def test_a_frozen_weight_changes_no_other_gradient_and_keeps_no_memory() -> None:
    hidden, weight, targets = inputs()
    frozen = weight.detach()
    loss = linear_cross_entropy(hidden, frozen, targets)
    assert weight.shape not in {t.shape for t in loss.grad_fn.saved_tensors if t is not None}  # type: ignore[union-attr]
    logprobs, entropy = token_logprobs_and_entropy(hidden, frozen, targets)
    (found,) = torch.autograd.grad(loss + (2 * logprobs + 3 * entropy).sum(), hidden)
    plain = (hidden @ frozen.t()).log_softmax(-1)
    chosen = plain.gather(1, targets.unsqueeze(1)).sum()
    (reference,) = torch.autograd.grad(-chosen + 2 * chosen - 3 * (plain.exp() * plain).sum(), hidden)
    torch.testing.assert_close(found, reference)


def test_linear_cross_entropy_without_gradients_and_without_positions() -> None:
    hidden, weight, targets = inputs(torch.float32)
    with torch.no_grad():
        loss = linear_cross_entropy(hidden, weight, targets)
        torch.testing.assert_close(loss, F.cross_entropy(hidden @ weight.t(), targets, reduction="sum"))
    none = linear_cross_entropy(hidden, weight, targets - 100, weights=torch.zeros(11))
    none.backward()
    assert none == 0
    assert hidden.grad is not None
    assert hidden.grad.abs().sum() == 0


def test_linear_cross_entropy_of_certain_and_of_hopeless_tokens() -> None:
    """Scores 200 apart: the likely token costs nothing, and the probability of the other is 0 in float32."""
    hidden, weight = torch.tensor([[1.0], [1.0]], requires_grad=True), torch.tensor([[200.0], [0.0], [-500.0]])
    loss = linear_cross_entropy(hidden, weight, torch.tensor([0, 1]), weights=torch.tensor([1.0, 2.0]))
    assert loss.item() == 400.0
    assert linear_cross_entropy(hidden[:1], weight, torch.tensor([0])).item() == 0.0
    assert linear_cross_entropy(hidden[:1], weight, torch.tensor([2])).item() == 700.0
    (gradient,) = torch.autograd.grad(loss, hidden)
    assert gradient.tolist() == [[0.0], [400.0]]  # 2 · (200 − 0) for the second


def test_linear_cross_entropy_under_autocast_is_near() -> None:
    hidden, weight, targets = inputs(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        loss = linear_cross_entropy(hidden, weight, targets)
    reference = F.cross_entropy(hidden @ weight.t(), targets, reduction="sum")
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, reference, rtol=0.02, atol=0)
    found = torch.autograd.grad(loss, (hidden, weight))
    assert all(gradient.dtype == torch.float32 for gradient in found)
    torch.testing.assert_close(found, torch.autograd.grad(reference, (hidden, weight)), rtol=0, atol=0.05)


@pytest.mark.parametrize("chunk", [1, 4, 100])
def test_token_logprobs_and_entropy(chunk: int) -> None:
    hidden, weight, targets = inputs()
    logprobs, entropy = token_logprobs_and_entropy(hidden, weight, targets, chunk=chunk)
    every = (hidden @ weight.t()).log_softmax(-1)
    torch.testing.assert_close(logprobs, every.gather(1, targets.unsqueeze(1)).squeeze(1))
    torch.testing.assert_close(entropy, -(every.exp() * every).sum(-1))
    torch.testing.assert_close(token_logprobs(hidden, weight, targets), logprobs)
    assert torch.autograd.gradcheck(
        lambda h, w: token_logprobs_and_entropy(h, w, targets, chunk=chunk), (hidden, weight)
    )


def test_two_answers_are_bradley_terry() -> None:
    loss = reward_loss(torch.tensor([[1.0, 3.0]]), torch.tensor([[2, 1]]))
    assert float(loss) == pytest.approx(-math.log(1 / (1 + math.exp(-2.0))))


def test_reward_loss_is_the_mean_over_pairs_then_prompts() -> None:
    rewards = torch.tensor([[0.5, -1.0, 2.0], [1.0, 0.0, 0.3]])
    ranks = torch.tensor([[2, 1, 3], [1, 2, 2]])  # the second prompt has a tie

    def pair(better: float, worse: float) -> float:
        return math.log(1 + math.exp(-(better - worse)))

    first = (pair(-1.0, 0.5) + pair(-1.0, 2.0) + pair(0.5, 2.0)) / 3
    second = (pair(1.0, 0.0) + pair(1.0, 0.3)) / 2
    assert float(reward_loss(rewards, ranks)) == pytest.approx((first + second) / 2)
    tied = torch.cat([rewards, torch.zeros(1, 3)]), torch.cat([ranks, torch.ones(1, 3, dtype=torch.long)])
    assert float(reward_loss(*tied)) == pytest.approx((first + second) / 2)


def test_reward_loss_ignores_a_shift_per_prompt() -> None:
    rewards, ranks = torch.randn(3, 4), torch.tensor([[1, 2, 3, 4], [4, 3, 2, 1], [1, 1, 3, 4]])
    torch.testing.assert_close(
        reward_loss(rewards + torch.tensor([[5.0], [-2], [0]]), ranks), reward_loss(rewards, ranks)
    )


def test_reward_loss_of_ties_alone_is_zero_and_has_a_gradient() -> None:
    rewards = torch.randn(2, 3, requires_grad=True)
    loss = reward_loss(rewards, torch.ones(2, 3, dtype=torch.long))
    loss.backward()
    assert loss == 0
    assert rewards.grad is not None
    assert not rewards.grad.any()
    with pytest.raises(ValueError, match="must both be"):
        reward_loss(rewards, torch.ones(2, 2, dtype=torch.long))


def test_pairwise_accuracy_counts_pairs() -> None:
    right, pairs = pairwise_accuracy(torch.tensor([[3.0, 1.0, 1.0, 2.0]]), torch.tensor([[1, 2, 3, 3]]))
    # (1 over 2), (1 over 3), (1 over 4) right; 2 against 3 equal; 2 against 4 wrong; 3 and 4 tied in rank.
    assert (float(right), float(pairs)) == (3.5, 5.0)


def test_dpo() -> None:
    chosen, rejected = torch.tensor([-3.0, -5.0], requires_grad=True), torch.tensor([-4.0, -2.0])
    same = dpo_loss(chosen, rejected, chosen.detach(), rejected, beta=0.3)
    assert float(same.loss.detach()) == pytest.approx(math.log(2))
    loss, chosen_rewards, rejected_rewards = dpo_loss(
        chosen, rejected, torch.tensor([-4.0, -5.0]), torch.tensor([-4.0, -4.0]), beta=0.5
    )
    # Margins: 0.5·(1 − 0) = 0.5 and 0.5·(0 − 2) = −1.
    assert float(loss.detach()) == pytest.approx((math.log(1 + math.exp(-0.5)) + math.log(1 + math.exp(1.0))) / 2)
    assert chosen_rewards.tolist() == [0.5, 0.0]
    assert rejected_rewards.tolist() == [0.0, 1.0]
    loss.backward()
    assert chosen.grad is not None
    assert float(chosen.grad[0]) == pytest.approx(-0.5 * (1 / (1 + math.exp(0.5))) / 2)


MASK = torch.tensor([[1, 1, 1, 0], [0, 1, 1, 1]], dtype=torch.bool)


def test_masked_mean_and_whiten() -> None:
    x = torch.tensor([[1.0, 2.0, 3.0, 99.0], [99.0, 4.0, 5.0, 6.0]])
    assert float(masked_mean(x, MASK)) == 3.5
    assert float(masked_mean(x, torch.zeros_like(MASK))) == 0
    white = whiten(x, MASK)
    assert white[~MASK].abs().sum() == 0
    assert float(white[MASK].mean()) == pytest.approx(0, abs=1e-6)
    assert float(white[MASK].var(unbiased=False)) == pytest.approx(1, abs=1e-5)


def test_rewards_are_the_penalty_with_the_score_at_the_last_token() -> None:
    logprobs, reference = torch.full((2, 4), -1.0), torch.full((2, 4), -3.0)
    rewards = kl_penalized_rewards(torch.tensor([10.0, 20.0]), logprobs, reference, MASK, kl_coef=0.5)
    assert rewards.tolist() == [[-1, -1, 9, 0], [0, -1, -1, 19]]


def test_gae_by_hand() -> None:
    rewards, values = torch.tensor([[0.0, 1.0, 2.0, 7.0]]), torch.tensor([[0.5, 1.0, 1.5, 7.0]])
    advantages, returns = gae(rewards, values, MASK[:1], gamma=0.9, lam=0.8)
    # δ = (0 + 0.9·1 − 0.5, 1 + 0.9·1.5 − 1, 2 − 1.5) = (0.4, 1.35, 0.5); γλ = 0.72
    last, middle = 0.5, 1.35 + 0.72 * 0.5
    expected = [0.4 + 0.72 * middle, middle, last, 0.0]
    torch.testing.assert_close(advantages, torch.tensor([expected]))
    torch.testing.assert_close(returns[:, :3], (advantages + values)[:, :3])
    assert returns[0, 3] == 0


def test_gae_with_lambda_one_is_monte_carlo() -> None:
    generator = torch.Generator().manual_seed(1)
    rewards, values = torch.randn(2, 4, generator=generator), torch.randn(2, 4, generator=generator)
    advantages, returns = gae(rewards, values, MASK, gamma=1.0, lam=1.0)
    for row, valid in enumerate(MASK):
        ahead = rewards[row][valid].flip(0).cumsum(0).flip(0)
        torch.testing.assert_close(returns[row][valid], ahead)
        torch.testing.assert_close(advantages[row][valid], ahead - values[row][valid])


def test_at_ratio_one_the_gradient_is_the_policy_gradient() -> None:
    logprobs = torch.randn(2, 4, requires_grad=True)
    advantages = torch.randn(2, 4)
    loss, clipped = policy_loss(logprobs, logprobs.detach(), advantages, MASK, clip_ratio=0.2)
    loss.backward()
    torch.testing.assert_close(logprobs.grad, -advantages * MASK / 6)
    assert clipped == 0


def test_the_ratio_is_clipped_where_it_would_gain() -> None:
    mask = torch.ones(1, 4, dtype=torch.bool)
    logprobs = torch.tensor([[1.5, 1.5, 0.5, 0.5]]).log().requires_grad_()
    advantages = torch.tensor([[1.0, -1.0, 1.0, -1.0]])
    loss, clipped = policy_loss(logprobs, torch.zeros(1, 4), advantages, mask, clip_ratio=0.2)
    assert float(loss.detach()) == pytest.approx(-(1.2 - 1.5 + 0.5 - 0.8) / 4)
    assert float(clipped) == 0.5
    loss.backward()
    assert logprobs.grad is not None
    assert (logprobs.grad != 0).tolist() == [[False, True, True, False]]


def test_infinities_outside_the_mask_do_not_reach_the_loss() -> None:
    logprobs = torch.zeros(2, 4).masked_fill(~MASK, float("inf")).requires_grad_()
    loss, _ = policy_loss(logprobs, torch.zeros(2, 4), torch.ones(2, 4), MASK, clip_ratio=0.2)
    loss.backward()
    assert loss == -1
    assert logprobs.grad is not None
    assert logprobs.grad.isfinite().all()


def test_value_loss_takes_the_larger_error() -> None:
    mask = torch.ones(1, 2, dtype=torch.bool)
    loss, clipped = value_loss(
        torch.tensor([[1.0, 0.1]]), torch.zeros(1, 2), torch.tensor([[1.0, 1.0]]), mask, clip_value=0.2
    )
    # First: value 1 clipped to 0.2, errors 0 and 0.64. Second: within the range, 0.81.
    assert float(loss) == pytest.approx(0.5 * (0.64 + 0.81) / 2)
    assert float(clipped) == 0.5


def test_the_kl_estimate_is_right_in_expectation() -> None:
    policy, reference = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.2, 0.3, 0.5])
    # A batch in which each outcome stands as often as the policy would draw it.
    outcomes = torch.tensor([[0] * 5 + [1] * 3 + [2] * 2])
    estimate = approximate_kl(policy.log()[outcomes], reference.log()[outcomes], torch.ones(1, 10))
    assert float(estimate) == pytest.approx(float((policy * (policy / reference).log()).sum()), abs=1e-6)
