"""From the records that are asked for to everything that goes with them, and to the entries of the removal list."""

from __future__ import annotations

import base64
import datetime
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tasks.data import near_duplicates, removals
from tasks.data.removal_list import Entry
from tasks.data.removals import Removals, content_digest, content_of, forms, id_digest
from tasks.lineage.forgetting.candidates import (
    DAMAGED,
    DEMONSTRATION,
    GENERATED,
    PARAGRAPH,
    TEXT,
    Candidate,
    Candidates,
)
from tasks.parameter_sections import NearDuplicates
from tasks.steps.context import FanOut

# What is shorter stands in many texts by chance; of many removed texts only so many are looked for.
MIN_QUOTED_CHARS, MAX_QUOTED = 40, 200


@dataclass(frozen=True, kw_only=True)
class Removal:
    """What a request removes, as numbers of candidates: those asked for, those that go with them (the docstring behind
    a question, copies, near-duplicates), and what the data stage makes from any of these.

    entries: new ones for the removal list; none for what is on it already.
    """

    asked: set[int]
    along: set[int]
    made: set[int]
    entries: list[Entry]

    @property
    def all(self) -> set[int]:
        return self.asked | self.along | self.made


def find(
    candidates: Candidates,
    chosen: Collection[int],
    listed: Removals,
    *,
    like: NearDuplicates,
    fan_out: FanOut,
    reason: str,
    when: datetime.date,
) -> Removal:
    """Everything that goes when `chosen` goes.

    Only what is asked for, with its clusters, draws near-duplicates after it: what they draw in draws no more, so that
    the list removes the same records in the next run and the one after.
    """
    everything = candidates.all
    asked = set(chosen) | {parent for n in chosen for parent in everything[n].parents}
    search = _Search(candidates, like, fan_out)
    by_name = [_entry(everything[n], reason, when) for n in sorted(asked)]
    core = asked | search.removed(Removals(tuple(by_name)))
    bands = search.bands(core - _made(everything, core, asked))
    drawing = [replace(_entry(everything[n], reason, when), bands=bands.get(n)) for n in sorted(core)]
    found = core | search.removed(Removals(tuple(drawing)))
    made = _made(everything, found, asked)
    clusters = search.clusters(found, asked)
    entries: dict[str, Entry] = {}
    for number in sorted(found | made):
        if listed.lists(everything[number].record):
            continue
        entry = _entry(everything[number], reason, when)
        entry = replace(entry, cluster=clusters.get(number), bands=bands.get(number))
        known = entries.setdefault(entry.record, entry)
        entries[entry.record] = _joined(known, entry)
    return Removal(asked=asked, along=found - asked - made, made=made, entries=list(entries.values()))


def quoting(candidates: Candidates, removal: Removal) -> set[int]:
    """Records that stay although they have a removed text, a sentence at least, in them word for word."""
    gone = {_key(candidates.all[n]).replace("\x00", "\n") for n in removal.asked | removal.along}
    texts = sorted(text for text in gone if len(text) >= MIN_QUOTED_CHARS)[:MAX_QUOTED]
    return {
        number
        for number, candidate in enumerate(candidates.all)
        if number not in removal.all
        and candidate.kind != GENERATED
        and any(text in _key(candidate).replace("\x00", "\n") for text in texts)
    }


def _made(everything: Sequence[Candidate], found: set[int], asked: set[int]) -> set[int]:
    """What the data stage makes from records that are all `found`."""
    return {
        number
        for number, candidate in enumerate(everything)
        if candidate.parents and candidate.status != PARAGRAPH and found.issuperset(candidate.parents)
    } - asked


class _Search:
    """What a removal list takes out of the candidates, by the code and the rules of the data stage."""

    def __init__(self, candidates: Candidates, like: NearDuplicates, fan_out: FanOut) -> None:
        self._candidates = candidates
        self._like = like
        self._fan_out = fan_out
        self._signatures: dict[str, Mapping[str, np.ndarray]] = {}

    def removed(self, listed: Removals) -> set[int]:
        found = {n for n, c in enumerate(self._candidates.all) if c.kind == GENERATED and listed.lists(c.record)}
        for kind, like in ((TEXT, self._like), (DEMONSTRATION, self._like), (DAMAGED, None)):
            numbers = [n for n, candidate in enumerate(self._candidates.all) if candidate.kind == kind]
            records: list[Any] = [self._candidates.all[n].record for n in numbers]
            dropped = removals.drop(records, kind, listed, like, self._fan_out, self._signatures.get(kind))
            if dropped.signatures:
                self._signatures[kind] = dropped.signatures
            gone = {id(record) for record in dropped.removed}
            found |= {n for n, record in zip(numbers, records, strict=True) if id(record) in gone}
        return found

    def bands(self, numbers: Collection[int]) -> dict[int, bytes]:
        """What near-duplicates of these are found by; generated questions and single paragraphs draw none."""
        drawing = [n for n in sorted(numbers) if not _draws_none(self._candidates.all[n])]
        texts = [_key(self._candidates.all[n]) for n in drawing]
        made = near_duplicates.deal("bands", "tasks.data.removals:band_texts", texts, {}, self._fan_out)
        return {number: base64.b64decode(encoded) for number, encoded in zip(drawing, made, strict=True)}

    def clusters(self, found: Collection[int], asked: Collection[int]) -> dict[int, str]:
        """The name of its cluster for each of `found` that has one: the digest of the id of the first asked for in it,
        of the first at all where none was."""
        everything, names = self._candidates.all, {}
        for kind, signatures in self._signatures.items():
            members = [n for n in sorted(found) if everything[n].kind == kind and _key(everything[n]) in signatures]
            first = near_duplicates.clusters([signatures[_key(everything[n])] for n in members], self._like.threshold)
            together = defaultdict(list)
            for number, root in zip(members, first, strict=True):
                together[root].append(number)
            for cluster in together.values():
                head = next((n for n in cluster if n in asked), cluster[0])
                if len(cluster) > 1:
                    names.update(dict.fromkeys(cluster, id_digest(everything[head].record.record_id)))
        return names


def _key(candidate: Candidate) -> str:
    return content_of(candidate.record)


def _draws_none(candidate: Candidate) -> bool:
    return candidate.kind == GENERATED or candidate.status == PARAGRAPH


def _entry(candidate: Candidate, reason: str, when: datetime.date) -> Entry:
    record = candidate.record
    primary = record.record_id
    return Entry(
        record=id_digest(primary),
        also=tuple(sorted(map(id_digest, candidate.ids - {primary}))),
        content=tuple(dict.fromkeys(map(content_digest, forms(record)))),
        cluster=None,
        when=when.isoformat(),
        reason=reason,
    )


def _joined(one: Entry, other: Entry) -> Entry:
    """One entry for the same record from two places."""
    return replace(
        one,
        also=tuple(sorted({*one.also, *other.also})),
        content=tuple(dict.fromkeys([*one.content, *other.content])),
        bands=one.bands or other.bands,
        cluster=one.cluster or other.cluster,
    )
