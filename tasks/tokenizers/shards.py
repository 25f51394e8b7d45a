"""Tokenise the records of a split in shards, and write them as one array with an index beside it."""

from __future__ import annotations

import base64
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tasks.data import records
from tasks.tokenizers import bytelevel, chat

SHARD_BYTES = 1_500_000
MAX_VOCAB_SIZE = 2**16


def plan(sizes: Sequence[int], rows: Sequence[int], shard_bytes: int = SHARD_BYTES) -> list[list[int]]:
    """Cut `rows` (row numbers, with their sizes in bytes) into consecutive parts of about `shard_bytes`."""
    parts: list[list[int]] = []
    filled = shard_bytes
    for row in rows:
        if filled >= shard_bytes:
            parts.append([])
            filled = 0
        parts[-1].append(row)
        filled += sizes[row]
    return parts


def encode(item: dict[str, Any]) -> dict[str, Any]:
    """For fan-out: `{"root": …, "table": "text" or "demonstrations", "rows": […]}` to the ids of these rows.

    A text ends with `<|endoftext|>`; a demonstration is a whole chat, with the length of its prompt.
    """
    root = Path(item["root"])
    tokenizer = bytelevel.load(root / "tokenizer")
    path = root / "data" / f"{item['table']}.parquet"
    if item["table"] == "text":
        texts = records.read(path, ["text"])["text"]
        encoded = [([*chat.encode_text(tokenizer, texts[row]), chat.END_OF_TEXT], 0) for row in item["rows"]]
    else:
        columns = records.read(path, ["prompt", "answer"])
        pairs = [(columns["prompt"][row], columns["answer"][row]) for row in item["rows"]]
        encoded = [chat.encode_example(tokenizer, prompt, answer) for prompt, answer in pairs]
    return {
        "tokens": _pack(ids for ids, _ in encoded),
        "lengths": [len(ids) for ids, _ in encoded],
        "prompt_lengths": [prompt_length for _, prompt_length in encoded],
    }


def _pack(encoded: Iterable[Sequence[int]]) -> str:
    """Ids as base64 of little-endian uint16, a quarter of the size of JSON numbers."""
    flat = np.fromiter((token for ids in encoded for token in ids), dtype="<u2")
    return base64.b64encode(flat.tobytes()).decode()


def unpack(text: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), dtype="<u2")


def write_array(path: Path, parts: Iterable[np.ndarray], n_tokens: int) -> None:
    """Write parts one after another as a .npy of `n_tokens` uint16, atomically, one part in memory at a time."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    header = {"descr": "<u2", "fortran_order": False, "shape": (n_tokens,)}
    written = 0
    try:
        with temporary.open("wb") as file:
            np.lib.format.write_array_header_1_0(file, header)
            for part in parts:
                file.write(np.ascontiguousarray(part, dtype="<u2").tobytes())
                written += len(part)
            file.flush()
            os.fsync(file.fileno())
        if written != n_tokens:
            raise RuntimeError(f"{path.name}: {written} tokens written where the index has {n_tokens}")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def offsets(lengths: Sequence[int]) -> Iterator[int]:
    """Where each document begins."""
    position = 0
    for length in lengths:
        yield position
        position += length


def load_tokens(path: Path) -> np.ndarray:
    """The tokens (N,) uint16 of a .npy, memory-mapped."""
    tokens: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    return tokens
