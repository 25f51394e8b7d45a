"""Which stage executions used a record, and which records an execution used: the record index, built and asked.

The index knows *direct* uses; `tasks.lineage.records.answers.inherited` takes them on to what was made from there.
It is Parquet below `.axon/records/` (see `tasks.lineage.records.tables`), read with DuckDB.
"""

from __future__ import annotations

import heapq
import itertools
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from tasks.data import records as data_records
from tasks.errors import UserError
from tasks.lineage.records import tables, usage
from tasks.lineage.records.answers import Contents, Found, Place, Share, Use
from tasks.lineage.records.ids import Ids
from tasks.lineage.records.tables import DATA, RANKINGS, Execution, Facts
from tasks.lineage.records.usage import SHAPING
from tasks.runtime.stages import read_lock

if TYPE_CHECKING:
    import duckdb

T = TypeVar("T")
_TEXTS = {
    "data/text.parquet": ("text",),
    "data/demonstrations.parquet": ("prompt", "answer"),
    "data/rejects.parquet": ("text",),
}
_PARQUET = "read_parquet($files, filename = true, file_row_number = true, hive_partitioning = false)"
_N_READERS = 4
_N_NEWLINES = 16  # of a text, each of which is tried as what parts prompt and answer


def build(
    root: Path,
    state: Path,
    stage: str,
    execution: str,
    parameters: Mapping[str, Any],
    outputs: Mapping[str, str],
    inputs: Mapping[str, str],
) -> list[Path]:
    """Add what an execution of `stage` consumed to the index in `state`; returns the files written, if any.

    Called when its outputs stand in `root`. parameters: the values it had, all of params.yaml or the stage's keys;
    PPO with a `pretraining_coef` needs `pretrain.seq_len` besides its own. outputs, inputs: MD5 by path, as
    `dvc.lock` has them. Raises `UserError` where the workspace does not hold what the execution used.
    """
    found = usage.uses_of(stage, root, parameters)
    written = []
    for of_rankings in (False, True):
        part = [uses for uses in found if uses.of_rankings is of_rankings]
        if part:
            digests = _digests(root, {**inputs, **outputs}, (RANKINGS,) if of_rankings else DATA)
            folder = tables.folder_of(state, digests)
            records = tables.ensure(folder, root, digests)
            written.append(tables.write_uses(folder, records, Execution(stage, execution), part))
    return written


def _digests(root: Path, known: Mapping[str, str], wanted: Sequence[str]) -> dict[str, str]:
    """The MD5 of the `wanted` files behind an execution that read and wrote `known`, by `dvc.lock`."""
    found, waiting = dict(known), list(known)
    lock = {} if set(wanted) <= set(found) else read_lock(root)
    deps = {out["path"]: entry.get("deps", ()) for entry in lock.values() for out in entry.get("outs", ())}
    while waiting:
        for dep in deps.get(waiting.pop(), ()):
            if dep["path"] not in found and "md5" in dep:
                found[dep["path"]] = dep["md5"]
                waiting.append(dep["path"])
    missing = [path for path in wanted if path not in found]
    if missing:
        raise UserError(
            f"dvc.lock does not say which {' and '.join(missing)} this stage's inputs were made from; "
            "restore it with: git checkout dvc.lock",
            exit_code=1,
        )
    return {path: found[path] for path in wanted}


