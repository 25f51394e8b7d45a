"""Record ids by the million: rows of a (N, 16) uint8 array, put in order and found as pairs of 64-bit numbers."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tasks.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa

SIZE = 16
Ids = NDArray[np.uint8]
"""(N, 16): one record id in each row."""


def parse(text: str) -> bytes:
    """The 16 bytes of a record id as it is shown. Raises `UserError` unless `text` is 32 hexadecimal digits."""
    digits = text.strip()
    if not re.fullmatch(r"[0-9a-fA-F]{32}", digits):
        raise UserError(
            f"{text!r} is not a record id: one has {2 * SIZE} hexadecimal digits, this has {len(digits)} characters. "
            "Find ids by a piece of the text: axon lineage 'some words of it'"
        )
    return bytes.fromhex(digits)


def of_bytes(ids: list[bytes]) -> Ids:
    return np.frombuffer(b"".join(ids), dtype=np.uint8).reshape(-1, SIZE)


def of_column(column: pa.ChunkedArray) -> Ids:
    """The ids of a binary column. Raises ValueError (`pyarrow.ArrowInvalid`) where a value has not 16 bytes."""
    import pyarrow as pa

    if column.null_count:
        raise ValueError(f"{column.null_count} record ids are missing")
    fixed = column.cast(pa.binary(SIZE)).combine_chunks()
    parts = fixed.chunks if isinstance(fixed, pa.ChunkedArray) else [fixed]
    return np.concatenate([np.zeros((0, SIZE), np.uint8), *(_view(part) for part in parts)])


def _view(array: Any) -> Ids:
    flat: Ids = np.frombuffer(array.buffers()[1], dtype=np.uint8) if len(array) else np.zeros(0, np.uint8)
    return flat[array.offset * SIZE : (array.offset + len(array)) * SIZE].reshape(-1, SIZE)


def to_column(ids: Ids) -> pa.Array:
    import pyarrow as pa

    return pa.Array.from_buffers(pa.binary(SIZE), len(ids), [None, pa.py_buffer(np.ascontiguousarray(ids))])


def halves(ids: Ids) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """The first and the last 8 bytes of each id as numbers: comparing the pairs is comparing the bytes."""
    both = np.ascontiguousarray(ids).view(">u8")  # (N, 2)
    return both[:, 0].astype(np.uint64), both[:, 1].astype(np.uint64)


def order(ids: Ids) -> NDArray[np.int64]:
    """What sorts `ids` by their bytes; equal ids keep their order."""
    high, low = halves(ids)
    by_high = np.argsort(high, kind="stable")
    in_order = high[by_high]
    if (in_order[1:] == in_order[:-1]).any():
        return np.lexsort((low, high))
    return by_high


def distinct(ids: Ids) -> NDArray[np.int64]:
    """The rows that hold each id for the first time, in the order of the ids' bytes."""
    rows = order(ids)
    high, low = (half[rows] for half in halves(ids))
    is_first = np.ones(len(rows), dtype=bool)
    is_first[1:] = (high[1:] != high[:-1]) | (low[1:] != low[:-1])
    return rows[is_first]


def find(table: Ids, wanted: Ids) -> NDArray[np.int64]:
    """The rows of `wanted` in `table`, whose ids are distinct and in order; −1 where it is not there."""
    rows = np.full(len(wanted), -1, dtype=np.int64)
    if not len(table) or not len(wanted):
        return rows
    high, low = halves(table)
    wanted_high, wanted_low = halves(wanted)
    near = np.argsort(wanted_high)  # neighbours are looked for one after another: 5 times faster in a large table
    place = np.empty(len(wanted), dtype=np.int64)
    place[near] = np.searchsorted(high, wanted_high[near])
    waiting = np.arange(len(wanted))
    while len(waiting):  # once, unless ids share their first half
        waiting = waiting[place[waiting] < len(table)]
        waiting = waiting[high[place[waiting]] == wanted_high[waiting]]
        is_there = low[place[waiting]] == wanted_low[waiting]
        rows[waiting[is_there]] = place[waiting[is_there]]
        waiting = waiting[~is_there]
        place[waiting] += 1
    return rows
