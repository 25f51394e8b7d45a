"""Compare what a stage wrote with what it wrote when it ran again: the same bytes, or by how much numbers differ."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

EXACT, WITHIN, NOT = "bit-exact", "within tolerance", "not deterministic"


@dataclass(frozen=True, kw_only=True)
class Compared:
    """One file. `difference`: the largest between two numbers at the same place; None where more than numbers differ,
    and `why` says what."""

    path: str
    difference: float | None
    why: str = ""


def determinism(files: list[Compared], tolerance: float) -> tuple[str, float | None]:
    """The class of a stage whose files compare like this, and the largest difference (None: not only numbers)."""
    if any(file.difference is None for file in files):
        return NOT, None
    largest = max((file.difference or 0.0 for file in files), default=0.0)
    # Files can differ in bytes and in no number (1.0 and 1.00): these are not the same bits.
    if largest == 0.0 and not any(file.why for file in files):
        return EXACT, 0.0
    return (WITHIN if largest <= tolerance else NOT), largest


def compare(path: str, before: Path, after: Path) -> Compared:
    """Compare two files with different bytes, by what the suffix of `path` says they hold."""
    reader = _READERS.get(Path(path).suffix)
    if reader is None:
        return Compared(path=path, difference=None, why="other bytes")
    try:
        difference = reader(before, after)
    except _Differs as error:
        return Compared(path=path, difference=None, why=str(error))
    except (OSError, ValueError, KeyError, TypeError) as error:
        return Compared(path=path, difference=None, why=f"it cannot be read: {error}")
    return Compared(path=path, difference=difference, why="other bytes")


class _Differs(Exception):
    """Two files differ in more than numbers."""


def _safetensors(before: Path, after: Path) -> float:
    from safetensors.torch import load_file

    one, other = load_file(before), load_file(after)
    if set(one) != set(other):
        raise _Differs(f"other tensors: {', '.join(sorted(set(one) ^ set(other))[:3])}")
    return max((_tensors(name, tensor, other[name]) for name, tensor in one.items()), default=0.0)


def _tensors(name: str, one: Any, other: Any) -> float:
    if one.dtype != other.dtype or one.shape != other.shape:
        raise _Differs(f"{name} is {other.dtype} {tuple(other.shape)}, was {one.dtype} {tuple(one.shape)}")
    return _arrays(name, one.double().numpy(), other.double().numpy())


def _numpy(before: Path, after: Path) -> float:
    import numpy

    one, other = (numpy.load(path, allow_pickle=False) for path in (before, after))
    if one.dtype != other.dtype or one.shape != other.shape:
        raise _Differs(f"{other.dtype} {other.shape}, was {one.dtype} {one.shape}")
    if one.dtype.kind not in "biuf":
        raise _Differs("other values that are no numbers")
    return _arrays("it", one.astype("float64"), other.astype("float64"))


def _arrays(name: str, one: Any, other: Any) -> float:
    """The largest difference of two float64 arrays; infinities and NaN must be at the same places."""
    import numpy

    if not one.size:
        return 0.0
    same = (one == other) | (numpy.isnan(one) & numpy.isnan(other))
    with numpy.errstate(invalid="ignore"):
        difference = float(numpy.where(same, 0.0, numpy.abs(one - other)).max())
    if not math.isfinite(difference):
        raise _Differs(f"{name} has NaN or infinity where it had none, or the other way round")
    return difference


def _json(before: Path, after: Path) -> float:
    return _trees("", json.loads(before.read_bytes()), json.loads(after.read_bytes()))


def _trees(place: str, one: Any, other: Any) -> float:
    if isinstance(one, dict) and isinstance(other, dict):
        if list(one) != list(other):
            raise _Differs(f"other keys at {place or 'the top'}")
        return max((_trees(f"{place}.{key}" if place else key, one[key], other[key]) for key in one), default=0.0)
    if isinstance(one, list) and isinstance(other, list):
        if len(one) != len(other):
            raise _Differs(f"{len(other)} entries at {place or 'the top'}, were {len(one)}")
        return max((_trees(f"{place}[{i}]", *pair) for i, pair in enumerate(zip(one, other, strict=True))), default=0.0)
    return _numbers(place, one, other)


def _numbers(place: str, one: Any, other: Any) -> float:
    if one == other and isinstance(one, bool) == isinstance(other, bool):
        return 0.0
    if any(isinstance(value, bool) or not isinstance(value, int | float) for value in (one, other)):
        raise _Differs(f"{place} is {str(other)[:40]!r}, was {str(one)[:40]!r}")
    difference = abs(float(one) - float(other))
    if not math.isfinite(difference):
        both_nan = math.isnan(float(one)) and math.isnan(float(other))
        if not both_nan:
            raise _Differs(f"{place} is {other}, was {one}")
        return 0.0
    return difference


def _csv(before: Path, after: Path) -> float:
    one, other = (list(csv.reader(path.read_text(encoding="utf-8").splitlines())) for path in (before, after))
    return _trees("", [[_cell(c) for c in row] for row in one], [[_cell(c) for c in row] for row in other])


def _cell(text: str) -> str | float:
    try:
        return float(text)
    except ValueError:
        return text


def _parquet(before: Path, after: Path) -> float:
    import pyarrow
    import pyarrow.parquet

    one, other = (pyarrow.parquet.read_table(path) for path in (before, after))
    if not one.schema.equals(other.schema) or one.num_rows != other.num_rows:
        raise _Differs(f"{other.num_rows} rows of {other.num_columns} columns, were {one.num_rows}")
    largest = 0.0
    for name in one.column_names:
        columns = one.column(name), other.column(name)
        if columns[0].equals(columns[1]):
            continue
        if not pyarrow.types.is_floating(columns[0].type):
            raise _Differs(f"other values in column {name}")
        largest = max(largest, _arrays(name, *(column.to_numpy().astype("float64") for column in columns)))
    return largest


_READERS: dict[str, Callable[[Path, Path], float]] = {
    ".safetensors": _safetensors,
    ".npy": _numpy,
    ".json": _json,
    ".csv": _csv,
    ".parquet": _parquet,
}
