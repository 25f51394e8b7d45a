"""Which held-out records stand in training text: the definition of `tasks.data.overlap`, looked for record by record.

A record counts when one of its fields shares a run of `words` words with a field of a training record, or when its
text or prompt as a whole is a field of a training record, which short ones can be without a run. Its answer is not
compared as a whole: that "42" answers two questions says nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from tasks.data.overlap import runs
from tasks.data.records import HELD_OUT_SPLITS, TRAINING_SPLITS

WHOLES = ("text", "prompt")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One record of a data version; `fields` holds the texts in it by name, `record` is its id in hexadecimal."""

    record: str
    table: str
    split: str
    source: str
    license: str
    package: str
    version: str
    fields: dict[str, str]


@dataclass(frozen=True, order=True)
class Shared:
    """A held-out record that stands in training text; `n_runs` 0 says that it does as a whole."""

    source: str
    split: str
    record: str
    n_runs: int


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """`n_items`: held-out records by source; `shared`: those among them that stand in training text."""

    words: int
    n_items: dict[str, int]
    shared: tuple[Shared, ...]

    def fraction(self, source: str) -> float:
        """Share of the source's held-out records that stand in training text."""
        return sum(item.source == source for item in self.shared) / max(1, self.n_items.get(source, 0))


def measure(rows: Callable[[], Iterable[Row]], words: int) -> Overlap:
    """Read the records three times (`rows` starts anew at each call): only held-out text is held in memory."""
    wanted: set[tuple[str, ...]] = set()
    wholes: set[str] = set()
    n_items: Counter[str] = Counter()
    for row in rows():
        if row.split in HELD_OUT_SPLITS:
            n_items[row.source] += 1
            wholes.update(_wholes(row))
            wanted.update(run for text in row.fields.values() for run in runs(text, words))
    found: set[tuple[str, ...]] = set()
    found_wholes: set[str] = set()
    for row in rows():
        if row.split in TRAINING_SPLITS:
            for text in row.fields.values():
                found_wholes.update(wholes.intersection([text.lower()]))
                found.update(wanted.intersection(runs(text, words)))
    shared = set()
    for row in rows():
        if row.split in HELD_OUT_SPLITS:
            n_runs = sum(run in found for text in row.fields.values() for run in set(runs(text, words)))
            if n_runs or not found_wholes.isdisjoint(_wholes(row)):
                shared.add(Shared(row.source, row.split, row.record, n_runs))
    return Overlap(words=words, n_items=dict(sorted(n_items.items())), shared=tuple(sorted(shared)))


def _wholes(row: Row) -> list[str]:
    return [row.fields[name].lower() for name in WHOLES if name in row.fields]
