"""Which artifacts and registered versions contain a record, and which records a registered version contains."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tasks.errors import UserError
from tasks.lineage import questions
from tasks.lineage.graph import Artifact, Graph, version_name
from tasks.lineage.index import RecordIndex
from tasks.lineage.records import ids, tables
from tasks.lineage.records.answers import Ancestry, Contents, Place, Use, inherited
from tasks.lineage.records.tables import Facts
from tasks.lineage.records.usage import HANDED_DOWN, INDEXED_STAGES, KEPT, SHAPING
from tasks.lineage.statement import Statement
from tasks.lineage.wording import many
from tasks.runtime.checkout import Checkout

_WORDS = {
    "tokenized": "tokenised",
    "tokenizer": "vocabulary learnt from",
    "trained": "trained on",
    "validated": "validated on",
    "prompt": "prompted with",
    "calibrated": "calibrated on",
    "evaluated": "judged on",
}


@dataclass(frozen=True, kw_only=True)
class Holder:
    """An artifact, or a registered version, that contains a record through `uses`. `maker`: the execution that wrote
    it. `direct`: those of the uses that are its maker's own."""

    name: str
    is_version: bool
    artifact: Artifact
    maker: Statement
    uses: tuple[Use, ...]

    @property
    def direct(self) -> tuple[Use, ...]:
        return tuple(use for use in self.uses if use.execution == self.maker.execution)

    @property
    def is_shaped(self) -> bool:
        """Whether the record shaped it; otherwise it only stands in it, or was measured on."""
        return any(use.role in SHAPING for use in self.uses)


@dataclass(frozen=True, kw_only=True)
class Holding:
    """What is known of a record. `unindexed`: executions of which the index should know and does not, "STAGE ID"."""

    record: str
    facts: list[Facts]
    places: list[Place]
    uses: list[Use]
    holders: list[Holder]
    unindexed: list[str]


def holding(graph: Graph, checkout: Checkout, record: str) -> Holding:
    """Everything that contains the record with the id `record` (32 hex digits).

    Raises `UserError` for what is no id, and for a record of which nothing at all is known.
    """
    wanted = ids.parse(record)
    index = RecordIndex(checkout.state, checkout.root)
    uses, facts, places = index.uses_of(wanted), index.facts_of(wanted), index.places_of(wanted)
    if not (uses or facts or places):
        raise UserError(
            f"no record {record} is known: neither the record index in {checkout.state / 'records'} nor data/ has it. "
            "Find ids by a piece of the text: axon lineage 'some words of it'"
        )
    known = _executions(checkout.state)
    unindexed = [s for key, s in graph.executions.items() if key not in known and s.stage in INDEXED_STAGES]
    return Holding(
        record=wanted.hex(),
        facts=facts,
        places=places,
        uses=uses,
        holders=[holder for holder in _holders(graph, uses) if _can_hold(holder, facts)],
        unindexed=[f"{s.stage} {s.execution}" for s in unindexed],
    )


def _executions(state: Path) -> set[str]:
    """The executions that the index knows."""
    return {tables.execution_of(path).id for path in (state / "records").glob("*/uses-*.parquet")}


def _can_hold(holder: Holder, facts: list[Facts]) -> bool:
    """Of what the data stage writes, only the tables of its kind hold a record."""
    tables_of_kind = {path for path, kind in tables.KINDS.items() if kind in {fact.kind for fact in facts}}
    is_only_kept = all(use.role == KEPT for use in holder.uses)
    return not is_only_kept or not tables_of_kind or holder.artifact.path in tables_of_kind


def _holders(graph: Graph, uses: list[Use]) -> list[Holder]:
    """Registered versions first, then artifacts in the order in which they were made; each once."""
    places: dict[str, tuple[str, Artifact, Statement]] = {}
    for artifact, makers in graph.makers.items():
        for maker in makers:
            places[f"{artifact.path} {artifact.digest} {maker.execution}"] = (artifact.path, artifact, maker)
    for version in graph.versions.values():
        for reading in graph.readings(version):
            if reading.maker:
                places[version.digest] = (version_name(version), reading.artifact, reading.maker)
    behind = {
        key: Ancestry(str(maker.execution), graph.executions_behind[maker.digest])
        for key, (_, _, maker) in places.items()
    }
    found: dict[tuple[str, Artifact], Holder] = {}
    for key, had in inherited(uses, behind).items():  # the newest maker of an artifact is the last, and stays
        name, artifact, maker = places[key]
        is_version = key in graph.statements
        holder = Holder(name=name, is_version=is_version, artifact=artifact, maker=maker, uses=tuple(had))
        found[name, artifact] = holder
    return sorted(found.values(), key=lambda h: (not h.is_version, h.maker.sequence, h.name))


def contents(graph: Graph, checkout: Checkout, name: str, starts: list[Statement]) -> Contents:
    """The records that shaped what `starts` made, by use and each once; `name` is what a person calls that.

    Raises `UserError` where the record index knows none of the executions behind.
    """
    executions = _behind(graph, starts)
    found = RecordIndex(checkout.state, checkout.root).contents_of(executions)
    if not found.by_use and len(found.unindexed) == len(executions):
        raise UserError(
            f"the record index in {checkout.state / 'records'} knows none of the "
            f"{many(len(executions), 'execution')} behind {name}, so that nothing can be said of its records.",
            exit_code=1,
        )
    return found


def record_ids(graph: Graph, checkout: Checkout, starts: list[Statement]) -> Iterator[str]:
    """The ids of those records in order, each once, as 32 hex digits."""
    for record in RecordIndex(checkout.state, checkout.root).ids_of(_behind(graph, starts)):
        yield record.hex()


def _behind(graph: Graph, starts: list[Statement]) -> list[str]:
    return sorted(frozenset().union(*(graph.executions_behind[start.digest] for start in starts)))


def uses_of(graph: Graph, checkout: Checkout, record: str) -> dict[str, questions.Use]:
    """Execution id → what a record was to it directly, and how often."""
    found: dict[str, list[Use]] = defaultdict(list)
    for use in RecordIndex(checkout.state, checkout.root).uses_of(ids.parse(record)):
        if use.execution in graph.executions:
            found[use.execution].append(use)
    return {
        execution: questions.Use(
            role=", ".join(f"{use.role} × {use.count:,}" for use in uses),
            is_handed_down=any(use.role in HANDED_DOWN for use in uses),
        )
        for execution, uses in found.items()
    }


def counts(state: Path, executions: Mapping[str, Statement]) -> dict[str, str]:
    """Execution id → how many records it had in which role, in words, where the index knows."""
    found: dict[str, str] = {}
    for path in sorted((state / "records").glob("*/uses-*.parquet")):
        execution = tables.execution_of(path).id
        if execution in executions:
            by_role: dict[str, int] = defaultdict(int)
            for total in tables.read_totals(path):
                by_role[total.role] += total.n_records
            parts = [
                f"{_WORDS.get(role, role)} {n:,}" for role, n in sorted(by_role.items(), key=lambda entry: -entry[1])
            ]
            found[execution] = ", ".join(([found[execution]] if execution in found else []) + parts)
    return found
