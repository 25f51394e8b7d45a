"""What the record index answers, and how a use is handed down to what was made from it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from tasks.lineage.records.tables import Facts
from tasks.lineage.records.usage import HANDED_DOWN


@dataclass(frozen=True, order=True)
class Use:
    """`count` says how often, in the measure of `role` (see `tasks.lineage.records.usage`)."""

    stage: str
    execution: str
    role: str
    count: int


class Place(NamedTuple):
    """A row of `path`, a file of `data/` in the workspace, that has the record."""

    path: str
    file: str
    symbol: str


class Found(NamedTuple):
    """A record with a text: in the file `where`, or "index" if its id alone says so. Rejected records have ids that
    are in no model."""

    record_id: str
    where: str


class Share(NamedTuple):
    """`n_records` with the same facts; `n_uses` adds up their counts over executions and roles."""

    facts: Facts
    n_records: int
    n_uses: int


@dataclass(frozen=True, kw_only=True)
class Contents:
    """The records of some executions. by_use: (stage, execution, role) → shares. distinct: shares in which a record
    counts once, however many executions used it (once for each version of data). unindexed: executions of which the
    index knows nothing."""

    by_use: dict[tuple[str, str, str], list[Share]]
    distinct: list[Share]
    unindexed: list[str]

    @property
    def n_records(self) -> int:
        return sum(share.n_records for share in self.distinct)


class Ancestry(NamedTuple):
    """The execution that made an artifact, and all executions behind it."""

    maker: str
    behind: frozenset[str]


def inherited(uses: Iterable[Use], artifacts: Mapping[str, Ancestry]) -> dict[str, list[Use]]:
    """artifact → the uses through which it has a record; artifacts that do not have it are left out.

    A record that shaped what an execution made is in everything made from that, and a sample is in the report. In
    another role (it was kept, tokenised, validated on, judged on) it is in the outputs of that execution alone.
    """
    by_execution: dict[str, list[Use]] = defaultdict(list)
    for use in uses:
        by_execution[use.execution].append(use)
    found = {}
    for artifact, (maker, behind) in artifacts.items():
        own = by_execution.get(maker, [])
        found[artifact] = own + [
            use
            for execution in behind
            if execution != maker and execution in by_execution
            for use in by_execution[execution]
            if use.role in HANDED_DOWN
        ]
    return {artifact: sorted(uses) for artifact, uses in found.items() if uses}
