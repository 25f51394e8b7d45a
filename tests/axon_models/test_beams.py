"""Beam search against trying every answer, and against greedy decoding."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from axon_models import beam_search, generate
from axon_models.decoder.model import Decoder
from axon_models.errors import ScoresError
from axon_models.generation.beams import BeamSettings
from axon_models.generation.vocabulary import Vocabulary
from tests.axon_models.small import small_decoder, some_tokens

EOS = 2


def every_answer(model: Decoder, prompt: list[int], n: int, vocab_size: int) -> dict[tuple[int, ...], float]:
    """The log-probability of every answer of at most `n` tokens that ends with EOS or has `n`."""
    whole = [torch.tensor([*prompt, *tail]) for tail in itertools.product(range(vocab_size), repeat=n)]
    with torch.no_grad():
        logprobs = model(torch.stack(whole)).double().log_softmax(-1)
    found = {}
    for row, text in enumerate(whole):
        answer = text[len(prompt) :].tolist()
        length = answer.index(EOS) + 1 if EOS in answer else n
        places = range(len(prompt) - 1, len(prompt) - 1 + length)
        found[tuple(answer[:length])] = float(sum(logprobs[row, place, text[place + 1]] for place in places))
    return found


@pytest.mark.parametrize("length_penalty", [-0.5, 0.0, 1.0, 2.0])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_full_width_finds_the_best_of_all_answers(length_penalty: float, seed: int) -> None:
    vocab_size, n = 4, 4
    model = small_decoder(seed, vocab_size=vocab_size)
    prompt = some_tokens(5, vocab_size=vocab_size, seed=seed).tolist()
    scored = every_answer(model, prompt, n, vocab_size)
    ranked = sorted(scored, key=lambda answer: -scored[answer] / len(answer) ** length_penalty)
    settings = BeamSettings(beams=vocab_size**n, length_penalty=length_penalty)
    answers = beam_search(model, prompt, max_new_tokens=n, settings=settings, eos_id=EOS)
    assert [answer.tokens for answer in answers] == ranked
    assert {answer.reason for answer in answers} == {"eos", "length"}
    for answer in answers:
        assert sum(answer.logprobs) == pytest.approx(scored[answer.tokens], abs=1e-4)


@pytest.mark.parametrize("early_stopping", [True, False, "never"])
def test_one_beam_is_greedy(early_stopping: Any) -> None:
    model = small_decoder()
    for seed in range(6):
        prompt = some_tokens(3 + seed, seed=seed).tolist()
        (greedy,) = generate(model, [prompt], max_new_tokens=20, temperature=0, eos_id=8)
        settings = BeamSettings(beams=1, early_stopping=early_stopping)
        (answer,) = beam_search(model, prompt, max_new_tokens=20, settings=settings, eos_id=8)
        assert list(answer.tokens) == greedy


def test_prepared_and_plain_steps_find_the_same() -> None:
    model, prompt = small_decoder(), some_tokens(9).tolist()
    both = [beam_search(model, prompt, max_new_tokens=12, eos_id=8, prepare=prepare) for prepare in (True, False)]
    assert [a.tokens for a in both[0]] == [a.tokens for a in both[1]]
    assert len(both[0]) == 4


def test_mistakes_are_refused() -> None:
    model = small_decoder()
    with pytest.raises(ValueError, match="the prompt has 61 tokens; with max_new_tokens=4 at most 60"):
        beam_search(model, [1] * 61, max_new_tokens=4)
    for arguments, expected in (
        ({"beams": 0}, "beams=0 must be at least 1"),
        ({"length_penalty": float("nan")}, "length_penalty=nan must be"),
        ({"early_stopping": "maybe"}, "early_stopping='maybe' must be"),
    ):
        with pytest.raises(ValueError, match=expected):
            BeamSettings(**arguments)  # type: ignore[arg-type]
    with torch.no_grad():
        model.norm.weight[0] = float("nan")
    with pytest.raises(ScoresError, match="champion gives scores"):
        beam_search(model, [1], max_new_tokens=4, name="champion")


def test_text_is_decoded() -> None:
    model = small_decoder()
    numbers = Vocabulary(pieces={token: f"{token}-".encode() for token in range(model.config.vocab_size)})
    answers = beam_search(model, [1, 2], max_new_tokens=3, vocabulary=numbers)
    assert all(answer.text == "".join(f"{token}-" for token in answer.tokens) for answer in answers)
