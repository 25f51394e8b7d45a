"""What simple models and general compressors need for the held-out text, in bits per byte.

n-grams are interpolated by Witten and Bell's method (Witten and Bell 1991; Chen and Goodman 1999, eq. 16), which has
no constant to tune, and end in the uniform distribution:

    p(w | h) = (c(h w) + t(h) p(w | h')) / (c(h) + t(h))

where c counts in the training sequence, t(h) is the number of distinct words seen after h, and h' is h without its
first word. A context never seen gives p(w | h').

Sequences are read a chunk at a time; what is held is a chunk, the distinct n-grams of one order, and a number for each
place of the test sequence.
"""

from __future__ import annotations

import lzma
import zlib
from collections.abc import Iterator, Sequence

import numpy as np

_CHUNK = 2**21  # places that are counted, or predicted, at a time


def _lookup(keys: np.ndarray, values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """values[i] where keys[i] == wanted (keys sorted and distinct), 0 where it is absent."""
    if not len(keys):
        return np.zeros(len(wanted), dtype=np.int64)
    places = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[places] == wanted, values[places], 0)


def ngram_probabilities(train: np.ndarray, test: np.ndarray, *, order: int, n_symbols: int) -> np.ndarray:
    """p(test[i] | the `order` - 1 symbols before) for every place, (len(test),) float64.

    `train` and `test` are 1-D integer arrays with values in [0, n_symbols). A place with fewer symbols before it
    is predicted from those there are. Raises ValueError when a context does not fit in 63 bits.
    """
    if n_symbols**order >= 2**63:
        raise ValueError(f"n-grams of order {order} over {n_symbols} symbols do not fit in 63 bits")
    probabilities = np.full(len(test), 1.0 / n_symbols)
    for n in range(1, min(order, len(train)) + 1):
        grams, counts = _counted(train, n, n_symbols)
        contexts = grams // n_symbols  # sorted, since grams are
        firsts = np.flatnonzero(np.diff(contexts, prepend=-1))
        contexts, context_counts = contexts[firsts], np.add.reduceat(counts, firsts)
        kinds = np.diff(firsts, append=len(grams))
        for first, wanted in _chunks(test, n, n_symbols):
            seen = _lookup(contexts, context_counts, wanted // n_symbols)
            distinct = _lookup(contexts, kinds, wanted // n_symbols)
            places = slice(first + n - 1, first + n - 1 + len(wanted))  # of the last symbols of the n-grams
            lower = probabilities[places]
            mixed = (_lookup(grams, counts, wanted) + distinct * lower) / np.maximum(seen + distinct, 1)
            probabilities[places] = np.where(seen > 0, mixed, lower)
    return probabilities


def _counted(symbols: np.ndarray, n: int, n_symbols: int) -> tuple[np.ndarray, np.ndarray]:
    """(the distinct runs of n symbols as numbers, ascending; how often each is there)."""
    grams, counts = np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)
    for _, found in _chunks(symbols, n, n_symbols):
        more, times = np.unique(found, return_counts=True)
        both, places = np.unique(np.concatenate([grams, more]), return_inverse=True)
        summed = np.zeros(len(both), dtype=np.int64)
        summed[places[: len(grams)]] += counts  # each part has a number once
        summed[places[len(grams) :]] += times
        grams, counts = both, summed
    return grams, counts


def _chunks(symbols: np.ndarray, n: int, n_symbols: int) -> Iterator[tuple[int, np.ndarray]]:
    """(place of the first, numbers) of the runs of n symbols, at most `_CHUNK` of them at a time."""
    for first in range(0, len(symbols) - n + 1, _CHUNK):
        yield first, _grams(symbols[first : first + _CHUNK + n - 1].astype(np.int64), n, n_symbols)


def _grams(symbols: np.ndarray, n: int, n_symbols: int) -> np.ndarray:
    """Each run of n symbols as one number, (len - n + 1,) int64."""
    length = max(0, len(symbols) - n + 1)
    codes = np.zeros(length, dtype=np.int64)
    for offset in range(n):
        codes = codes * n_symbols + symbols[offset : offset + length]
    return codes


def ngram_bits(
    train: np.ndarray, test: np.ndarray, *, order: int, n_symbols: int, separator: int | None = None
) -> float:
    """Bits for the test sequence; the separator between documents serves as context but is not paid for, since no
    byte of text stands for it."""
    probabilities = ngram_probabilities(train, test, order=order, n_symbols=n_symbols)
    if separator is not None:
        probabilities = probabilities[test != separator]
    return float(-np.log2(probabilities).sum())


def baselines(
    *,
    train_tokens: np.ndarray,
    test_tokens: np.ndarray,
    train_bytes: bytes,
    test_texts: Sequence[str],
    vocab_size: int,
    separator: int,
) -> dict[str, float]:
    """Bits per byte of held-out text by name. zlib and xz see the test text alone, joined by line ends.

    Held are the texts as they are given, and the counts of the tokens' 3-grams: `spread` bounds both.
    """
    n_bytes = sum(len(text.encode()) for text in test_texts)
    joined = "\n".join(test_texts).encode()
    as_array = {"train": np.frombuffer(train_bytes, np.uint8), "test": np.frombuffer(joined, np.uint8)}
    bits = {
        "token_unigram": ngram_bits(train_tokens, test_tokens, order=1, n_symbols=vocab_size, separator=separator),
        "token_3gram": ngram_bits(train_tokens, test_tokens, order=3, n_symbols=vocab_size, separator=separator),
        "byte_3gram": ngram_bits(as_array["train"], as_array["test"], order=3, n_symbols=256),
        "zlib": 8.0 * len(zlib.compress(joined, 9)),
        "xz": 8.0 * len(lzma.compress(joined, preset=9 | lzma.PRESET_EXTREME)),
    }
    return {name: round(total / n_bytes, 6) for name, total in bits.items()}


def spread(sizes: Sequence[int], at_most: int) -> list[int]:
    """The places of documents that are evenly spread and whose sizes are together at most `at_most`: all of them if
    they fit, and the smallest alone, of whatever size, if none of them does."""
    total, taken, passed = sum(sizes), 0, 0
    chosen = []
    for place, size in enumerate(sizes):
        passed += size
        if (taken + size) * total <= at_most * passed:
            taken += size
            chosen.append(place)
    if sizes and not chosen:
        chosen = [min(range(len(sizes)), key=lambda place: sizes[place])]
    return chosen
