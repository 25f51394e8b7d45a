"""Shards of texts become ids in other processes, and ids become one array."""

from __future__ import annotations

import base64
import os
from array import array
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from tokenizers import Tokenizer

from tasks.tokenizers import chat, folder
from tasks.tokenizers.words import Encoder

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
    """For fan-out: `{"root": …, "texts": […]}` or `{"root": …, "prompts": […], "answers": […]}` to their ids.

    A text ends with `<|endoftext|>`; a demonstration is a whole chat, with the length of its prompt.
    """
    path = Path(item["root"]) / "tokenizer"
    tokenizer, encoder = _loaded(path, (path / folder.FILES[0]).stat().st_mtime_ns)
    tokens, lengths, prompt_lengths = array("H"), [], []
    if "texts" in item:
        for ids in encoder.encode(item["texts"]):
            tokens.extend(ids)
            tokens.append(chat.END_OF_TEXT)
            lengths.append(len(ids) + 1)
            prompt_lengths.append(0)
    else:
        for prompt, answer in zip(item["prompts"], item["answers"], strict=True):
            example, prompt_length = chat.encode_example(tokenizer, prompt, answer)
            tokens.fromlist(example)
            lengths.append(len(example))
            prompt_lengths.append(prompt_length)
    return {"tokens": pack(tokens), "lengths": lengths, "prompt_lengths": prompt_lengths}


@lru_cache(maxsize=1)
def _loaded(path: Path, _modified_ns: int) -> tuple[Tokenizer, Encoder]:
    """The tokenizer, and what remembers the tokens of words, for all shards that a process encodes."""
    tokenizer = folder.load(path)
    return tokenizer, Encoder(tokenizer)


def pack(tokens: array[int]) -> str:
    """Ids as base64 of little-endian uint16, a quarter of the size of JSON numbers."""
    return base64.b64encode(np.asarray(tokens, dtype="<u2").tobytes()).decode()


def unpack(text: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), dtype="<u2")


def write_array(path: Path, parts: Iterable[np.ndarray], n_tokens: int | None = None) -> int:
    """Write parts one after another as a .npy of uint16, atomically, one part in memory at a time; returns their
    length.

    Raises RuntimeError, and leaves nothing behind, if that is not `n_tokens` where it is given.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    written = 0
    try:
        with temporary.open("wb") as file:
            _write_header(file, 0)
            begin = file.tell()
            for part in parts:
                file.write(np.ascontiguousarray(part, dtype="<u2").data)
                written += len(part)
            file.seek(0)
            _write_header(file, written)  # as long as before: numpy leaves room for the length to grow
            if file.tell() != begin:
                raise RuntimeError(f"{path.name}: its header of {file.tell()} bytes was {begin} bytes long")
            file.flush()
            os.fsync(file.fileno())
        if n_tokens is not None and written != n_tokens:
            raise RuntimeError(f"{path.name}: {written} tokens written where the index has {n_tokens}")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return written


def _write_header(file: BinaryIO, n_tokens: int) -> None:
    header = {"descr": "<u2", "fortran_order": False, "shape": (n_tokens,)}
    np.lib.format.write_array_header_1_0(file, header)


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
