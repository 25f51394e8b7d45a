"""The gate: intervals against closed forms, a worse model never promoted, an equal one rarely, a better one surely."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tasks.promotion.gate import Measured, Rules, decide
from tasks.promotion.paired import improvement

N_ITEMS, N_SEEDS = 300, 4
RULES = Rules(metric="exact_match", margin=0.0, guards={"kl_to_sft": 0.5}, n_resamples=1000)


def answers(rng: np.random.Generator, gain: float) -> dict[str, Measured]:
    """Right or wrong answers of two models to items of unequal difficulty; `gain` is added to each probability."""
    difficulty = rng.beta(1.0, 1.0, size=(N_ITEMS, 1))

    def model(extra: float) -> np.ndarray:
        p = np.clip(difficulty * (1 - abs(extra)) + max(extra, 0.0), 0, 1)
        return (rng.random((N_ITEMS, N_SEEDS)) < p).astype(float)

    kl = rng.gamma(2.0, 0.1, size=(N_ITEMS, N_SEEDS))[:1, :1]  # one figure of each model, as the gate knows it
    return {
        "exact_match": Measured(challenger=model(gain), champion=model(0.0)),
        "kl_to_sft": Measured(challenger=kl, champion=kl),
    }


def test_the_interval_is_that_of_the_normal_approximation_for_many_items():
    rng = np.random.default_rng(3)
    difference = rng.normal(0.2, 1.0, size=(2000, 1))
    found = improvement(difference, np.zeros_like(difference), n_resamples=4000, level=0.95, seed=0)
    half = 1.96 * difference.std() / math.sqrt(len(difference))
    assert found.mean == pytest.approx(difference.mean())
    assert found.low == pytest.approx(difference.mean() - half, abs=0.1 * half)
    assert found.high == pytest.approx(difference.mean() + half, abs=0.1 * half)


def test_seeds_that_disagree_widen_the_interval():
    rng = np.random.default_rng(4)
    steady = np.repeat(rng.normal(0, 1, size=(200, 1)), 4, axis=1)
    shaky = steady + rng.normal(0, 2, size=(200, 4))
    narrow = improvement(steady, np.zeros_like(steady), n_resamples=2000, level=0.95, seed=0)
    wide = improvement(shaky, np.zeros_like(shaky), n_resamples=2000, level=0.95, seed=0)
    assert wide.high - wide.low > 1.2 * (narrow.high - narrow.low)


def test_weights_are_those_of_a_weighted_mean():
    values = np.array([[1.0], [3.0]])
    found = improvement(
        values, np.zeros_like(values), weights=np.array([3.0, 1.0]), n_resamples=100, level=0.95, seed=0
    )
    assert found.mean == pytest.approx(1.5)
    assert (found.low, found.high) == (1.0, 3.0)


def promotions(gain: float, n_trials: int) -> int:
    return sum(decide(answers(np.random.default_rng(1000 + trial), gain), RULES).promotes for trial in range(n_trials))


def test_a_worse_challenger_is_never_promoted():
    assert promotions(-0.15, 40) == 0


def test_an_equal_challenger_is_promoted_in_at_most_one_trial_of_twenty():
    assert promotions(0.0, 400) <= 20


def test_a_clearly_better_challenger_is_promoted():
    assert promotions(0.15, 40) >= 38


def test_a_guarded_metric_beyond_its_limit_refuses_with_a_reason():
    measured = answers(np.random.default_rng(0), 0.3)
    kl = measured["kl_to_sft"].champion
    measured["kl_to_sft"] = Measured(challenger=kl + 0.6, champion=kl)
    decision = decide(measured, RULES)
    assert not decision.promotes
    assert decision.reasons == ["kl_to_sft worsens by 0.6000, more than its limit of 0.5"]


def test_findings_of_the_audit_refuse_whatever_the_figures_say():
    decision = decide(answers(np.random.default_rng(0), 0.3), RULES, findings=["the audit has 1 finding"])
    assert decision.reasons == ["the audit has 1 finding"]


def test_less_is_better_where_it_is():
    ones = np.ones((50, 1))
    rules = Rules(metric="bits_per_byte", margin=0.0, guards={}, n_resamples=200)
    assert decide({"bits_per_byte": Measured(challenger=0.9 * ones, champion=ones)}, rules).promotes
    assert not decide({"bits_per_byte": Measured(challenger=1.1 * ones, champion=ones)}, rules).promotes


def test_tables_of_other_shapes_are_refused():
    with pytest.raises(ValueError, match="one shape"):
        improvement(np.zeros((3, 1)), np.zeros((4, 1)), n_resamples=10, level=0.95, seed=0)