class RecordIndex:
    """Questions to the index in `state`; texts and places are looked up in the workspace `root`."""

    def __init__(self, state: Path, root: Path) -> None:
        self._state, self._root = state, root
        self._folders = sorted(path.parent for path in (state / "records").glob("*/records.parquet"))

    def uses_of(self, record_id: bytes) -> list[Use]:
        """Its direct uses by all executions, over all versions of data."""
        query = f'SELECT filename, role, "count" FROM {_PARQUET} WHERE "row" = $row'
        found = []
        for _, folder, row, _ in self._rows([record_id]):
            if files := sorted(folder.glob("uses-*.parquet")):
                rows = self._ask(query, files, row=row)
                found += [Use(*tables.execution_of(Path(name)), role, int(n)) for name, role, n in rows]
        return sorted(found)

    def facts_of(self, record_id: bytes) -> list[Facts]:
        """What the index knows of it, once for each version of data that says something else."""
        return sorted({self._groups[folder][group] for _, folder, _, group in self._rows([record_id])})

    def places_of(self, record_id: bytes) -> list[Place]:
        """Where it stands in the workspace now; several places where documents have the same text."""
        found: set[Place] = set()
        for _, folder, row, group in self._rows([record_id]):
            (path,) = (path for path, kind in tables.KINDS.items() if kind == self._groups[folder][group].kind)
            query = f"SELECT place FROM {_PARQUET} WHERE file_row_number = $row"
            places = self._ask(query, [folder / "records.parquet"], row=row)
            places += self._ask(
                f'SELECT place FROM {_PARQUET} WHERE "row" = $row', [folder / "copies.parquet"], row=row
            )
            for (place,) in places:  # in a workspace with another version of data, another record stands there
                found.update(self._standing(path, record_id, f"file_row_number = {place:d} AND"))
        if not found and not self._knows_workspace():
            return [place for path in DATA for place in self._standing(path, record_id)]
        return sorted(found)

    def _knows_workspace(self) -> bool:
        """Whether the data that `dvc.lock` records is indexed, so that its files need not be looked through."""
        outs = [out for entry in read_lock(self._root).values() for out in entry.get("outs", ())]
        digests = {out["path"]: out["md5"] for out in outs if out["path"] in DATA and "md5" in out}
        return tables.folder_of(self._state, digests) in self._folders

    def _standing(self, path: str, record_id: bytes, where: str = "") -> list[Place]:
        if not (self._root / path).is_file():
            return []
        columns = "file, symbol" if path in DATA else "'', ''"
        query = f"SELECT {columns} FROM {_PARQUET} WHERE {where} record_id = $record_id"
        return [Place(path, *row) for row in self._ask(query, [self._root / path], record_id=record_id)]

    def contents_of(self, executions: Collection[str], roles: Collection[str] = SHAPING) -> Contents:
        """What records the `executions` had in these `roles`; for a model, give those of all its ancestors."""
        by_use: dict[tuple[str, str, str], list[Share]] = defaultdict(list)
        distinct, wanted = [], set(executions)
        indexed: set[str] = set()
        for folder, groups in self._groups.items():
            n_uses = np.zeros(len(groups), dtype=np.int64)
            for path in sorted(folder.glob("uses-*.parquet")):
                stage, execution = tables.execution_of(path)
                if execution not in wanted:
                    continue
                indexed.add(execution)
                for role, group, n_records, n in self._reading(path, tables.read_totals):
                    if role in roles:
                        by_use[stage, execution, role].append(Share(groups[group], n_records, n))
                        n_uses[group] += n
            if n_uses.any():
                of_records = self._reading(folder, tables.read_groups)
                is_used = self._is_used(folder, wanted, roles, len(of_records))
                n_distinct = np.bincount(of_records[is_used], minlength=len(groups))
                distinct += [Share(groups[g], int(n_distinct[g]), int(n_uses[g])) for g in np.flatnonzero(n_distinct)]
        return Contents(by_use=dict(by_use), distinct=_added(distinct), unindexed=sorted(wanted - indexed))

    def ids_of(self, executions: Collection[str], roles: Collection[str] = SHAPING) -> Iterator[bytes]:
        """The ids of those records in order, each once."""
        parts = [self._used_ids(folder, executions, roles) for folder in self._folders]
        in_order = (map(np.ndarray.tobytes, part) for part in parts)
        for record_id, _ in itertools.groupby(heapq.merge(*in_order)):
            yield record_id

    def find_text(self, text: str, *, limit: int = 1000) -> list[Found]:
        """Records whose content holds `text` as it is written, among those in the workspace, rejected ones too; and
        those of any version of data whose whole content is `text`, by their id. At most `limit` of each file."""
        if not text.strip():
            raise UserError("there is no text to look for; give some words of the record, or its id")
        found = []
        for path, columns in _TEXTS.items():
            if (self._root / path).is_file():
                holds = " OR ".join(f"contains({column}, $text)" for column in columns)
                query = f"SELECT DISTINCT record_id FROM {_PARQUET} WHERE {holds} ORDER BY 1 LIMIT {limit:d}"
                rows = self._ask(query, [self._root / path], text=text)
                found += [Found(record_id.hex(), path) for (record_id,) in rows]
        sources = {facts.source for groups in self._groups.values() for facts in groups}
        ids = {data_records.record_id(source, content) for source in sources for content in _contents(text)}
        by_id = {record_id.hex() for record_id, *_ in self._rows(sorted(ids))}
        return found + [Found(digits, "index") for digits in sorted(by_id - {known for known, _ in found})]

    def _rows(self, wanted: Sequence[bytes]) -> list[tuple[bytes, Path, int, int]]:
        """(id, folder, row, group) of each of the `wanted` ids in each version of data that has it."""
        if not self._folders or not wanted:
            return []
        # Values in the query, not a list as one: Parquet's row groups are then skipped by their statistics.
        names = {f"id{i}": record_id for i, record_id in enumerate(wanted)}
        query = (
            f'SELECT record_id, filename, file_row_number, "group" FROM {_PARQUET} '
            f"WHERE record_id IN ({', '.join(f'${name}' for name in names)})"
        )
        rows = self._ask(query, [folder / "records.parquet" for folder in self._folders], **names)
        return [(record_id, Path(name).parent, row, group) for record_id, name, row, group in rows]

    @cached_property
    def _groups(self) -> dict[Path, list[Facts]]:
        """What the group numbers of each version of data stand for."""
        if not self._folders:
            return {}
        query = f'SELECT filename, {", ".join(Facts._fields)} FROM {_PARQUET} ORDER BY filename, "group"'
        groups: dict[Path, list[Facts]] = defaultdict(list)
        for name, *values in self._ask(query, [folder / "groups.parquet" for folder in self._folders]):
            groups[Path(name).parent].append(Facts(*values))
        return groups

    def _is_used(self, folder: Path, executions: Collection[str], roles: Collection[str], n: int) -> NDArray[np.bool_]:
        """(n,): whether one of the `executions` had the record of each row of `folder` in one of the `roles`."""
        is_used = np.zeros(n, dtype=bool)
        paths = [path for path in sorted(folder.glob("uses-*.parquet")) if tables.execution_of(path).id in executions]

        def mark(path: Path) -> None:
            for rows in tables.read_rows(path, roles):
                is_used[rows] = True

        with ThreadPoolExecutor(_N_READERS) as pool:
            for _ in pool.map(lambda path: self._reading(path, mark), paths):
                pass
        return is_used

    def _used_ids(self, folder: Path, executions: Collection[str], roles: Collection[str]) -> Ids:
        records = self._reading(folder, tables.read)
        return records.ids[self._is_used(folder, executions, roles, len(records.ids))]

    @cached_property
    def _connection(self) -> duckdb.DuckDBPyConnection:
        import duckdb

        # Nothing is fetched or loaded from elsewhere: Parquet is built in.
        return duckdb.connect(config={"autoinstall_known_extensions": False, "autoload_known_extensions": False})

    def _ask(self, query: str, files: Sequence[Path], **values: Any) -> list[tuple[Any, ...]]:
        """The rows that answer a query on `files`, which it calls _PARQUET."""
        import duckdb

        try:
            return self._connection.execute(query, {"files": [str(file) for file in files], **values}).fetchall()
        except duckdb.Error as error:
            raise _damaged(files[0] if len(files) == 1 else files[0].parent, error) from None

    def _reading(self, path: Path, read: Callable[[Path], T]) -> T:
        import pyarrow as pa

        try:
            return read(path)
        except (OSError, ValueError, KeyError, pa.ArrowException) as error:
            raise _damaged(path / "records.parquet" if path.is_dir() else path, error) from None


def _damaged(path: Path, error: Exception) -> UserError:
    return UserError(
        f"{path} cannot be read: {error}\n"
        "Bring back a file of data/ with `dvc checkout`, one of the record index from a copy; or remove it: the index "
        "then no longer knows what is in it.",
        exit_code=1,
    )


def _contents(text: str) -> set[str]:
    """What a record may hold that is shown as `text`: a text, or a demonstration, shown with one new line between
    prompt and answer."""
    lines = text.strip().split("\n")[: _N_NEWLINES + 1]
    rest = text.strip()[len("\n".join(lines)) :]
    both = {"\n".join(lines[:i]) + "\x00" + "\n".join(lines[i:]) + rest for i in range(1, len(lines))}
    return {text, text.strip(), *both}


def _added(shares: Sequence[Share]) -> list[Share]:
    """One share for the same facts in several versions of data."""
    numbers: dict[Facts, list[int]] = defaultdict(lambda: [0, 0])
    for facts, n_records, n_uses in shares:
        numbers[facts][0] += n_records
        numbers[facts][1] += n_uses
    return [Share(facts, n_records, n_uses) for facts, (n_records, n_uses) in sorted(numbers.items())]
