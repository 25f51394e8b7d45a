"""The records of two versions of data, compared by their ids: of a record table of the index, or of the file itself."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tasks.errors import UserError
from tasks.lineage.data_versions import TABLES, DataVersion, read_table
from tasks.lineage.graph import Artifact
from tasks.lineage.hashing import FileDigest
from tasks.lineage.records import ids as record_ids
from tasks.lineage.records import parquet_files, tables
from tasks.lineage.records.ids import Ids
from tasks.lineage.statement import Statement
from tasks.runtime.checkout import Checkout

N_SHOWN = 5
Side = Mapping[str, Statement]


@dataclass(frozen=True, kw_only=True)
class RecordChange:
    """Records of the table `path` that one side alone has, with the first ids of them; `unknown` says why that cannot
    be told. A record whose text changed counts as removed and added."""

    path: str
    n_before: int = 0
    n_after: int = 0
    n_added: int = 0
    n_removed: int = 0
    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    unknown: str = ""


def compare(checkout: Checkout, before: Side, after: Side) -> tuple[RecordChange, ...]:
    """What became of the records, for each table that both sides wrote with other bytes."""
    return tuple(
        _compare(checkout, path, before, after)
        for path in TABLES
        if (old := _written(before, path)) and (new := _written(after, path)) and old != new
    )


def _written(side: Side, path: str) -> Artifact | None:
    return next((Artifact(path, s.outputs[path]) for s in side.values() if path in s.outputs), None)


def _compare(checkout: Checkout, path: str, before: Side, after: Side) -> RecordChange:
    try:
        old, new = (_ids(checkout, path, side) for side in (before, after))
    except UserError as error:
        return RecordChange(path=path, unknown=str(error))
    removed, added = old[record_ids.find(new, old) < 0], new[record_ids.find(old, new) < 0]
    return RecordChange(
        path=path,
        n_before=len(old),
        n_after=len(new),
        n_added=len(added),
        n_removed=len(removed),
        added=tuple(row.tobytes().hex() for row in added[:N_SHOWN]),
        removed=tuple(row.tobytes().hex() for row in removed[:N_SHOWN]),
    )


def _ids(checkout: Checkout, path: str, side: Side) -> Ids:
    """The distinct ids of the table `path` as this side wrote it, in order."""
    digests = {name: artifact.digest for name in tables.DATA if (artifact := _written(side, name))}
    folder = tables.folder_of(checkout.state, digests)
    if len(digests) == len(tables.DATA) and (folder / "records.parquet").is_file():
        return _indexed(folder, tables.KINDS[path])
    import pyarrow.parquet as parquet

    writer = next(s for s in side.values() if path in s.outputs)
    file = writer.subjects.get(path, FileDigest("", 0))
    version = DataVersion(files={path: file}, md5s={path: writer.outputs[path]})
    content = io.BytesIO(read_table(checkout, version, path))
    ids = record_ids.of_column(parquet.read_table(content, columns=["record_id"]).column("record_id"))
    return ids[record_ids.distinct(ids)]


def _indexed(folder: Path, kind: str) -> Ids:
    records = tables.read(folder)
    kinds = parquet_files.read(folder / "groups.parquet", ["group", "kind"])
    wanted = [g for g, k in zip(*(kinds.column(n).to_pylist() for n in ("group", "kind")), strict=True) if k == kind]
    return records.ids[np.isin(records.groups, wanted)]
