"""What a version of the data looks like: its records, their lengths, words and sources; and how far two are apart."""

from __future__ import annotations

import re
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.data import records
from tasks.files import write_json

# R records, B bins of lengths, W buckets of words
_N_BUCKETS = 4096
_N_BINS = 20  # powers of two: texts of up to a million characters
_WORD = re.compile(r"\w+")
_TABLES = {
    "data/text.parquet": ("text",),
    "data/demonstrations.parquet": ("prompt", "answer"),
}


@dataclass(frozen=True, kw_only=True)
class Profile:
    """ids: (R,) of 16 bytes each as hex. lengths: (B,), by log2 of characters. words: (W,), by a hash of each word.
    sources: records by source and licence. labels: digest of the file with human rankings, if there is one."""

    ids: frozenset[str]
    lengths: list[int]
    words: list[int]
    sources: dict[str, int]
    labels: str | None = None

    @classmethod
    def of(cls, root: Path, *, labels: str | None = None) -> Profile:
        """Of `data/` below `root`."""
        ids: set[str] = set()
        lengths, words = np.zeros(_N_BINS, np.int64), np.zeros(_N_BUCKETS, np.int64)
        sources: Counter[str] = Counter()
        for table, columns in _TABLES.items():
            held = records.read(root / table, ["record_id", "source", "license", *columns])
            ids.update(bytes(record).hex() for record in held["record_id"])
            sources.update(f"{s} ({x})" for s, x in zip(held["source"], held["license"], strict=True))
            for texts in zip(*(held[name] for name in columns), strict=True):
                text = " ".join(texts)
                lengths[min(len(text).bit_length(), _N_BINS - 1)] += 1
                _count(words, text)
        return cls(
            ids=frozenset(ids), lengths=lengths.tolist(), words=words.tolist(), sources=dict(sources), labels=labels
        )

    def write(self, path: Path) -> None:
        tree: dict[str, Any] = {**self.__dict__, "ids": sorted(self.ids)}
        write_json(path, tree)

    @classmethod
    def taken(cls, tree: Any) -> Profile:
        """Of what `write` has written."""
        return cls(**{**tree, "ids": frozenset(tree["ids"])})


def _count(words: NDArray[np.int64], text: str) -> None:
    buckets = [zlib.crc32(word.encode()) % _N_BUCKETS for word in _WORD.findall(text.lower())]
    np.add.at(words, buckets, 1)


@dataclass(frozen=True, kw_only=True)
class Newness:
    """How one profile differs from an earlier one. Drifts are Jensen-Shannon divergences in bits: 0 alike, 1 nothing
    in common (Lin 1991)."""

    n_new: int
    n_gone: int
    new_labels: bool
    length_drift: float
    vocabulary_drift: float
    source_drift: float


def compare(before: Profile, after: Profile) -> Newness:
    names = sorted({*before.sources, *after.sources})
    return Newness(
        n_new=len(after.ids - before.ids),
        n_gone=len(before.ids - after.ids),
        new_labels=after.labels is not None and after.labels != before.labels,
        length_drift=jensen_shannon(before.lengths, after.lengths),
        vocabulary_drift=jensen_shannon(before.words, after.words),
        source_drift=jensen_shannon(_row(before.sources, names), _row(after.sources, names)),
    )


def _row(counts: Mapping[str, int], names: Iterable[str]) -> list[int]:
    return [counts.get(name, 0) for name in names]


def jensen_shannon(one: Iterable[float], other: Iterable[float]) -> float:
    """Of two histograms over the same bins, in bits; 0 where one is empty and the other is too."""
    p, q = (np.asarray(list(counts), dtype=np.float64) for counts in (one, other))
    if not p.sum() or not q.sum():
        return float(bool(p.sum()) != bool(q.sum()))
    p, q = p / p.sum(), q / q.sum()
    mean = (p + q) / 2

    def relative_entropy(x: NDArray[np.float64]) -> float:
        held = x > 0
        return float((x[held] * np.log2(x[held] / mean[held])).sum())

    return max(0.0, (relative_entropy(p) + relative_entropy(q)) / 2)


def reasons(found: Newness, *, min_new_records: int, limits: Mapping[str, float]) -> list[str]:
    """Why this is enough to train again, one phrase each; empty if it is not.

    limits: length, vocabulary and source: the drift from which on each matters.
    """
    why = []
    if found.n_new >= min_new_records:
        why.append(f"{found.n_new} new records (at least {min_new_records})")
    if found.n_gone >= min_new_records:
        why.append(f"{found.n_gone} records are gone (at least {min_new_records})")
    if found.new_labels:
        why.append("new human labels")
    drifts = {
        "length": found.length_drift,
        "vocabulary": found.vocabulary_drift,
        "source": found.source_drift,
    }
    for name, drift in drifts.items():
        if drift >= limits[name]:
            why.append(f"{name} drift of {drift:.4f} bits (at least {limits[name]:g})")
    return why
