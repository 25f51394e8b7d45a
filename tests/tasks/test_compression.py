"""Baselines against arithmetic done by hand."""

from __future__ import annotations

import lzma
import tracemalloc
import zlib
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.evaluation import compression
from tasks.evaluation.compression import baselines, ngram_bits, ngram_probabilities, spread

# Training sequence 0 0 1 0 over three symbols: c(0)=3, c(1)=1, two distinct symbols in four places.
TRAIN = np.array([0, 0, 1, 0])
P0, P1, P2 = (3 + 2 / 3) / 6, (1 + 2 / 3) / 6, (2 / 3) / 6


def test_unigram_by_hand() -> None:
    found = ngram_probabilities(TRAIN, np.array([0, 1, 2]), order=1, n_symbols=3)
    assert found == pytest.approx([P0, P1, P2])
    assert sum(found) == pytest.approx(1)


def test_bigram_by_hand() -> None:
    # After 0 (twice): 0 once and 1 once, so t=2: p(1|0) = (1 + 2 P1)/4. After 1 (once): 0. After 2: never seen.
    found = ngram_probabilities(TRAIN, np.array([0, 1, 1, 2, 2]), order=2, n_symbols=3)
    expected = [P0, (1 + 2 * P1) / 4, (0 + 1 * P1) / 2, (0 + 1 * P2) / 2, P2]
    assert found == pytest.approx(expected)


def test_distributions_of_order_three_sum_to_one() -> None:
    generator = np.random.default_rng(0)
    train = generator.integers(0, 4, 200)
    for context in ([0, 1], [3, 3]):
        rows = [np.array([*context, symbol]) for symbol in range(4)]
        assert sum(ngram_probabilities(train, row, order=3, n_symbols=4)[-1] for row in rows) == pytest.approx(1)


def test_separators_are_context_but_cost_nothing() -> None:
    test = np.array([1, 2, 1])
    bits = ngram_bits(TRAIN, test, order=1, n_symbols=3, separator=2)
    assert bits == pytest.approx(-2 * np.log2(P1))


def test_too_many_symbols_are_refused() -> None:
    with pytest.raises(ValueError, match="63 bits"):
        ngram_probabilities(TRAIN, TRAIN, order=3, n_symbols=2**21)


def test_baselines_are_bits_per_byte_of_the_text() -> None:
    texts = ["abab", "é"]
    found = baselines(
        train_tokens=TRAIN,
        test_tokens=np.array([0, 1, 2]),
        train_bytes=b"ab",
        test_texts=texts,
        vocab_size=3,
        separator=2,
    )
    joined = "abab\né".encode()
    assert found["token_unigram"] == pytest.approx(-np.log2(P0 * P1) / 6, abs=1e-6)
    assert found["zlib"] == pytest.approx(8 * len(zlib.compress(joined, 9)) / 6, abs=1e-6)
    assert found["xz"] == pytest.approx(8 * len(lzma.compress(joined, preset=9 | lzma.PRESET_EXTREME)) / 6, abs=1e-6)
    assert set(found) == {"token_unigram", "token_3gram", "byte_3gram", "zlib", "xz"}


def by_counting(train: list[int], before: list[int], symbol: int, n_symbols: int) -> float:
    """p(symbol | before) by the equation at the top of the file, with dictionaries."""
    lower = by_counting(train, before[1:], symbol, n_symbols) if before else 1 / n_symbols
    n = len(before) + 1
    grams = Counter(tuple(train[i : i + n]) for i in range(len(train) - n + 1))
    after = {gram[-1]: times for gram, times in grams.items() if list(gram[:-1]) == before}
    if not after:
        return lower
    return (after.get(symbol, 0) + len(after) * lower) / (sum(after.values()) + len(after))


SYMBOLS = st.lists(st.integers(0, 3), min_size=1, max_size=40)


@settings(max_examples=60, deadline=None)
@given(train=SYMBOLS, test=SYMBOLS, order=st.integers(1, 3), chunk=st.integers(1, 9))
def test_chunks_do_not_show(train: list[int], test: list[int], order: int, chunk: int) -> None:
    arrays = np.array(train, dtype=np.uint16), np.array(test, dtype=np.uint16)
    whole = ngram_probabilities(*arrays, order=order, n_symbols=4)
    expected = [by_counting(train, test[max(0, i - order + 1) : i], test[i], 4) for i in range(len(test))]
    assert whole == pytest.approx(expected)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compression, "_CHUNK", chunk)
        assert ngram_probabilities(*arrays, order=order, n_symbols=4).tolist() == whole.tolist()


def peak_bytes(n_train: int) -> int:
    train = np.random.default_rng(0).integers(0, 5, n_train).astype(np.uint16)
    tracemalloc.start()
    ngram_bits(train, train[:100], order=3, n_symbols=5)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def test_memory_is_that_of_a_chunk_and_not_of_the_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compression, "_CHUNK", 10_000)
    assert peak_bytes(400_000) < 1.2 * peak_bytes(40_000)


@settings(max_examples=200, deadline=None)
@given(sizes=st.lists(st.integers(0, 50), max_size=40), at_most=st.integers(1, 400))
def test_a_spread_of_documents_is_bounded_and_all_of_them_where_they_fit(sizes: list[int], at_most: int) -> None:
    chosen = spread(sizes, at_most)
    assert chosen == sorted(set(chosen))
    if sum(sizes) <= at_most:
        assert chosen == list(range(len(sizes)))
    else:
        assert sum(sizes[place] for place in chosen) <= max(at_most, min(sizes))
        assert chosen


def test_a_spread_is_even() -> None:
    """A tenth of every tenth of the documents, and as much as is allowed."""
    sizes = np.random.default_rng(0).integers(1, 100, 5000).tolist()
    chosen = spread(sizes, sum(sizes) // 10)
    assert sum(sizes[place] for place in chosen) == pytest.approx(sum(sizes) / 10, rel=0.01)
    for first in range(0, 5000, 500):
        there = sum(sizes[place] for place in chosen if first <= place < first + 500)
        assert there == pytest.approx(sum(sizes[first : first + 500]) / 10, rel=0.1)
