"""Sliding windows, the rolling cache and chunks of a prompt, against transformers' Mistral and full recomputation."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from transformers import MistralForCausalLM

from axon_models.checkpoint import load
from axon_models.layers.attend import banded
from axon_models.layers.rolling_cache import RollingCache
from tests.axon_models.small import some_tokens
from tests.parity.compare import (
    assert_cached_is_uncached,
    assert_same,
    assert_same_when_padded,
    reference,
    small,
    without_padding,
)

SHAPES = {
    "own_window": {},
    "mha_window_of_one": {"kv_heads": 4, "window": 1},
    "mqa": {"kv_heads": 1, "window": 5},
    "window_past_the_text": {"window": 23},
    "no_window": {"window": None},
    "odd": {"d_model": 30, "heads": 5, "n_layers": 1, "vocab_size": 131, "window": 3, "tied_embeddings": False},
}


@pytest.mark.parametrize("shape", SHAPES)
def test_logits_and_gradients_equal_mistrals(shape: str, tmp_path: Path) -> None:
    ours = small("mistral", **SHAPES[shape])
    theirs = reference(ours, tmp_path)
    assert type(theirs) is MistralForCausalLM
    assert_same(ours, theirs)
    assert_same_when_padded(ours, theirs)
    assert load(tmp_path).config == ours.config


@pytest.mark.parametrize("window", [1, 7, 128, 200])
def test_a_band_in_chunks_of_queries_is_a_masked_dense_reference(window: int) -> None:
    """290 queries are chunks of 128, 128 and 34; values and gradients."""
    generator = torch.Generator().manual_seed(5)
    q, k, v = (torch.randn(2, 290, n, 6, generator=generator, requires_grad=True) for n in (4, 2, 2))
    places = torch.arange(290)
    distance = places[:, None] - places
    band = (distance >= 0) & (distance < window)
    wanted = F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v)), attn_mask=band, enable_gqa=True)
    weight = torch.randn(2, 290, 4, 6, generator=generator)
    found = banded(q, k, v, window)
    torch.testing.assert_close(found, wanted.transpose(1, 2), atol=1e-5, rtol=0)
    ours = torch.autograd.grad((found * weight).sum(), (q, k, v))
    theirs = torch.autograd.grad((wanted.transpose(1, 2) * weight).sum(), (q, k, v))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def test_a_long_text_equals_mistrals(tmp_path: Path) -> None:
    ours = small("mistral", max_positions=300, window=140, init_std=0.15)
    theirs = reference(ours, tmp_path)
    tokens = without_padding(some_tokens(2, 291))
    torch.testing.assert_close(ours(tokens), theirs(tokens).logits, atol=1e-4, rtol=0)


@pytest.mark.parametrize("rolling", [False, True])
@pytest.mark.parametrize(
    "chunks",
    [(9, 7, 1, 1, 5), (1,) * 23, (23,), (20, 1, 1, 1), (6, 6, 6, 1, 1, 1), (40, 10, 1, 1)],
)
def test_cached_is_uncached_in_chunks_of_any_length(rolling: bool, chunks: tuple[int, ...]) -> None:
    assert_cached_is_uncached(small("mistral", window=6), rolling=rolling, chunks=chunks)


@torch.no_grad()
def test_a_rolling_cache_of_one_window_serves_many_windows() -> None:
    model, tokens = small("mistral", window=5), some_tokens(1, 60)
    cache = model.new_cache(1, 60, rolling=True)
    assert isinstance(cache, RollingCache)
    assert cache.keys.shape[3] == 6  # the window and a slot for what is not kept
    parts = [model(tokens[:, p : p + 1], positions=torch.tensor([[p]]), cache=cache) for p in range(60)]
    torch.testing.assert_close(torch.cat(parts, 1), model(tokens), atol=1e-4, rtol=0)
    assert sorted(cache.held[0].tolist()) == [-1, 55, 56, 57, 58, 59]


@torch.no_grad()
def test_rows_of_different_lengths_roll_on_by_themselves() -> None:
    model, lengths = small("mistral", window=4), (11, 3, 7)
    texts = [some_tokens(1, n + 6, seed=n) for n in lengths]
    places = torch.arange(11).expand(3, -1)
    real = places < torch.tensor(lengths)[:, None]
    prompts = torch.stack([F.pad(text[0, :n], (0, 11 - n)) for text, n in zip(texts, lengths, strict=True)])
    cache = model.new_cache(3, 17, rolling=True)
    logits = model(prompts, positions=torch.where(real, places, -1), cache=cache)
    for row, (text, n) in enumerate(zip(texts, lengths, strict=True)):
        torch.testing.assert_close(logits[row, :n], model(text)[0, :n], atol=1e-4, rtol=0)
    rows = torch.tensor([2, 0])  # the second row is done
    cache.keep_rows(rows)
    for step in range(6):
        positions = torch.tensor([[lengths[row] + step] for row in rows.tolist()])
        tokens = torch.stack([texts[row][0, lengths[row] + step : lengths[row] + step + 1] for row in rows.tolist()])
        logits = model(tokens, positions=positions, cache=cache)
        for place, row in enumerate(rows.tolist()):
            wanted = model(texts[row])[0, lengths[row] + step]
            torch.testing.assert_close(logits[place, 0], wanted, atol=1e-4, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("n_slots", [1, 3, None])
@pytest.mark.parametrize("again", [(4,), (3, 4), (2, 3, 4, 5), (5,), (0, 1, 2)])
def test_a_row_goes_on_from_a_position_that_it_already_has(again: tuple[int, ...], n_slots: int | None) -> None:
    """What stood there and behind it is forgotten; a buffer that began small has grown to the window."""
    model, old, new = small("mistral", window=6), some_tokens(1, 6, seed=1), some_tokens(1, 9, seed=2)
    sizes = {"n_layers": model.config.n_layers, "kv_heads": model.config.kv_heads, "head_dim": model.config.head_dim}
    cache = RollingCache(**sizes, batch=1, window=6, n_slots=n_slots)
    for n in range(6):
        cache.reserve(n + 1)
        model(old[:, n : n + 1], positions=torch.tensor([[n]]), cache=cache)
    whole = torch.cat([old[:, : again[0]], new[:, again[0] :]], dim=1)
    first = model(new[:, list(again)], positions=torch.tensor([again]), cache=cache)
    torch.testing.assert_close(first, model(whole)[:, list(again)], atol=1e-4, rtol=0)
    rest = torch.arange(again[-1] + 1, 9)
    cache.reserve(9)
    found = model(new[:, rest], positions=rest[None], cache=cache)
    torch.testing.assert_close(found, model(whole)[:, rest], atol=1e-4, rtol=0)


@torch.no_grad()
def test_a_mask_over_positions_and_the_window_both_hold() -> None:
    """Positions 2 to 4 hidden from everybody: with either cache and without one."""
    model, tokens = small("mistral", window=6), some_tokens(1, 12)
    seen = torch.ones(12, 12, dtype=torch.bool).tril()
    seen[5:, 2:5] = False
    whole = model(tokens, mask=seen[None, None])
    assert not torch.allclose(whole, model(tokens), atol=1e-2)
    additive = torch.zeros(12, 12).masked_fill(~seen, float("-inf"))[None, None]
    torch.testing.assert_close(model(tokens, mask=additive), whole)
    for rolling in (False, True):
        cache, parts = model.new_cache(1, 12, rolling=rolling), []
        for start, end in ((0, 5), (5, 11), (11, 12)):
            positions = torch.arange(start, end)[None]
            mask = seen[None, None, start:end, :end]
            parts.append(model(tokens[:, start:end], positions=positions, mask=mask, cache=cache))
        torch.testing.assert_close(torch.cat(parts, 1), whole, atol=1e-4, rtol=0)


def test_a_model_with_dense_layers_has_no_rolling_cache() -> None:
    for preset in ("gpt3_sparse", "x_llama"):
        with pytest.raises(ValueError, match="layers that see them all"):
            small(preset).new_cache(1, 8, rolling=True)
