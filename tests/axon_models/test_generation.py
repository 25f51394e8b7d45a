from __future__ import annotations

import pytest
import torch

from axon_models import generate
from axon_models.decoder.model import Decoder
from axon_models.generation.sampling import Sampling, uniforms
from tests.axon_models.small import small_decoder, some_tokens

PROMPTS = [some_tokens(n, seed=n).tolist() for n in (3, 20, 1, 11, 7)]


def recomputed(model: Decoder, prompt: list[int], row: int, n: int, sampling: Sampling, seed: int) -> list[int]:
    """The slow path: the whole sequence again for every token."""
    tokens, draws = list(prompt), uniforms(seed, row, n)
    with torch.no_grad():
        for step in range(n):
            logits = model(torch.tensor([tokens]))[:, -1]
            tokens.append(int(sampling.choose(logits, torch.tensor([draws[step]], dtype=torch.float64))))
    return tokens[len(prompt) :]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("kv_heads", [1, 2, 6])
def test_cached_generation_is_full_recomputation(temperature: float, kv_heads: int) -> None:
    model = small_decoder(kv_heads=kv_heads)
    answers = generate(model, PROMPTS, max_new_tokens=17, temperature=temperature, prompt_length=20, seed=9)
    sampling = Sampling(temperature=temperature)
    assert answers == [recomputed(model, p, row, 17, sampling, 9) for row, p in enumerate(PROMPTS)]


def test_a_row_depends_on_nothing_beside_it() -> None:
    model = small_decoder()
    together = generate(model, PROMPTS * 5, max_new_tokens=12, eos_id=8, prompt_length=21, seed=3)
    for others in ([[1, 2, 3]], [[5] * 20] * 40):
        again = generate(model, [PROMPTS[0], *others], max_new_tokens=12, eos_id=8, prompt_length=21, seed=3)
        assert again[0] == together[0]


def test_rows_end_with_eos_and_the_rest_go_on() -> None:
    model, prompts = small_decoder(), [some_tokens(4, seed=n).tolist() for n in range(50)]
    whole = generate(model, prompts, max_new_tokens=24, prompt_length=8, seed=5)
    ended = generate(model, prompts, max_new_tokens=24, prompt_length=8, seed=5, eos_id=7)
    assert len({len(answer) for answer in ended}) > 5  # rows end at many steps, so buffers shrink on the way
    for full, cut in zip(whole, ended, strict=True):
        end = full.index(7) + 1 if 7 in full else 24
        assert cut == full[:end]


def test_a_stream_hears_every_token_in_order() -> None:
    heard: dict[int, list[int]] = {row: [] for row in range(len(PROMPTS))}
    answers = generate(
        small_decoder(),
        PROMPTS,
        max_new_tokens=9,
        eos_id=8,
        stream=lambda row, token: heard[row].append(token),
    )
    assert [heard[row] for row in range(len(PROMPTS))] == answers


def test_the_seed_decides() -> None:
    model = small_decoder()
    one, same, other = (generate(model, PROMPTS, max_new_tokens=9, seed=seed) for seed in (1, 1, 2))
    assert one == same
    assert one != other


@pytest.mark.parametrize("arguments", [{"top_k": 1}, {"top_p": 1e-9}])
def test_the_narrowest_tail_is_greedy(arguments: dict[str, float]) -> None:
    model = small_decoder()
    greedy = generate(model, PROMPTS, max_new_tokens=9, temperature=0)
    assert generate(model, PROMPTS, max_new_tokens=9, **arguments) == greedy  # type: ignore[arg-type]


def test_samples_follow_the_probabilities() -> None:
    p = torch.tensor([0.1, 0.0, 0.4, 0.2, 0.3])
    draws = torch.tensor([0.0, 0.0999, 0.1001, 0.4999, 0.5001, 0.6999, 0.7001, 0.99999], dtype=torch.float64)
    logits = p.log().expand(8, 5)
    assert Sampling().choose(logits, draws).tolist() == [0, 0, 2, 2, 3, 3, 4, 4]
    # Descending: 2 (0.4), 4 (0.3), 3 (0.2), 0 (0.1). Two are left by top_k=2, three are needed for top_p=0.75.
    assert Sampling(top_k=2).choose(logits, draws).tolist() == [2, 2, 2, 2, 2, 4, 4, 4]
    assert set(Sampling(top_p=0.75).choose(logits, draws).tolist()) == {2, 3, 4}
    assert set(Sampling(top_p=0.65).choose(logits, draws).tolist()) == {2, 4}


def test_temperature_sharpens() -> None:
    logits = torch.tensor([[0.0, 1.0]])
    threshold = float(torch.tensor([0.0, 2.0]).softmax(-1)[0])
    for shift, token in ((-1e-4, 0), (1e-4, 1)):
        draw = torch.tensor([threshold + shift], dtype=torch.float64)
        assert Sampling(temperature=0.5).choose(logits, draw).tolist() == [token]


def test_a_rows_draws_depend_on_seed_and_row_alone() -> None:
    assert uniforms(1, 2, 3) == uniforms(1, 2, 10)[:3]
    assert uniforms(1, 2, 3) != uniforms(2, 1, 3)
    mean = sum(uniforms(0, 0, 10_000)) / 10_000
    assert mean == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize(
    ("prompts", "arguments", "expected"),
    [
        ([[]], {}, "prompt 0 is empty"),
        ([[1], [2] * 61], {}, "prompt 1 has 61 tokens, more than prompt_length=60"),
        ([[67]], {}, "prompt 0 has a token outside 0 … 66"),
        ([[1]], {"kv_length": 65}, "kv_length=65 must be at most the model's max_positions=64"),
        ([[1]], {"prompt_length": 61}, "prompt_length=61 must be at least 1 and leave max_new_tokens=4"),
        ([[1]], {"max_new_tokens": 0}, "max_new_tokens=0 must be at least 1"),
        ([[1]], {"temperature": -1.0}, "temperature=-1.0"),
        ([[1]], {"top_p": 1.5}, "top_p=1.5"),
        ([[1]], {"top_k": 0}, "top_k=0"),
    ],
)
def test_mistakes_are_refused(prompts: list[list[int]], arguments: dict[str, object], expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        generate(small_decoder(), prompts, **{"max_new_tokens": 4, **arguments})  # type: ignore[arg-type]


def test_no_prompts_give_no_answers() -> None:
    assert generate(small_decoder(), [], max_new_tokens=4) == []
