"""Every record that the sources and the outputs of the data stage hold now, with all the ids that it is known by.

The outputs show some records otherwise than the sources: a docstring under its heading, a held-out text without the
paragraphs that training text has too, a question made from a docstring. Here each is one candidate, or tells which
candidates it was made from.
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from tasks.data import maths, own_files, preparation, python_docs, records, removals
from tasks.data.records import Demonstration, Record, Reject, TextRecord
from tasks.parameters import Parameters
from tasks.steps.context import FanOut

TEXT, DEMONSTRATION, DAMAGED, GENERATED = "text", "demonstration", "damaged", "generated"
KEPT, NEW = "kept", "new"
PARAGRAPH = "overlap_paragraph"


@dataclass(kw_only=True, eq=False)
class Candidate:
    """One record. `record` has its text normalised; `ids` are all it is known by.

    place: file and line of `data.files` it stands in. status: "kept", the reason it was rejected for, or "new" where
    the outputs do not know it. shown_id: its id there. parents: for what the data stage makes, the numbers of the
    candidates it is made from.
    """

    kind: str
    record: Record | Reject
    ids: set[bytes]
    place: tuple[str, int] | None = None
    split: str = ""
    status: str = NEW
    shown_id: bytes | None = None
    parents: tuple[int, ...] = ()


@dataclass(frozen=True)
class Candidates:
    """`by_id` has the numbers of the candidates that an id stands for; `n_lines` the lines of every own file."""

    all: list[Candidate]
    by_id: dict[bytes, list[int]]
    n_lines: dict[str, int] = field(default_factory=dict)

    @property
    def kept(self) -> set[int]:
        return {number for number, candidate in enumerate(self.all) if candidate.status == KEPT}

    @property
    def sources(self) -> list[str]:
        return sorted({candidate.record.source for candidate in self.all})


def local_fan_out(n_processes: int) -> FanOut:
    """A fan-out over processes of this machine, which end with the call. Nothing is written anywhere."""

    def fan_out(name: str, function: str, items: Sequence[Mapping[str, Any]]) -> list[Any]:
        if len(items) < 2 or sum(len(json.dumps(item)) for item in items) < 1_000_000:
            return [_call(function, item) for item in items]
        with ProcessPoolExecutor(n_processes, mp_context=get_context("spawn")) as pool:
            return list(pool.map(_call, [function] * len(items), items))

    return fan_out


def _call(function: str, item: Mapping[str, Any]) -> Any:
    module, _, name = function.partition(":")
    return getattr(import_module(module), name)(item)


def read(root: Path, params: Parameters, fan_out: FanOut | None = None) -> Candidates:
    """All candidates of the checkout at `root`: first those of the sources, then what only the outputs have."""
    fan_out = fan_out or local_fan_out(os.cpu_count() or 1)
    found = list(_of_sources(root, params, fan_out))
    n_lines: dict[str, int] = defaultdict(int)
    for candidate in found:
        if candidate.place is not None:
            n_lines[candidate.place[0]] += 1
    by_id: dict[bytes, list[int]] = defaultdict(list)
    for number, candidate in enumerate(found):
        for identity in candidate.ids:
            by_id[identity].append(number)
    everything = Candidates(found, by_id, dict(n_lines))
    outputs = _Outputs(everything)
    for table in ("text", "demonstrations", "rejects"):
        path = root / "data" / f"{table}.parquet"
        if path.is_file():
            outputs.add(path)
    return everything


def _of_sources(root: Path, params: Parameters, fan_out: FanOut) -> Iterator[Candidate]:
    docs = python_docs.collect(params.data.python_docs.packages, fan_out)
    for text in preparation.normalised(docs.texts):
        yield Candidate(kind=TEXT, record=text, ids=removals.known_ids(text))
    for own in params.data.files:
        for line, record in own_files.read_lines(own.path, own.license, root):
            kind = TEXT if isinstance(record, TextRecord) else DAMAGED if isinstance(record, Reject) else DEMONSTRATION
            yield Candidate(kind=kind, record=record, ids=removals.known_ids(record), place=(own.path, line))
    for question in maths.generate(
        params.data.maths.kinds,
        n_questions=params.data.maths.max_questions,
        max_operand=params.data.maths.max_operand,
        seed=params.seed,
    ):
        yield Candidate(kind=GENERATED, record=question, ids=removals.known_ids(question))


class _Outputs:
    """Adds the rows of the data stage's outputs to the candidates: as what they are known for, or as new ones."""

    def __init__(self, to: Candidates) -> None:
        self._to = to
        self._by_symbol: dict[tuple[str, str], list[int]] = defaultdict(list)
        self._by_paragraph: dict[tuple[str, str], set[int]] | None = None
        for number, candidate in enumerate(to.all):
            if candidate.kind == TEXT and isinstance(candidate.record, TextRecord) and candidate.record.symbol:
                self._by_symbol[candidate.record.source, candidate.record.symbol].append(number)

    def add(self, path: Path) -> None:
        columns = records.read(path)
        for values in zip(*columns.values(), strict=True):
            row = dict(zip(columns, values, strict=True))
            if row.get("reason") == "unreadable_file":
                continue
            known = self._to.by_id.get(row["record_id"])
            if known is None:
                self._add_unknown(row)
            else:
                for number in known:
                    self._note(self._to.all[number], row)

    @staticmethod
    def _note(candidate: Candidate, row: Mapping[str, Any]) -> None:
        """What became of it; a copy that is kept says more than one that was rejected as its duplicate."""
        if "reason" not in row:
            candidate.status, candidate.split, candidate.shown_id = KEPT, row["split"], row["record_id"]
        elif candidate.status == NEW:
            candidate.status, candidate.shown_id = row["reason"], row["record_id"]

    def _add_unknown(self, row: Mapping[str, Any]) -> None:
        record = _record(row)
        if isinstance(record, TextRecord):
            shown = self._with_paragraphs(record.source, record.text, record.symbol)
            for number in shown:  # the same text, of which paragraphs were cut
                self._to.all[number].ids.add(row["record_id"])
                self._note(self._to.all[number], row)
            if shown:
                self._to.by_id[row["record_id"]] = shown
                return
        parents: list[int] = []
        if isinstance(record, Demonstration) and record.source == python_docs.SOURCE:
            parents = [n for n in self._by_symbol[record.source, record.symbol] if self._answers(n, record.answer)]
        elif isinstance(record, Reject) and record.reason == PARAGRAPH:
            parents = self._with_paragraphs(record.source, record.text, record.detail)
        kind = TEXT if isinstance(record, TextRecord) else DAMAGED if isinstance(record, Reject) else DEMONSTRATION
        candidate = Candidate(kind=kind, record=record, ids={row["record_id"]}, parents=tuple(parents))
        candidate.ids |= removals.known_ids(record)
        self._note(candidate, row)
        self._to.all.append(candidate)
        for identity in candidate.ids:
            self._to.by_id.setdefault(identity, []).append(len(self._to.all) - 1)

    def _answers(self, number: int, answer: str) -> bool:
        record = self._to.all[number].record
        return isinstance(record, TextRecord) and python_docs.first_paragraph(record.text) == answer

    def _with_paragraphs(self, source: str, text: str, symbol: str) -> list[int]:
        """The texts of the sources, under their headings, that have every paragraph of `text`."""
        if self._by_paragraph is None:
            self._by_paragraph = defaultdict(set)
            for number, candidate in enumerate(self._to.all):
                if isinstance(candidate.record, TextRecord):
                    for paragraph in removals.forms(candidate.record)[-1].split("\n\n"):
                        self._by_paragraph[candidate.record.source, paragraph.strip("\n \t")].add(number)
        having = [self._by_paragraph.get((source, part.strip("\n \t")), set()) for part in text.split("\n\n")]
        return sorted(n for n in set.intersection(*having) if self._symbol(n) == symbol)

    def _symbol(self, number: int) -> str:
        record = self._to.all[number].record
        return record.symbol if isinstance(record, TextRecord) else ""


def _record(row: Mapping[str, Any]) -> Record | Reject:
    """The record of a row; a rejected question about a symbol is a demonstration again, other rejects stay rejects."""
    if "reason" in row:
        if row["source"] == python_docs.SOURCE and row["reason"] not in (PARAGRAPH, "damaged"):
            prompt, _, answer = row["text"].partition("\n")
            if prompt in (question.format(symbol=row["detail"]) for question in python_docs.QUESTIONS):
                return Demonstration(
                    source=row["source"], license="", group="", task=python_docs.TASK, symbol=row["detail"],
                    prompt=prompt, answer=answer, target=answer,
                )  # fmt: skip
        return Reject(source=row["source"], reason=row["reason"], detail=row["detail"], text=row["text"])
    shared = {name: row[name] for name in ("source", "license", "package", "version", "file", "symbol", "split")}
    if "text" in row:
        return TextRecord(group="", text=row["text"], **shared)
    return Demonstration(
        group="", task=row["task"], prompt=row["prompt"], answer=row["answer"], target=row["target"], **shared
    )
