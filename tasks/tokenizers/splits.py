"""Tokenise every split of the data: an array of tokens each, and an index from documents to records beside it.

Memory holds `WINDOW` shards and what the index says of each document, whatever the size of the data.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from tasks.data import records
from tasks.data.records import DEMONSTRATION_SPLITS, TEXT_SPLITS, TRAIN
from tasks.files import new_directory
from tasks.tokenizers import chat, rows, shards

WINDOW = 64  # shards that are handed out together; all of their tokens are in memory
FanOut = Callable[[str, str, Sequence[Mapping[str, Any]]], Sequence[Any]]  # see tasks/steps/context.py
# The columns with the text of each table, and their names in the items of a fan-out.
COLUMNS = {"text": {"text": "texts"}, "demonstrations": {"prompt": "prompts", "answer": "answers"}}
SPLITS = {"text": TEXT_SPLITS, "demonstrations": DEMONSTRATION_SPLITS}


@dataclass(frozen=True, kw_only=True)
class TrainingTexts:
    """Texts and demonstrations of the split train alone: what is held out must not shape the vocabulary."""

    root: Path

    def __iter__(self) -> Iterator[str]:
        for split, text in rows.columns(_path(self.root, "text"), ["split", "text"]):
            if split == TRAIN:
                yield text
        for split, prompt, answer in rows.columns(_path(self.root, "demonstrations"), ["split", "prompt", "answer"]):
            if split == TRAIN:
                yield from (message["content"] for message in chat.to_messages(prompt))
                yield answer


@dataclass(frozen=True, kw_only=True)
class _Split:
    """One split of one table: the numbers of its rows there, also cut into shards, and the sizes of all rows."""

    table: str
    name: str
    rows: list[int]
    n_bytes: list[int]
    shards: list[list[int]]


def _path(root: Path, table: str) -> Path:
    return root / "data" / f"{table}.parquet"


def _plan(root: Path, table: str) -> list[_Split]:
    n_bytes = rows.sizes(_path(root, table), list(COLUMNS[table]))
    of_row = [split for (split,) in rows.columns(_path(root, table), ["split"])]
    planned = []
    for name in SPLITS[table]:
        of_split = [row for row, split in enumerate(of_row) if split == name]
        parts = shards.plan(n_bytes, of_split)
        planned.append(_Split(table=table, name=name, rows=of_split, n_bytes=n_bytes, shards=parts))
    return planned


class _Items(Sequence[Mapping[str, Any]]):
    """The items of a fan-out: each shard with its text, which is read when the item is asked for."""

    def __init__(self, root: Path, parts: Sequence[tuple[str, list[int]]], readers: Mapping[str, rows.Reader]) -> None:
        self._root = str(root)
        self._parts = parts
        self._readers = readers

    def __len__(self) -> int:
        return len(self._parts)

    def __getitem__(self, index: Any) -> Any:
        table, part = self._parts[index]
        taken = self._readers[table].take(part)
        return {"root": self._root, **{COLUMNS[table][name]: values for name, values in taken.items()}}


def _encoded(root: Path, planned: Sequence[_Split], fan_out: FanOut) -> Iterator[Any]:
    """The results of all shards in their order, a window of them at a time."""
    parts = [(split.table, part) for split in planned for part in split.shards]
    readers = {table: rows.Reader(_path(root, table), list(columns)) for table, columns in COLUMNS.items()}
    for first in range(0, len(parts), WINDOW):
        items = _Items(root, parts[first : first + WINDOW], readers)
        yield from fan_out(f"tokens_{first:06d}", "tasks.tokenizers.shards:encode", items)


def tokenise(root: Path, fan_out: FanOut) -> dict[str, dict[str, dict[str, int]]]:
    """Write tokens/ from data/ and tokenizer/; returns documents, tokens and bytes by table and split."""
    planned = [split for table in SPLITS for split in _plan(root, table)]
    results = _encoded(root, planned, fan_out)
    sizes: dict[str, dict[str, dict[str, int]]] = {table: {} for table in SPLITS}
    with new_directory(root / "tokens") as folder:
        for split in planned:
            of_split = islice(results, len(split.shards))
            sizes[split.table][split.name] = _write(root, folder, split, of_split)
    return sizes


def _write(root: Path, folder: Path, split: _Split, results: Iterator[Any]) -> dict[str, int]:
    """Write the tokens of a split with their index."""
    name = f"{split.table}.{split.name}"
    lengths: list[int] = []
    prompt_lengths: list[int] = []

    def parts() -> Iterator[np.ndarray]:
        for result in results:
            tokens = shards.unpack(result["tokens"])
            if len(tokens) != sum(result["lengths"]):
                raise RuntimeError(f"{name}: a shard of {len(tokens)} tokens has lengths of {sum(result['lengths'])}")
            lengths.extend(result["lengths"])
            prompt_lengths.extend(result["prompt_lengths"])
            yield tokens

    n_tokens = shards.write_array(folder / f"{name}.npy", parts())
    if len(lengths) != len(split.rows):
        raise RuntimeError(f"{name}: {len(lengths)} documents came back of {len(split.rows)}")
    more = {"text": ["record_id"], "demonstrations": ["record_id", "task"]}[split.table]
    taken = rows.Reader(_path(root, split.table), more).take(split.rows)
    index: dict[str, list[Any]] = {
        "record_id": taken["record_id"],
        "offset": list(shards.offsets(lengths)),
        "length": lengths,
    }
    if split.table == "text":
        index["n_bytes"] = [split.n_bytes[row] for row in split.rows]
    else:
        index |= {"prompt_length": prompt_lengths, "task": taken["task"]}
    records.write(folder / f"{name}.index.parquet", index)
    n_bytes = sum(split.n_bytes[row] for row in split.rows)
    return {"documents": len(split.rows), "tokens": n_tokens, "bytes": n_bytes}
