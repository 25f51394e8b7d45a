"""Prompts with their answers as tokens, and which of them share a packed row. Nothing here imports torch."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Example:
    """A prompt with its answer, as tokens; the loss is on tokens[prompt_length:]."""

    record_id: bytes
    task: str = ""
    tokens: list[int]
    prompt_length: int

    @property
    def prompt(self) -> list[int]:
        """The tokens up to where the answer begins."""
        return self.tokens[: self.prompt_length]


def first_fit(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Rows of item numbers: each item, in order, goes to the first row with room for it.

    Raises ValueError for an item longer than `capacity`.
    """
    rows: list[list[int]] = []
    room: list[int] = []
    first_open = 0  # rows before it have no room left for even the shortest item
    shortest = min(lengths, default=0)
    for item, length in enumerate(lengths):
        if length > capacity:
            raise ValueError(f"item {item} has length {length}, more than the capacity {capacity}")
        while first_open < len(rows) and room[first_open] < shortest:
            first_open += 1
        for row in range(first_open, len(rows)):
            if room[row] >= length:
                break
        else:
            row = len(rows)
            rows.append([])
            room.append(capacity)
        rows[row].append(item)
        room[row] -= length
    return rows


def pack(examples: Sequence[Example], *, seq_len: int, seed: int) -> tuple[list[list[Example]], int]:
    """Rows of examples that fit `seq_len` inputs, and how many examples were too long and left out.

    First fit in the order of a hash of (seed, record_id), so that neither the order of the files nor the length
    decides which examples are neighbours. An example of n tokens takes n−1 places: the last is only a target.
    """
    fitting = [e for e in examples if len(e.tokens) - 1 <= seq_len]
    ordered = sorted(fitting, key=lambda e: hashlib.sha256(f"{seed}\x00{e.record_id.hex()}".encode()).digest())
    rows = first_fit([len(e.tokens) - 1 for e in ordered], seq_len)
    return [[ordered[item] for item in row] for row in rows], len(examples) - len(fitting)
