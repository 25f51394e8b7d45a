"""The token arrays of `tokens/`: text as one stream, demonstrations as examples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.data import records
from tasks.errors import UserError
from tasks.training.examples import Example


def _array(root: Path, name: str) -> NDArray[np.uint16]:
    path = root / "tokens" / f"{name}.npy"
    try:
        array: NDArray[np.uint16] = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise UserError(f"tokens/{name}.npy is missing; make it with: axon run tokenizer", exit_code=1) from None
    except (ValueError, EOFError) as error:
        raise UserError(
            f"tokens/{name}.npy is damaged ({error}); make it again with: axon run tokenizer", exit_code=1
        ) from None
    return array


def _index(root: Path, name: str, end: int) -> dict[str, list[Any]]:
    """The index of array `name`, checked to end inside the array."""
    table = records.read(root / "tokens" / f"{name}.index.parquet")
    if table["offset"] and max(o + n for o, n in zip(table["offset"], table["length"], strict=True)) > end:
        raise UserError(
            f"tokens/{name}.npy is shorter than its index says; make it again with: axon run tokenizer",
            exit_code=1,
        )
    return table


def text_stream(root: Path, split: str) -> NDArray[np.uint16]:
    """All documents of `split` one after another, each ended by <|endoftext|>: (N,) uint16, memory-mapped."""
    return _array(root, f"text.{split}")


def text_documents(root: Path, split: str, *, n_tokens: int) -> tuple[NDArray[np.int64], int]:
    """Whole documents of `split` of at least `n_tokens` tokens together (all, if there are fewer), and their bytes.

    Taken in the order of record_id, a hash of the content, so that no source or package comes first.
    """
    array = _array(root, f"text.{split}")
    index = _index(root, f"text.{split}", len(array))
    columns = zip(index["record_id"], index["offset"], index["length"], index["n_bytes"], strict=True)
    parts, taken, n_bytes = [np.zeros(0, dtype=np.int64)], 0, 0
    for _, offset, length, size in sorted(columns):
        if taken >= n_tokens:
            break
        parts.append(array[offset : offset + length].astype(np.int64))
        taken += length
        n_bytes += size
    return np.concatenate(parts), n_bytes


def demonstrations(root: Path, split: str) -> list[Example]:
    """The chat-formatted demonstrations of `split`, in the order of the index."""
    array = _array(root, f"demonstrations.{split}")
    index = _index(root, f"demonstrations.{split}", len(array))
    names = ("record_id", "task", "offset", "length", "prompt_length")
    columns = zip(*(index[name] for name in names), strict=True)
    return [
        Example(
            record_id=bytes(record_id),
            task=task,
            tokens=array[offset : offset + length].tolist(),
            prompt_length=prompt_length,
        )
        for record_id, task, offset, length, prompt_length in columns
    ]
