"""How often the stateless samplers of training took each row, without running through the steps and without torch.

Each function gives what counting over all steps of its namesake in `tasks.training` or `tasks.alignment` gives
(tests compare them), from arrays of numbers: there is no list of examples to be made first.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tasks.evaluation.prompts import is_text
from tasks.lineage.records.ids import Ids
from tasks.training.sampling import permutation, seed_of

Numbers = NDArray[np.int64]


def times_taken(n_rows: int, n_places: int, seed: int) -> Numbers:
    """(n_rows,): how often `rows_of_batch` gives each row in the batches that fill the first `n_places` places."""
    n_epochs, rest = divmod(n_places, n_rows)
    counts = np.full(n_rows, n_epochs, dtype=np.int64)
    if rest:
        counts[permutation(n_rows, seed, n_epochs)[:rest]] += 1
    return counts


def n_evaluations(n_steps: int, evaluate_every: int) -> int:
    """How often `fit` evaluates: before the first step, every so many, and after the last."""
    return n_steps // evaluate_every + 1 + bool(n_steps % evaluate_every)


def documents_read(
    offsets: Numbers, lengths: Numbers, *, n_tokens: int, seq_len: int, n_rows: int, seed: int
) -> Numbers:
    """(D,): how many of the first `n_rows` rows of `stream_batch` hold a token of each document.

    offsets, lengths: (D,), documents one after another in a stream of `n_tokens`. A row is seq_len + 1 tokens: the
    last is only a target. A long document is in several rows of one epoch, and counted for each.
    """
    n_blocks = (n_tokens - 1) // seq_len - 1
    if n_blocks < 1:
        raise ValueError(f"a stream of {n_tokens} tokens has no rows of {seq_len}")
    ends, edges = offsets + lengths, np.zeros(len(offsets) + 1, dtype=np.int64)
    for epoch in range(-(-n_rows // n_blocks)):
        n_taken = min(n_blocks, n_rows - epoch * n_blocks)
        blocks = np.arange(n_blocks) if n_taken == n_blocks else permutation(n_blocks, seed, epoch)[:n_taken]
        starts = seed_of(seed, "phase", epoch) % seq_len + blocks * seq_len
        first = np.searchsorted(ends, starts, side="right")
        beyond = np.searchsorted(offsets, starts + seq_len + 1, side="left")
        edges += np.bincount(first, minlength=len(edges)) - np.bincount(beyond, minlength=len(edges))
    return np.cumsum(edges[:-1]) * (lengths > 0)


@dataclass(frozen=True, kw_only=True)
class Packing:
    """Which examples are in which packed row: `items` (numbers of those that fit), the `rows` they are in, and the
    `n_tokens` of each row."""

    items: Numbers
    rows: Numbers
    n_tokens: Numbers

    @property
    def n_rows(self) -> int:
        return len(self.n_tokens)


def pack(ids: Ids, lengths: Numbers, *, seq_len: int, seed: int) -> Packing:
    """`tasks.training.packing.pack` for examples with these ids (N, 16) and token counts (N,)."""
    places = lengths - 1
    fitting = np.flatnonzero(places <= seq_len).tolist()
    keys = {item: hashlib.sha256(f"{seed}\x00{ids[item].tobytes().hex()}".encode()).digest() for item in fitting}
    items = np.array(sorted(fitting, key=lambda item: keys[item]), dtype=np.int64)
    rows = np.array(first_fit(places[items].tolist(), seq_len), dtype=np.int64)
    n_tokens = np.zeros(rows.max(initial=-1) + 1, dtype=np.int64)
    np.add.at(n_tokens, rows, places[items])
    return Packing(items=items, rows=rows, n_tokens=n_tokens)


def first_fit(lengths: Sequence[int], capacity: int) -> list[int]:
    """The row that `tasks.training.packing.first_fit` puts each item into."""
    rows: list[int] = []
    room: list[int] = []
    # Room only shrinks, so the first row with room for one length is never before the last one that was found.
    look_from = [0] * (capacity + 1)
    for length in lengths:
        row = look_from[length]
        while row < len(room) and room[row] < length:
            row += 1
        look_from[length] = row
        if row == len(room):
            room.append(capacity)
        room[row] -= length
        rows.append(row)
    return rows


def budget(packing: Packing, seed: int, *, tokens: int, n_steps: int) -> tuple[int, int]:
    """(rows per step, steps) as `tasks.steps.sft_continued.match_budget` chooses them."""
    an_epoch = int(packing.n_tokens.sum())
    batch_size = max(1, round(tokens / n_steps / (an_epoch / packing.n_rows)))
    n_epochs = max(0, tokens - 1) // an_epoch  # whole ones before the epoch in which the budget is reached
    seen = np.cumsum(packing.n_tokens[permutation(packing.n_rows, seed, n_epochs)])
    last = n_epochs * packing.n_rows + int(np.searchsorted(seen, tokens - n_epochs * an_epoch))
    return batch_size, last // batch_size + 1


def deal(ids: Sequence[str], tasks: Sequence[str], n: int, seed: int) -> list[int]:
    """The numbers of those that `tasks.alignment.prompts.choose` takes; ids as hexadecimal digits."""
    keys = [hashlib.sha256(f"{seed}\x00deal\x00{digits}".encode()).digest() for digits in ids]
    queues: dict[str, list[int]] = defaultdict(list)
    for item in sorted(range(len(ids)), key=lambda item: keys[item]):
        queues[tasks[item]].append(item)
    chosen: list[int] = []
    turn = 0
    while len(chosen) < min(n, len(ids)):
        for task in sorted(queues):
            n_turns = PROMPTS_A_ROUND[is_text(task)]
            chosen += queues[task][turn * n_turns : (turn + 1) * n_turns]
        turn += 1
    return chosen[:n]


PROMPTS_A_ROUND = {True: 1, False: 4}
"""Prompts of a text task, and of a maths task, in one round of dealing."""
