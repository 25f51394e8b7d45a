"""Whole rows, as the pipeline trains, samples and scores: the same as segment after segment with a memory."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from axon_models.generation.answers import Request
from axon_models.generation.batcher import answer
from axon_models.generation.beams import BeamSettings, beam_search
from axon_models.generation.engine import generate
from axon_models.generation.rows import ModuleRows, rows_for
from axon_models.generation.sampling import Sampling, uniforms
from axon_models.layers.cache import KVCache
from axon_models.layers.language_model import ScalarModel, scalar_head
from axon_models.layers.rolling_cache import RollingCache
from axon_models.memory.model import TransformerXL
from tests.axon_models.memory import naive
from tests.axon_models.memory.small import read, small_model, some_tokens

LENGTHS = [{}, {"memory_length": 0}, {"memory_length": 2}, {"segment_length": 1}, {"segment_length": 64}]


def by_segments(model: TransformerXL, tokens: Tensor) -> Tensor:
    """Logits of texts, one segment after another, the memory handed on by the caller."""
    parts, memory = [], None
    for part in tokens.split(model.config.segment_length, dim=1):
        logits, memory = read(model, part, memory)
        parts.append(logits)
    return torch.cat(parts, dim=1)


def gradients(model: TransformerXL, logits: Tensor) -> dict[str, Tensor]:
    """Of a sum in which every logit counts otherwise."""
    weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(4), dtype=logits.dtype)
    names, parameters = zip(*model.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad((logits * weights).sum(), parameters), strict=True))


@pytest.mark.parametrize("lengths", LENGTHS)
def test_a_row_is_its_segments_one_after_another_and_learns_as_they_do(lengths: dict[str, int]) -> None:
    model, tokens = small_model(**lengths).double(), some_tokens(2, 23)
    whole, parts = model(tokens), by_segments(model, tokens)
    assert parts.std() > 0.3
    torch.testing.assert_close(whole, parts)
    torch.testing.assert_close(gradients(model, whole), gradients(model, parts))


def test_memory_reaches_the_next_segments_and_no_gradient_goes_back() -> None:
    model, tokens = small_model().double(), some_tokens(1, 12)
    forgetful = TransformerXL(replace(model.config, memory_length=0)).double()
    forgetful.load_state_dict(model.state_dict())
    one, other = model(tokens), forgetful(tokens)
    torch.testing.assert_close(one[:, :5], other[:, :5])
    assert (one[:, 5:] - other[:, 5:]).abs().amax(-1).min() > 1e-3, "a token of a later segment saw no memory"
    x = model.embed(tokens).detach().requires_grad_()
    (model.through(x, slice(None))[:, 5:] ** 2).sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad[:, :5], torch.zeros_like(x.grad[:, :5]))
    assert x.grad[:, 5:].abs().amax(-1).min() > 0


def test_a_token_sees_back_to_the_start_of_its_segments_memory() -> None:
    """Of one layer, where nothing is handed on: position 12 is in the segment from 10, whose memory begins at 3."""
    model, tokens = small_model(n_layers=1), some_tokens(1, 13)
    logits = model(tokens)
    for place in range(13):
        changed = tokens.clone()
        changed[0, place] = (changed[0, place] + 1) % 23
        moved = not torch.allclose(model(changed)[0, 12], logits[0, 12], atol=1e-6)
        assert moved == (place >= 3), f"place {place}"
        assert torch.equal(model(changed)[0, :place], logits[0, :place]), "the future leaks"


@pytest.mark.parametrize("lengths", LENGTHS)
def test_texts_packed_into_a_row_are_as_if_they_stood_alone(lengths: dict[str, int]) -> None:
    model = small_model(**lengths).double()
    texts = [some_tokens(1, n, seed=n) for n in (13, 4, 9)]
    segments = torch.tensor([0] * 13 + [1] * 4 + [2] * 9 + [-1] * 2)
    positions = torch.cat([torch.arange(n) for n in (13, 4, 9)] + [torch.zeros(2, dtype=torch.int64)])[None]
    tokens = torch.cat([*texts, some_tokens(1, 2)], dim=1)
    mask = (segments[:, None] == segments).tril()[None, None]  # (1, 1, T, T)
    packed, alone = model(tokens, positions=positions, mask=mask)[:, :-2], [model(text) for text in texts]
    torch.testing.assert_close(packed, torch.cat(alone, dim=1))
    torch.testing.assert_close(gradients(model, packed), gradients(model, torch.cat(alone, dim=1)))


def test_a_mask_that_hides_nothing_more_changes_nothing_and_padding_gives_numbers() -> None:
    model, tokens = small_model(), some_tokens(2, 17)
    causal = torch.ones(17, 17, dtype=torch.bool).tril()[None, None]
    torch.testing.assert_close(model(tokens, mask=causal), model(tokens))
    torch.testing.assert_close(model(tokens, positions=torch.arange(17).expand(2, -1)), model(tokens))
    mask = causal.clone()
    mask[..., :3, :] = False  # padding, which sees nothing
    mask[..., :3] = False
    logits = model(tokens, mask=mask, positions=(torch.arange(17) - 3).clamp(min=0).expand(2, -1))
    assert logits.isfinite().all()
    torch.testing.assert_close(logits[:, 3:], model(tokens[:, 3:]))


@pytest.mark.parametrize("at_left", [False, True])
def test_padded_rows_are_the_papers_formula_row_by_row_and_learn_as_it_does(at_left: bool) -> None:
    model, tokens, places, lengths = small_model().double(), some_tokens(3, 13), torch.arange(13), (13, 6, 1)
    ends = torch.tensor(lengths)[:, None]
    real = places >= 13 - ends if at_left else places < ends  # (B, T)
    positions, mask = (real.cumsum(1) - 1).clamp(min=0), real[:, None, None] & (places <= places[:, None])
    logits = (model(tokens, positions=positions, mask=mask) if at_left else model(tokens))[real]
    expected = torch.cat([naive.text(model, row[one].tolist()) for row, one in zip(tokens, real, strict=True)])
    # The sinusoids are of float32, the rest of float64.
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(gradients(model, logits), gradients(model, expected), atol=1e-5, rtol=1e-5)


def test_rows_of_several_lengths_are_each_row_alone() -> None:
    model, tokens = small_model(), some_tokens(3, 17)
    logits = model(tokens)
    for row, length in enumerate((17, 9, 2)):
        torch.testing.assert_close(logits[row, :length], model(tokens[row : row + 1, :length])[0])
    scalars = ScalarModel(model, scalar_head(12))
    torch.nn.init.normal_(scalars.head.weight, generator=torch.Generator().manual_seed(1))
    found = scalars.score(tokens, torch.tensor([17, 9, 2]))
    expected = [model.hidden(tokens[row, :n][None])[0, -1] @ scalars.head.weight[0] for row, n in enumerate((17, 9, 2))]
    torch.testing.assert_close(found, torch.stack(expected))


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("chunks", [(9, 7, 1, 1, 5), (1,) * 23, (23,)])
@torch.no_grad()
def test_cached_is_uncached(chunks: tuple[int, ...], lengths: dict[str, int]) -> None:
    model, tokens = small_model(**lengths), some_tokens(2, 23)
    cache = KVCache(n_layers=2, batch=2, length=32, kv_heads=3, head_dim=4)
    start, parts = 0, []
    for length in chunks:
        positions = torch.arange(start, start + length).expand(2, -1)
        mask = (torch.arange(start + length) <= positions[:, :, None])[:, None] if start else None
        chunk = tokens[:, start : start + length]
        parts.append(model(chunk, positions=positions if start else None, mask=mask, cache=cache))
        start += length
    torch.testing.assert_close(torch.cat(parts, dim=1), model(tokens), atol=1e-4, rtol=0)


def recomputed(model: TransformerXL, prompt: list[int], n: int, row: int) -> list[int]:
    """Tokens drawn one after another, each from all of the text before it anew."""
    tokens = list(prompt)
    for draw in uniforms(7, row, n):
        logits = model(torch.tensor([tokens]))[:, -1]
        tokens.append(int(Sampling().choose(logits, torch.tensor([draw], dtype=torch.float64))))
    return tokens[len(prompt) :]


@torch.no_grad()
def test_every_way_to_generate_is_full_recomputation() -> None:
    model = small_model()
    prompts = [some_tokens(n, seed=n).tolist() for n in (11, 3, 1)]
    expected = [recomputed(model, prompt, 14, row) for row, prompt in enumerate(prompts)]
    assert len({token for one in expected for token in one}) > 8
    assert generate(model, prompts, max_new_tokens=14, temperature=1.0, seed=7, prompt_length=16) == expected
    draws = {"max_new_tokens": 14, "sampling": Sampling(), "seed": 7}
    requests = [Request(prompt=prompt, row=row, **draws) for row, prompt in enumerate(prompts)]
    for max_rows in (1, 2, 3):
        assert [list(found.tokens) for found in answer(model, requests, max_rows=max_rows)] == expected


@torch.no_grad()
def test_beams_have_the_scores_of_full_recomputation() -> None:
    model, prompt = small_model(), some_tokens(9).tolist()
    for found in beam_search(model, prompt, max_new_tokens=8, settings=BeamSettings(beams=3), chunk=4):
        tokens = torch.tensor([[*prompt, *found.tokens]])
        logprobs = model(tokens[:, :-1]).log_softmax(-1)[0, 8:]
        torch.testing.assert_close(torch.tensor(found.logprobs), logprobs.gather(1, tokens[0, 9:, None])[:, 0])


def test_its_rows_are_those_of_its_own_modules() -> None:
    assert type(rows_for(small_model(), n_rows=1, length=8, chunk=4)) is ModuleRows


def test_what_it_cannot_read_is_refused() -> None:
    model, tokens = small_model(), some_tokens(1, 5)
    with pytest.raises(ValueError, match=r"must be bool, True where seen, not torch\.float32"):
        model(tokens, mask=torch.zeros(1, 1, 5, 5))
    with pytest.raises(ValueError, match="keeps keys and values in a KVCache, not in a RollingCache"):
        model(tokens, cache=RollingCache(n_layers=2, batch=1, window=4, kv_heads=3, head_dim=4))
    with pytest.raises(ValueError, match="65 tokens exceed max_positions=64"):
        model(some_tokens(1, 65))
