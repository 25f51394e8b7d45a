"""Parquet files written whole and read by column, without what loads pandas: 0.3 s, more than most of the rest.

Those are `pyarrow.dataset` (behind `parquet.read_table`), `pyarrow.array` and `to_numpy`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import pyarrow as pa

ROWS_A_GROUP = 2**17  # a look-up decodes one row group, and a footer lists all of them


def write(path: Path, parts: Sequence[pa.Table], metadata: Mapping[str, str] | None = None, **options: Any) -> None:
    """Write tables of one schema as one file, atomically; each begins a row group of its own."""
    import pyarrow.parquet as parquet

    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            with parquet.ParquetWriter(file, parts[0].schema, store_schema=False, **options) as writer:
                for part in parts:
                    writer.write_table(part, row_group_size=ROWS_A_GROUP)
                writer.add_key_value_metadata(dict(metadata or {}))
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def read(path: Path, names: Sequence[str]) -> pa.Table:
    """The named columns. Raises KeyError for one that is not there."""
    import pyarrow.parquet as parquet

    with parquet.ParquetFile(path, memory_map=True) as file:
        missing = set(names) - set(file.schema_arrow.names)
        if missing:
            raise KeyError(f"no column {', '.join(sorted(missing))}")
        return file.read(columns=list(names))


def read_numbers(path: Path, name: str, start: int, stop: int) -> NDArray[Any]:
    """Rows `start` to `stop` of a column of numbers; only the row groups that hold them are decoded."""
    import pyarrow.parquet as parquet

    with parquet.ParquetFile(path, memory_map=True) as file:
        sizes = [file.metadata.row_group(i).num_rows for i in range(file.metadata.num_row_groups)]
        ends = np.cumsum(sizes)
        held = np.flatnonzero((ends > start) & (ends - sizes < stop)).tolist()
        found = numbers(file.read_row_groups(held, columns=[name]).column(name))
    first = int(ends[held[0]]) - sizes[held[0]] if held else start
    return found[start - first : stop - first]


def columns_of(path: Path) -> list[str]:
    import pyarrow.parquet as parquet

    return list(parquet.read_schema(path).names)


def n_rows(path: Path) -> int:
    import pyarrow.parquet as parquet

    return int(parquet.read_metadata(path).num_rows)


def metadata_of(path: Path, key: str) -> str:
    """Raises KeyError where there is no such metadata."""
    import pyarrow.parquet as parquet

    return (parquet.read_metadata(path).metadata or {})[key.encode()].decode()


def numbers(column: pa.ChunkedArray) -> NDArray[Any]:
    """The values of a column of numbers. Raises ValueError where some are missing."""
    if column.null_count:
        raise ValueError(f"{column.null_count} numbers are missing")
    dtype = np.dtype(str(column.type))
    parts = [np.frombuffer(c.buffers()[1], dtype)[c.offset : c.offset + len(c)] for c in column.chunks if len(c)]
    return np.concatenate([np.zeros(0, dtype), *parts]) if len(parts) != 1 else parts[0]


def of_numbers(values: NDArray[Any]) -> pa.Array:
    import pyarrow as pa

    buffer = pa.py_buffer(np.ascontiguousarray(values))
    return pa.Array.from_buffers(pa.from_numpy_dtype(values.dtype), len(values), [None, buffer])


def of_one_text(text: str, n: int) -> pa.Array:
    """A column that holds `text` `n` times."""
    import pyarrow as pa

    content = text.encode()
    ends = pa.py_buffer(np.array([0, len(content)], dtype=np.int32))
    texts = pa.StringArray.from_buffers(1, ends, pa.py_buffer(content))
    return pa.DictionaryArray.from_arrays(of_numbers(np.zeros(n, dtype=np.int32)), texts)
