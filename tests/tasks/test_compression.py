"""Baselines against arithmetic done by hand."""

from __future__ import annotations

import lzma
import zlib

import numpy as np
import pytest

from tasks.evaluation.compression import baselines, ngram_bits, ngram_probabilities

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
