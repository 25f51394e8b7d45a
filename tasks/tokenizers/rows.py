"""Read Parquet files of records as they are needed: a batch of rows is in memory, never the table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

BATCH_ROWS = 512


def batches(path: Path, names: Sequence[str]) -> Iterator[Any]:
    """The named columns of a Parquet file as Arrow tables of at most `BATCH_ROWS` rows."""
    import pyarrow.parquet as parquet

    # Without pre_buffer: it would read all the row groups of a file ahead.
    with parquet.ParquetFile(path, pre_buffer=False) as file:
        yield from file.iter_batches(BATCH_ROWS, columns=list(names), use_threads=False)


def columns(path: Path, names: Sequence[str]) -> Iterator[tuple[Any, ...]]:
    """The values of the named columns, row by row."""
    for batch in batches(path, names):
        yield from zip(*(batch.column(name).to_pylist() for name in names), strict=True)


def sizes(path: Path, names: Sequence[str]) -> list[int]:
    """How many bytes of UTF-8 the named columns have together, for each row."""
    import pyarrow.compute as compute

    found: list[int] = []
    for batch in batches(path, names):
        lengths = [compute.binary_length(batch.column(name)).to_numpy(zero_copy_only=False) for name in names]
        found += np.sum(lengths, axis=0).tolist()
    return found


class Reader:
    """Takes rows of a Parquet file by their numbers; quick as long as the numbers ascend from call to call."""

    def __init__(self, path: Path, names: Sequence[str]) -> None:
        self._path = path
        self._names = tuple(names)
        self._rewind()

    def _rewind(self) -> None:
        self._batches = batches(self._path, self._names)
        self._batch: Any = None
        self._first, self._end = 0, 0  # the rows of the batch

    def take(self, rows: Sequence[int]) -> dict[str, list[Any]]:
        """The values of the named columns in these rows, whose numbers ascend."""
        if rows and rows[0] < self._first:
            self._rewind()
        found: dict[str, list[Any]] = {name: [] for name in self._names}
        done = 0
        while done < len(rows):
            while rows[done] >= self._end:
                self._batch = next(self._batches)
                self._first, self._end = self._end, self._end + len(self._batch)
            here = [row - self._first for row in rows[done : done + BATCH_ROWS] if row < self._end]
            part = self._batch.take(np.array(here))
            for name in self._names:
                found[name] += part.column(name).to_pylist()
            done += len(here)
        return found
