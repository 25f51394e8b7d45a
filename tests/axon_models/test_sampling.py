"""The cuts of the distribution by hand arithmetic, and the nucleus as the smallest set that is enough."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from axon_models import generate
from axon_models.errors import ScoresError
from axon_models.generation.sampling import Sampling, refuse_what_is_not_finite, uniforms
from tests.axon_models.small import small_decoder

P = torch.tensor([[0.1, 0.0, 0.4, 0.2, 0.3]])


def kept(sampling: Sampling, p: torch.Tensor = P) -> set[int]:
    return set(sampling.distribution(p.log())[0].nonzero().flatten().tolist())


def test_cuts_by_hand() -> None:
    # Descending: 2 (0.4), 4 (0.3), 3 (0.2), 0 (0.1).
    assert kept(Sampling(min_p=0.6)) == {2, 4}  # at least 0.24
    assert kept(Sampling(min_p=0.49)) == {2, 3, 4}  # at least 0.196
    assert kept(Sampling(min_p=1.0)) == {2}
    assert kept(Sampling(top_k=3, min_p=0.6)) == {2, 4}
    assert kept(Sampling(top_k=2, top_p=0.6)) == {2, 4}  # 0.4 of 0.7 is not yet 0.6
    assert kept(Sampling(top_k=2, top_p=0.5)) == {2}  # 0.4 of 0.7 is
    torch.testing.assert_close(Sampling(top_k=2).distribution(P.log())[0, [2, 4]], torch.tensor([4 / 7, 3 / 7]))
    squared = P.square() / P.square().sum()
    torch.testing.assert_close(Sampling(temperature=0.5).distribution(P.log()), squared)
    assert kept(Sampling(temperature=0)) == {2}


def test_the_penalty_moves_seen_tokens_down() -> None:
    logits = torch.tensor([[2.0, -1.0, 1.5, 0.0]])
    seen = torch.tensor([[True, True, False, True]])
    sampling = Sampling(repetition_penalty=2.0)
    expected = torch.tensor([[1.0, -2.0, 1.5, 0.0]]).softmax(-1)
    torch.testing.assert_close(sampling.distribution(logits, seen), expected)
    nothing = torch.zeros(1, dtype=torch.float64)
    assert Sampling(repetition_penalty=2.0, temperature=0).choose(logits, nothing, seen).tolist() == [2]
    assert Sampling(temperature=0).choose(logits, nothing, seen).tolist() == [0]


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.integers(1, 1000), min_size=1, max_size=30),
    st.floats(0.01, 1.0),
)
def test_the_nucleus_is_the_smallest_set_that_makes_up_top_p(weights: list[int], top_p: float) -> None:
    p = torch.tensor([weights], dtype=torch.float32)
    p /= p.sum()
    nucleus = kept(Sampling(top_p=top_p), p)
    shares = p[0].double()
    mass = float(shares[list(nucleus)].sum())
    assert mass >= top_p - 1e-5  # enough, up to float32
    least = min(float(shares[token]) for token in nucleus)
    assert mass - least < top_p + 1e-5  # and not enough without its least likely token
    assert all(float(shares[token]) <= least for token in set(range(len(weights))) - nucleus)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([{}, {"top_k": 3}, {"top_p": 0.7}, {"min_p": 0.2}, {"temperature": 0.3}]))
def test_draws_follow_the_distribution(seed: int, arguments: dict[str, float]) -> None:
    """A grid of uniform numbers falls on each token as often as its probability says."""
    sampling = Sampling(**arguments)  # type: ignore[arg-type]
    logits = torch.randn(1, 9, generator=torch.Generator().manual_seed(seed))
    n = 2000
    draws = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    counts = torch.bincount(sampling.choose(logits.expand(n, 9), draws), minlength=9) / n
    torch.testing.assert_close(counts, sampling.distribution(logits)[0], atol=2 / n, rtol=0)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"min_p": -0.1}, r"min_p=-0.1 must be in \[0, 1\]"),
        ({"min_p": 1.1}, "min_p=1.1"),
        ({"repetition_penalty": 0.0}, "repetition_penalty=0.0 must be a positive number"),
        ({"repetition_penalty": float("nan")}, "repetition_penalty=nan"),
        ({"temperature": float("nan")}, "temperature=nan"),
        ({"top_p": 0.0, "top_k": 0}, "top_k=0 .*; top_p=0.0"),
    ],
)
def test_mistakes_are_refused_together(arguments: dict[str, float], expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        Sampling(**arguments)  # type: ignore[arg-type]


def test_the_penalty_in_generate_is_that_of_full_recomputation() -> None:
    model, n = small_decoder(), 12
    prompts = [[3, 9, 9, 40], [11] * 7]
    sampling = Sampling(repetition_penalty=1.7, temperature=0.8, min_p=0.02)
    answers = generate(model, prompts, max_new_tokens=n, temperature=0.8, min_p=0.02, repetition_penalty=1.7, seed=4)
    for row, prompt in enumerate(prompts):
        tokens, draws = list(prompt), uniforms(4, row, n)
        for step in range(n):
            seen = torch.zeros(1, 67, dtype=torch.bool)
            seen[0, tokens] = True
            with torch.no_grad():
                logits = model(torch.tensor([tokens]))[:, -1]
            tokens.append(int(sampling.choose(logits, torch.tensor([draws[step]], dtype=torch.float64), seen)))
        assert answers[row] == tokens[len(prompt) :]
    assert answers != generate(model, prompts, max_new_tokens=n, temperature=0.8, min_p=0.02, seed=4)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_scores_that_are_not_finite_are_refused_with_the_models_name(value: float) -> None:
    model = small_decoder()
    with torch.no_grad():
        model.blocks[1].feed_forward.down.weight[3, 5] = value
    with pytest.raises(ScoresError, match="models/sft gives scores that are not finite"):
        generate(model, [[1, 2]], max_new_tokens=3, name="models/sft")
    refuse_what_is_not_finite(torch.zeros(2), "x")
