"""What is known of the data behind an artifact: licences, personal-data findings, evaluation overlap.

Facts are computed from the records of a data version when someone asks (some 2 MB of text a second, in no stage),
kept below `.axon/facts`, and inherited: an artifact has the facts of every data version among its ancestors.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tasks.errors import UserError
from tasks.files import read_json, write_json
from tasks.lineage import ancestry, contamination, detectors
from tasks.lineage.contamination import Overlap, Shared
from tasks.lineage.data_versions import TABLES, DataVersion, read_table, rows, versions, workspace_version
from tasks.lineage.statement import Statement
from tasks.lineage.store import StatementStore
from tasks.runtime import stages
from tasks.runtime.checkout import Checkout

VERSION = 1  # of the form of a facts file
WORDS = 13  # a run this long in two texts is no coincidence (Brown et al. 2020, appendix C)


@dataclass(frozen=True, kw_only=True)
class LicenseCount:
    """The records of one origin under one licence: {table: {split: how many}}.

    `digest`: SHA-256 over their 16-byte ids in rising order, and so over their content.
    """

    source: str
    package: str
    version: str
    license: str
    digest: str
    n_records: dict[str, dict[str, int]]

    @property
    def origin(self) -> str:
        return f"{self.source}/{self.package} {self.version}".rstrip() if self.package else self.source

    @property
    def total(self) -> int:
        return sum(sum(by_split.values()) for by_split in self.n_records.values())

    @property
    def key(self) -> tuple[str, ...]:
        return self.source, self.package, self.version, self.license, self.digest


@dataclass(frozen=True, kw_only=True, order=True)
class Finding:
    """What a detector found: characters `start` to `end` of a field of a record. The value itself is not kept."""

    record: str
    table: str
    field: str
    start: int
    end: int
    kind: str
    source: str
    package: str
    split: str


@dataclass(frozen=True, kw_only=True)
class DataFacts:
    """The facts of one data version."""

    digest: str
    licenses: tuple[LicenseCount, ...]
    findings: tuple[Finding, ...]
    overlap: Overlap


@dataclass(frozen=True, kw_only=True)
class Facts:
    """The facts of an artifact: the union over the data versions among its ancestors, and what lacks a statement.

    `overlap` compares the held-out records of all versions with the training text of all.
    """

    artifact: str
    data: tuple[DataFacts, ...]
    overlap: Overlap
    unstated: tuple[str, ...]

    @property
    def licenses(self) -> tuple[LicenseCount, ...]:
        counts = {count.key: count for facts in self.data for count in facts.licenses}
        return tuple(counts[key] for key in sorted(counts))

    @property
    def findings(self) -> tuple[Finding, ...]:
        return tuple(sorted({finding for facts in self.data for finding in facts.findings}))


def of_artifact(checkout: Checkout, artifact: str, *, words: int = WORDS, fresh: bool = False) -> Facts:
    """The facts of an output (`models/ppo`) as it stands in the workspace, by the statement that made it.

    Where no statement leads to data, the records in the workspace are taken. `fresh` computes anew and trusts no
    facts file. Raises `UserError` for what is missing.
    """
    path = checkout.root / artifact
    if not path.exists():
        raise UserError(f"{artifact} is not in {checkout.root}: run `axon run` or `dvc checkout`.", exit_code=1)
    store = StatementStore.of(checkout)
    maker = store.producer_of(artifact, stages.digest(path))
    if maker is None:
        return _union(checkout, artifact, [workspace_version(checkout)], (f"{artifact} as it stands",), words, fresh)
    return of_statement(checkout, maker, [s.statement for s in store.all()], artifact, words=words, fresh=fresh)


def of_statement(
    checkout: Checkout,
    maker: Statement,
    known: Iterable[Statement],
    artifact: str,
    *,
    words: int = WORDS,
    fresh: bool = False,
) -> Facts:
    """The facts of the output `artifact` of the statement `maker`; the data it was evaluated on last counts too."""
    statements = list(known)
    traced = ancestry.trace(maker, statements)
    found = versions([*traced.statements, *_last_evaluation(statements, artifact, maker.outputs.get(artifact))])
    found = found or [workspace_version(checkout)]
    return _union(checkout, artifact, found, traced.unstated, words, fresh)


def _last_evaluation(known: Iterable[Statement], artifact: str, md5: str | None) -> list[Statement]:
    """The newest statement that read the artifact together with records, if there is one."""
    readers = [
        statement
        for statement in known
        if md5
        and statement.inputs.get(artifact, {}).get("md5") == md5
        and any(path in statement.inputs for path in TABLES)
    ]
    return [max(readers, key=lambda statement: statement.sequence)] if readers else []


def of_version(checkout: Checkout, version: DataVersion, *, words: int = WORDS, fresh: bool = False) -> DataFacts:
    """The facts of a data version: from its facts file where that fits, else computed and written there."""
    path = checkout.state / "facts" / f"{version.digest}.json"
    known = None if fresh else _load(path, version, words)
    if known is not None:
        return known
    contents = {name: read_table(checkout, version, name) for name in version.files}
    computed = compute(version.digest, contents, words)
    write_json(path, {**_identity(version, words), **asdict(computed)})
    return computed


def compute(digest: str, contents: Mapping[str, bytes], words: int) -> DataFacts:
    """The facts of the Parquet tables in `contents` (by path)."""
    counted: dict[tuple[str, ...], Counter[tuple[str, str]]] = defaultdict(Counter)
    ids: dict[tuple[str, ...], list[str]] = defaultdict(list)
    findings = []
    for row in rows(contents):
        origin = (row.source, row.package, row.version, row.license)
        counted[origin][row.table, row.split] += 1
        ids[origin].append(row.record)
        findings += [
            Finding(
                record=row.record, table=row.table, field=field, start=span.start, end=span.end,
                kind=span.kind, source=row.source, package=row.package, split=row.split,
            )
            for field, text in row.fields.items()
            for span in detectors.find(text)
        ]  # fmt: skip
    return DataFacts(
        digest=digest,
        licenses=tuple(_license_count(origin, counted[origin], ids[origin]) for origin in sorted(counted)),
        findings=tuple(sorted(findings)),
        overlap=contamination.measure(lambda: rows(contents), words),
    )


def _license_count(origin: tuple[str, ...], counted: Mapping[tuple[str, str], int], ids: Iterable[str]) -> LicenseCount:
    source, package, version, license = origin
    n_records: dict[str, dict[str, int]] = defaultdict(dict)
    for (table, split), n in sorted(counted.items()):
        n_records[table][split] = n
    return LicenseCount(
        source=source,
        package=package,
        version=version,
        license=license,
        digest=hashlib.sha256(bytes.fromhex("".join(sorted(ids)))).hexdigest(),
        n_records=dict(n_records),
    )


def _union(
    checkout: Checkout,
    artifact: str,
    found: Sequence[DataVersion],
    unstated: tuple[str, ...],
    words: int,
    fresh: bool,
) -> Facts:
    data = tuple(of_version(checkout, version, words=words, fresh=fresh) for version in found)
    overlap = data[0].overlap
    if len(found) > 1:
        contents = [{path: read_table(checkout, v, path) for path in v.files} for v in found]
        overlap = contamination.measure(lambda: (row for tables in contents for row in rows(tables)), words)
    return Facts(artifact=artifact, data=data, overlap=overlap, unstated=unstated)


def _identity(version: DataVersion, words: int) -> dict[str, Any]:
    """What must be equal for a facts file to be taken."""
    return {
        "version": VERSION,
        "detectors": detectors.VERSION,
        "words": words,
        "files": {path: digest.sha256 for path, digest in sorted(version.files.items())},
    }


def _load(path: Path, version: DataVersion, words: int) -> DataFacts | None:
    """The facts in a file; None if there is none, or one of other data or definitions, or a damaged one."""
    try:
        known = read_json(path)
        if {key: known[key] for key in _identity(version, words)} != _identity(version, words):
            return None
        overlap = known["overlap"]
        return DataFacts(
            digest=version.digest,
            licenses=tuple(LicenseCount(**entry) for entry in known["licenses"]),
            findings=tuple(Finding(**entry) for entry in known["findings"]),
            overlap=Overlap(**{**overlap, "shared": tuple(Shared(**entry) for entry in overlap["shared"])}),
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None
