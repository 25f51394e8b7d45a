"""What the data is made of, counted from the records themselves."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SPLITS = ("train", "preference", "validation", "test")


@dataclass(frozen=True, kw_only=True)
class Row:
    """Records of one origin: how many in each split, and their characters."""

    origin: str
    detail: str
    license: str
    by_split: dict[str, int]
    n_chars: int

    @property
    def total(self) -> int:
        return sum(self.by_split.values())


@dataclass(frozen=True, kw_only=True)
class Composition:
    text: list[Row]
    demonstrations: list[Row]
    rejects: list[tuple[str, str, int]]
    """(source, reason, how many)."""


def _read(path: Path, names: Sequence[str]) -> dict[str, list[Any]]:
    import pyarrow.parquet as parquet

    return dict(parquet.read_table(path, columns=list(names)).to_pydict())


def _rows(columns: Mapping[str, Sequence[Any]], detail: Sequence[str], sizes: Sequence[int]) -> list[Row]:
    by_split: dict[tuple[str, str, str], Counter[str]] = defaultdict(Counter)
    n_chars: Counter[tuple[str, str, str]] = Counter()
    keys = zip(columns["source"], detail, columns["license"], strict=True)
    for key, split, n in zip(keys, columns["split"], sizes, strict=True):
        by_split[key][split] += 1
        n_chars[key] += n
    return [
        Row(origin=key[0], detail=key[1], license=key[2], by_split=dict(by_split[key]), n_chars=n_chars[key])
        for key in sorted(by_split)
    ]


def _package(package: str, version: str) -> str:
    return f"{package} {version}".strip()


def read(data: Path) -> Composition:
    """Count `text.parquet`, `demonstrations.parquet` and `rejects.parquet` in the directory `data`."""
    shared = ("source", "license", "split", "package", "version")
    text = _read(data / "text.parquet", (*shared, "text"))
    demonstrations = _read(data / "demonstrations.parquet", (*shared, "task", "prompt", "answer"))
    rejects = _read(data / "rejects.parquet", ("source", "reason"))
    tasks = [
        " · ".join(part for part in (task, _package(package, version)) if part)
        for task, package, version in zip(
            demonstrations["task"], demonstrations["package"], demonstrations["version"], strict=True
        )
    ]
    lengths = [len(p) + len(a) for p, a in zip(demonstrations["prompt"], demonstrations["answer"], strict=True)]
    counted = Counter(zip(rejects["source"], rejects["reason"], strict=True))
    return Composition(
        text=_rows(
            text,
            [_package(p, v) for p, v in zip(text["package"], text["version"], strict=True)],
            [len(content) for content in text["text"]],
        ),
        demonstrations=_rows(demonstrations, tasks, lengths),
        rejects=[(source, reason, counted[source, reason]) for source, reason in sorted(counted)],
    )
