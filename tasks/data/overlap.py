"""No run of n words of a held-out text may stand in training text: find such runs, cut them, and prove it.

What goes is the held-out side, paragraph by paragraph. Packages repeat whole parameter descriptions, so that one run
in a test text stands in many training texts: taking those out would cost far more text than the paragraph costs the
test set, and would tie training text to the choice of test modules.

The search uses 64-bit hashes of word numbers; the proof (`count_overlaps`) reads words anew and compares the runs
themselves, so that it shares nothing with the search but the definition of a word.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

WORD = re.compile(r"\w+")
_PARAGRAPH_BREAK = re.compile(r"\n[ \t]*\n")
_BASE = np.uint64(0x100000001B3)
_SPREAD = np.uint64(0x9E3779B97F4A7C15)  # spreads the small numbers of words over 64 bits
_BREAK = 0


class RunIndex:
    """The hashes of all runs of `n_words` words of the training texts."""

    def __init__(self, training: Iterable[str], n_words: int) -> None:
        self.n_words = n_words
        self._ids: dict[str, int] = {}
        numbers: list[int] = []
        for text in training:
            numbers += self._number(WORD.findall(text))
            numbers += [_BREAK] * (n_words - 1)  # no run reaches from one text into the next
        self.hashes = np.unique(self._hash_runs(numbers))

    def _number(self, words: Iterable[str]) -> list[int]:
        ids = self._ids
        return [ids.setdefault(word.lower(), len(ids) + 1) for word in words]

    def _hash_runs(self, numbers: Sequence[int]) -> np.ndarray:
        """Hash of the run of `n_words` that starts at each word, uint64."""
        spread = np.array(numbers, dtype=np.uint64) * _SPREAD
        n = max(0, len(spread) - self.n_words + 1)
        mixed = np.zeros(n, np.uint64)
        for offset in range(self.n_words):
            mixed = mixed * _BASE + spread[offset : offset + n]
        return mixed

    def shared_spans(self, text: str) -> list[tuple[int, int]]:
        """Character spans of the runs of `text` that training text has too."""
        words = list(WORD.finditer(text))
        hashes = self._hash_runs(self._number(word[0] for word in words))
        if not len(hashes) or not len(self.hashes):
            return []
        places = np.searchsorted(self.hashes, hashes)
        places[places == len(self.hashes)] = 0
        shared = np.flatnonzero(self.hashes[places] == hashes)
        return [(words[i].start(), words[i + self.n_words - 1].end()) for i in shared]


def cut_shared(text: str, index: RunIndex) -> tuple[str, list[str]]:
    """`text` without the paragraphs that a shared run touches, and those paragraphs.

    Cutting joins what stood apart, so it is repeated until no shared run is left.
    """
    removed: list[str] = []
    while spans := index.shared_spans(text):
        kept: list[str] = []
        start = 0
        for end, following in [
            *((m.start(), m.end()) for m in _PARAGRAPH_BREAK.finditer(text)),
            (len(text), 0),
        ]:
            touched = any(low < end and start < high for low, high in spans)
            (removed if touched else kept).append(text[start:end])
            start = following
        text = "\n\n".join(kept)
    return text, removed


def runs(text: str, n_words: int) -> Iterator[tuple[str, ...]]:
    words = [word.lower() for word in WORD.findall(text)]
    return zip(*(words[offset:] for offset in range(n_words)), strict=False)  # ends with the last whole run


def count_overlaps(held_out: Sequence[str], training: Iterable[str], n_words: int) -> dict[str, int]:
    """The proof: distinct held-out runs, training runs looked at, and how many of those are held out (0 is clean)."""
    wanted = {run for text in held_out for run in runs(text, n_words)}
    n_training, found = 0, 0
    for text in training:
        for run in runs(text, n_words):
            n_training += 1
            found += run in wanted
    return {
        "words": n_words,
        "held_out_texts": len(held_out),
        "held_out_runs": len(wanted),
        "training_runs": n_training,
        "overlaps": found,
    }
