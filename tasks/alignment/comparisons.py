"""Ranked answers to prompts: `preferences/comparisons.parquet`, and the pairs that training takes from it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from tasks.data import records
from tasks.errors import UserError

PATH = Path("preferences") / "comparisons.parquet"


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """K answers to one prompt. ranks: 1 is best, equal ranks are ties. judge: "programmatic" or "human"."""

    record_id: bytes
    source: str
    task: str
    split: str
    prompt: str
    prompt_tokens: list[int]
    answers: list[str]
    answer_tokens: list[list[int]]
    scores: list[float]
    ranks: list[int]
    judge: str

    def n_pairs(self) -> int:
        """Pairs of answers with a winner."""
        return sum(a < b for a in self.ranks for b in self.ranks)

    def sequences(self) -> list[list[int]]:
        """Prompt and answer as one list of tokens, for each answer."""
        return [self.prompt_tokens + answer for answer in self.answer_tokens]

    def longest(self) -> int:
        return len(self.prompt_tokens) + max(len(answer) for answer in self.answer_tokens)


def write(root: Path, comparisons: Iterable[Comparison]) -> None:
    """Write `comparisons` in the order of record_id."""
    rows = [asdict(c) for c in sorted(comparisons, key=lambda c: c.record_id)]
    columns: dict[str, list[Any]] = {f.name: [row[f.name] for row in rows] for f in fields(Comparison)}
    records.write(root / PATH, columns)


def read(root: Path, split: str) -> list[Comparison]:
    """The comparisons of `split` that have a pair with a winner. Raises `UserError` if there is none."""
    if not (root / PATH).is_file():
        raise UserError(f"{PATH} is missing; make it with: axon run preferences", exit_code=1)
    table = records.read(root / PATH)
    names = [f.name for f in fields(Comparison)]
    rows = [dict(zip(names, values, strict=True)) for values in zip(*(table[n] for n in names), strict=True)]
    found = [Comparison(**row) for row in rows if row["split"] == split]
    useful = [c for c in found if c.n_pairs()]
    if not useful:
        raise UserError(
            f"{PATH} holds no pair of answers with a winner among its {len(found)} {split} prompts; raise "
            "preferences.n_prompts, preferences.n_validation_prompts or preferences.temperature in params.yaml",
            exit_code=1,
        )
    return useful


def best_and_worst(comparison: Comparison) -> tuple[list[int], list[int]]:
    """The tokens of a best and of a worst answer; among equals the choice is by a hash of the answer."""

    def key(i: int) -> bytes:
        tokens = ",".join(map(str, comparison.answer_tokens[i]))
        return hashlib.sha256(comparison.record_id + tokens.encode()).digest()

    order = sorted(range(len(comparison.ranks)), key=lambda i: (comparison.ranks[i], key(i)))
    return comparison.answer_tokens[order[0]], comparison.answer_tokens[order[-1]]
