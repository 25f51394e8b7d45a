"""The record index on disk, one folder for each version of data, so that row numbers mean one thing in a folder:

    .axon/records/VERSION/records.parquet                 record_id in order, group, place: its row in data/
    .axon/records/VERSION/copies.parquet                  row of records.parquet, place of another document like it
    .axon/records/VERSION/groups.parquet                  group → kind, split, source, license, package, version
    .axon/records/VERSION/uses-STAGE-EXECUTION.parquet    role, row of records.parquet, count

Rows are stored as differences: an execution that used every record takes a hundredth of a byte for each, one that
used a few takes a byte for each of those. All of it can be joined by plain DuckDB.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tasks.errors import UserError
from tasks.files import file_md5
from tasks.lineage.records import ids as record_ids
from tasks.lineage.records import parquet_files
from tasks.lineage.records.ids import Ids
from tasks.lineage.records.usage import Uses

if TYPE_CHECKING:
    import pyarrow as pa

DATA = ("data/demonstrations.parquet", "data/text.parquet")
RANKINGS = "preferences/comparisons.parquet"
KINDS = {"data/demonstrations.parquet": "demonstration", "data/text.parquet": "text", RANKINGS: "ranking"}
_NAME = re.compile(r"uses-(?P<stage>\w+)-(?P<execution>[0-9a-f]{8,64})\.parquet")
_METADATA = "axon"


class Execution(NamedTuple):
    """A stage execution; `id` is that of its journal."""

    stage: str
    id: str


class Facts(NamedTuple):
    """What the records of a group have in common; `version` is that of the package."""

    kind: str
    split: str
    source: str
    license: str
    package: str
    version: str


class Total(NamedTuple):
    """Of one execution: `n_records` of a group had a role, `n_uses` times in all."""

    role: str
    group: int
    n_records: int
    n_uses: int


def folder_of(state: Path, digests: Mapping[str, str]) -> Path:
    """Where the index of this version of data is: `digests` are the MD5 of its files."""
    text = json.dumps(sorted(digests.items()))
    return state / "records" / hashlib.sha256(text.encode()).hexdigest()[:32]


def uses_path(folder: Path, execution: Execution) -> Path:
    """Raises `UserError` for an execution that cannot be named in a file."""
    path = folder / f"uses-{execution.stage}-{execution.id}.parquet"
    if not _NAME.fullmatch(path.name):
        raise UserError(f"execution {execution.id!r} of {execution.stage!r}: an id is 8 to 64 hexadecimal digits")
    return path


def execution_of(path: Path) -> Execution:
    match = _NAME.fullmatch(path.name)
    if match is None:
        raise UserError(f"{path} is no file of the record index; remove it")
    return Execution(match["stage"], match["execution"])


@dataclass(frozen=True)
class Records:
    """All records of one version of data: ids in order, and the group of each."""

    ids: Ids
    groups: NDArray[np.integer[Any]]


def read(folder: Path) -> Records:
    table = parquet_files.read(folder / "records.parquet", ["record_id", "group"])
    return Records(record_ids.of_column(table.column("record_id")), parquet_files.numbers(table.column("group")))


class NotInWorkspace(UserError):
    """The data that an execution used is neither in the index nor in the workspace."""


def ensure(folder: Path, root: Path, digests: Mapping[str, str]) -> Records:
    """The records of `folder`; made from the files below `root` with these MD5 where there are none yet."""
    if not (folder / "records.parquet").is_file():
        for path, digest in digests.items():
            if not (root / path).is_file() or file_md5(root / path) != digest:
                raise NotInWorkspace(
                    f"the record index lacks the data with MD5 {digest}, and {path} is not that; "
                    f"bring it back with: dvc checkout {path}",
                    exit_code=1,
                )
        _write_records(folder, root, list(digests))
    return read(folder)


def _write_records(folder: Path, root: Path, paths: Sequence[str]) -> None:
    import pyarrow as pa

    parts = []
    for path in paths:
        known = parquet_files.columns_of(root / path)
        names = ["record_id", *(name for name in Facts._fields if name in known)]
        part = parquet_files.read(root / path, names)
        columns = {"record_id": part.column("record_id"), "kind": parquet_files.of_one_text(KINDS[path], len(part))}
        for name in Facts._fields[1:]:
            columns[name] = part.column(name) if name in names else parquet_files.of_one_text("", len(part))
        parts.append(pa.table({n: c if n == "record_id" else c.cast("string") for n, c in columns.items()}))
    table = pa.concat_tables(parts)
    ids = record_ids.of_column(table.column("record_id"))
    groups, codes = _grouped(table.select(Facts._fields))
    places = np.concatenate([np.arange(len(part), dtype=np.uint32) for part in parts])
    rows = record_ids.distinct(ids)
    copies = np.delete(np.arange(len(ids)), rows)
    of_records = record_ids.find(ids[rows], ids[copies]).astype(np.uint32)
    folder.mkdir(parents=True, exist_ok=True)
    parquet_files.write(folder / "groups.parquet", [groups])
    numbers = {"row": of_records, "place": places[copies]}
    numbers_of_copies = {name: parquet_files.of_numbers(values) for name, values in numbers.items()}
    parquet_files.write(folder / "copies.parquet", [pa.table(numbers_of_copies)])
    columns = {
        "record_id": record_ids.to_column(ids[rows]),
        "group": parquet_files.of_numbers(codes[rows]),
        "place": parquet_files.of_numbers(places[rows]),
    }
    # Last, since it is what `ensure` looks for. Hashes do not shrink; places are in no order, but their high bytes do.
    parquet_files.write(
        folder / "records.parquet",
        [pa.table(columns)],
        use_dictionary=["group"],
        column_encoding={"place": "BYTE_STREAM_SPLIT"},
        compression={"record_id": "none", "group": "zstd", "place": "zstd"},
        write_statistics=["record_id"],
    )


def _grouped(table: pa.Table) -> tuple[pa.Table, NDArray[np.integer[Any]]]:
    """The distinct rows of `table` in order, numbered, and the number of each row of `table`."""
    import pyarrow as pa

    codes = np.zeros(len(table), dtype=np.int64)
    for name in table.column_names:
        encoded = table.column(name).combine_chunks().dictionary_encode()
        if isinstance(encoded, pa.ChunkedArray):
            encoded = encoded.combine_chunks()
        codes = codes * len(encoded.dictionary) + encoded.indices.to_numpy(zero_copy_only=False)
    _, first, codes = np.unique(codes, return_index=True, return_inverse=True)
    found = table.take(pa.array(first)).to_pylist()
    by_name = sorted(range(len(found)), key=lambda i: tuple(found[i].values()))
    number = np.empty(len(found), dtype=np.min_scalar_type(max(1, len(found) - 1)))
    number[by_name] = np.arange(len(found), dtype=number.dtype)
    columns = {name: [found[i][name] for i in by_name] for name in table.column_names}
    return pa.table({"group": pa.array(range(len(found)), pa.uint32()), **columns}), number[codes]


def write_uses(folder: Path, records: Records, execution: Execution, found: Iterable[Uses]) -> Path:
    """Write the uses of `execution`, added up by role and record. Raises `UserError` for a record that is not known."""
    counts: dict[str, NDArray[Any]] = {}
    for uses in found:
        rows = record_ids.find(records.ids, uses.ids)
        if (rows < 0).any():
            missing = uses.ids[rows < 0][0].tobytes().hex()
            raise UserError(
                f"{execution.stage} used record {missing} ({uses.role}), which is not in the data that the record "
                "index has for it: the artifacts in the workspace do not belong together. Mend them with: axon run",
                exit_code=1,
            )
        total = np.bincount(rows, weights=uses.counts, minlength=len(records.ids))
        counts[uses.role] = counts[uses.role] + total if uses.role in counts else total
    return write_counts(folder, records, execution, counts)


def write_counts(folder: Path, records: Records, execution: Execution, counts: Mapping[str, NDArray[Any]]) -> Path:
    """Write how often `execution` used each record: by role, an array as long as the records."""
    import pyarrow as pa

    parts, totals = [], []
    for role in sorted(counts):
        rows = np.flatnonzero(counts[role])
        of_role = counts[role][rows]
        columns = {
            "role": parquet_files.of_one_text(role, len(rows)),
            "row": parquet_files.of_numbers(rows.astype(np.uint32)),
            "count": parquet_files.of_numbers(of_role.astype(np.uint64)),
        }
        parts.append(pa.table(columns))
        groups = records.groups[rows]
        n_records, n_uses = np.bincount(groups), np.bincount(groups, weights=of_role)
        totals += [Total(role, int(g), int(n_records[g]), int(n_uses[g])) for g in np.flatnonzero(n_records)]
    path = uses_path(folder, execution)
    parquet_files.write(
        path,
        parts,
        metadata={_METADATA: json.dumps({"totals": totals})},
        use_dictionary=["role", "count"],
        column_encoding={"row": "DELTA_BINARY_PACKED"},
        compression="zstd",
        write_statistics=["role", "row"],
    )
    return path


def read_groups(folder: Path) -> NDArray[np.integer[Any]]:
    """The group of each record, in the order of their ids."""
    return parquet_files.numbers(parquet_files.read(folder / "records.parquet", ["group"]).column("group"))


def read_rows(path: Path, roles: Collection[str]) -> Iterator[NDArray[np.uint32]]:
    """The rows of `records.parquet` that had one of the `roles` in a file of uses, in parts; each once for a role."""
    sizes: dict[str, int] = {}
    for total in read_totals(path):  # roles follow one another in the file, each from a row group of its own on
        sizes[total.role] = sizes.get(total.role, 0) + total.n_records
    for role, start in zip(sizes, itertools.accumulate(sizes.values(), initial=0), strict=False):
        if role in roles:
            yield from parquet_files.iterate(path, "row", start, start + sizes[role])


def read_totals(path: Path) -> list[Total]:
    content = json.loads(parquet_files.metadata_of(path, _METADATA))
    return [Total(*total) for total in content["totals"]]
