"""What a record is, how it is identified, and how records become Parquet and come back."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

TRAIN, PREFERENCE, VALIDATION, TEST = "train", "preference", "validation", "test"
TEXT_SPLITS = (TRAIN, VALIDATION, TEST)
DEMONSTRATION_SPLITS = (TRAIN, PREFERENCE, VALIDATION, TEST)
TRAINING_SPLITS = frozenset({TRAIN, PREFERENCE})
HELD_OUT_SPLITS = frozenset({VALIDATION, TEST})


def record_id(source: str, content: str) -> bytes:
    """First 16 bytes of SHA-256 of source and content: the same text from the same source is the same record."""
    return hashlib.sha256(f"{source}\x00{content}".encode()).digest()[:16]


@dataclass(frozen=True, kw_only=True)
class _Sourced:
    """Where a record is from. Records of one `group` always share a split; `split` is "" until it is assigned."""

    source: str
    license: str
    group: str
    package: str = ""
    version: str = ""
    file: str = ""
    symbol: str = ""
    split: str = ""

    @property
    def content(self) -> str:
        raise NotImplementedError

    @property
    def record_id(self) -> bytes:
        return record_id(self.source, self.content)


@dataclass(frozen=True, kw_only=True)
class TextRecord(_Sourced):
    """A text for pretraining."""

    text: str

    @property
    def content(self) -> str:
        return self.text


@dataclass(frozen=True, kw_only=True)
class Demonstration(_Sourced):
    """A prompt with its answer; `target` is what a judge compares with (the bare result for maths)."""

    task: str
    prompt: str
    answer: str
    target: str

    @property
    def content(self) -> str:
        return f"{self.prompt}\x00{self.answer}"


Record = TextRecord | Demonstration


@dataclass(frozen=True, kw_only=True)
class Reject:
    """What was left out, and why. `reason` is a short name that is counted, `detail` says more."""

    source: str
    reason: str
    detail: str
    text: str

    @property
    def record_id(self) -> bytes:
        return record_id(self.source, self.text)


def reject(record: Record, reason: str, detail: str = "") -> Reject:
    text = record.content.replace("\x00", "\n")
    return Reject(source=record.source, reason=reason, detail=detail or record.symbol, text=text)


TEXT_COLUMNS = ("record_id", "source", "license", "split", "package", "version", "file", "symbol", "text")
DEMONSTRATION_COLUMNS = (
    "record_id", "source", "license", "split", "task",
    "package", "version", "file", "symbol", "prompt", "answer", "target",
)  # fmt: skip
REJECT_COLUMNS = ("source", "record_id", "reason", "detail", "text")


def to_columns(records: Sequence[Record | Reject], names: Iterable[str]) -> dict[str, list[Any]]:
    return {name: [getattr(record, name) for record in records] for name in names}


def write(path: Path, columns: dict[str, list[Any]]) -> None:
    """Write equally long columns as Parquet, atomically; all are strings but the binary `record_id`,
    and lists and numbers as `datasets` infers them. Empty columns keep the type string."""
    from datasets import Dataset, Features, Value, disable_progress_bars

    disable_progress_bars()  # its bars would run through the lines of our own progress
    path.parent.mkdir(parents=True, exist_ok=True)
    types = {name: Value("binary") if name == "record_id" else Value("string") for name in columns}
    plain = all(not values or isinstance(values[0], str | bytes) for values in columns.values())
    dataset = Dataset.from_dict(columns, features=Features(types) if plain else None)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        dataset.to_parquet(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def read(path: Path, names: Sequence[str] | None = None) -> dict[str, list[Any]]:
    """The columns of a Parquet file, or only those named."""
    import pyarrow.parquet as parquet

    return dict(parquet.read_table(path, columns=list(names) if names is not None else None).to_pydict())


def read_texts(path: Path) -> list[TextRecord]:
    columns = read(path)
    names = [f.name for f in fields(TextRecord) if f.name in columns]
    rows = zip(*(columns[name] for name in names), strict=True)
    return [TextRecord(group="", **dict(zip(names, row, strict=True))) for row in rows]


def read_demonstrations(path: Path) -> list[Demonstration]:
    columns = read(path)
    names = [f.name for f in fields(Demonstration) if f.name in columns]
    rows = zip(*(columns[name] for name in names), strict=True)
    return [Demonstration(group="", **dict(zip(names, row, strict=True))) for row in rows]
