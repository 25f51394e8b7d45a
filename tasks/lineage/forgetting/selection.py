"""Which candidates are meant: by ids, by a source, or by a DuckDB expression over the columns of a record."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import Any

from tasks.data.records import Demonstration, Record, Reject
from tasks.data.removals import Removals, id_digest
from tasks.errors import UserError
from tasks.lineage.forgetting.candidates import Candidate, Candidates
from tasks.lineage.records.ids import parse

COLUMNS = (
    "record_id", "kind", "status", "split", "source", "license", "package", "version", "file", "symbol", "task",
    "text", "prompt", "answer",
)  # fmt: skip


def by_ids(candidates: Candidates, texts: Sequence[str], listed: Removals) -> set[int]:
    """The candidates of record ids as they are shown (32 hex digits).

    Raises `UserError` that names every id that neither the sources, nor the outputs, nor the list know.
    """
    found: set[int] = set()
    unknown = []
    for text in texts:
        identity = parse(text)
        numbers = candidates.by_id.get(identity, [])
        found.update(numbers)
        if not numbers and id_digest(identity) not in listed.ids:
            unknown.append(text)
    if unknown:
        raise UserError(
            f"--record {', '.join(unknown)}: no such record in the sources, nor in what the data stage made of them "
            "(data/*.parquet). `axon lineage 'some words of it'` finds ids."
        )
    return found


def by_source(candidates: Candidates, name: str) -> set[int]:
    """All candidates of a source: python_docs, maths, or files:PATH; the path alone will do."""
    wanted = {name, f"files:{name}"}
    found = {n for n, candidate in enumerate(candidates.all) if candidate.record.source in wanted}
    if not found:
        close = difflib.get_close_matches(name, candidates.sources, n=1, cutoff=0.5)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise UserError(f"--source {name!r} holds no record{hint} Sources: {', '.join(candidates.sources)}.")
    return found


def by_expression(candidates: Candidates, expression: str) -> set[int]:
    """The candidates for which a boolean DuckDB expression is true.

    It can read the table of records and nothing else: no file, no network, no other database, no change of a setting,
    and the transaction is read-only. Raises `UserError` for an expression that does not do.
    """
    import duckdb

    # Nothing is loaded from elsewhere, and no text is written to disk when memory is short.
    closed: dict[str, Any] = {
        "autoinstall_known_extensions": False,
        "autoload_known_extensions": False,
        "temp_directory": "",
    }
    connection = duckdb.connect(config=closed)
    try:
        connection.register("given", _table(candidates.all))
        connection.execute("CREATE TABLE records AS SELECT * FROM given")
        connection.unregister("given")
        for setting in ("python_enable_replacements = false", "enable_external_access = false"):
            connection.execute(f"SET {setting}")
        connection.execute("SET lock_configuration = true")
        connection.execute("BEGIN TRANSACTION READ ONLY")
        kind = connection.table("records").project(expression)
        if len(kind.types) != 1 or str(kind.types[0]) != "BOOLEAN":
            is_one = f"it is {kind.types[0]}" if len(kind.types) == 1 else f"these are {len(kind.types)} expressions"
            raise UserError(f"--where {expression!r} must be one boolean expression, but {is_one}.")
        rows = connection.table("records").filter(expression).project("number").fetchall()
    except duckdb.Error as error:
        reason = str(error).split("\n", 1)[0]
        raise UserError(f"--where {expression!r}: {reason} Columns: {', '.join(COLUMNS)}.") from None
    finally:
        connection.close()
    return {int(number) for (number,) in rows}


def _table(candidates: Iterable[Candidate]) -> Any:
    import pyarrow as pa

    rows = [_row(candidate) for candidate in candidates]
    columns = {name: pa.array([row[i] for row in rows], pa.string()) for i, name in enumerate(COLUMNS)}
    return pa.table({"number": pa.array(range(len(rows)), pa.int64()), **columns})


def _row(candidate: Candidate) -> tuple[str, ...]:
    record = candidate.record
    shared = (
        (candidate.shown_id or record.record_id).hex(),
        candidate.kind,
        candidate.status,
        candidate.split,
        record.source,
    )
    if isinstance(record, Reject):
        return (*shared, "", "", "", "", "", "", record.text, "", "")
    described = (record.license, record.package, record.version, record.file, record.symbol)
    if isinstance(record, Demonstration):
        return (*shared, *described, record.task, shown(record), record.prompt, record.answer)
    return (*shared, *described, "", record.text, "", "")


def shown(record: Record | Reject) -> str:
    """The text of a record; prompt and answer as two paragraphs."""
    if isinstance(record, Reject):
        return record.text
    return record.content.replace("\x00", "\n")
