"""The learning curve of a stage: one row per optimiser step, written as CSV for `dvc plots`."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from pathlib import Path

from tasks.files import write_text

Row = dict[str, float]
_FIRST = ("step", "tokens", "loss", "learning_rate", "grad_norm")


class Curve:
    """Rows in the order of steps. Values are kept exactly, so that a resumed curve equals an uninterrupted one."""

    def __init__(self, rows: list[Row] | None = None) -> None:
        self.rows: list[Row] = rows if rows is not None else []

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Add `values` to the row of `step`, which is the last row or a new one."""
        if not self.rows or self.rows[-1]["step"] != step:
            self.rows.append({"step": step})
        self.rows[-1].update(values)

    def has(self, step: int, column: str) -> bool:
        return bool(self.rows) and self.rows[-1]["step"] == step and column in self.rows[-1]

    def last(self, column: str) -> float:
        return next(row[column] for row in reversed(self.rows) if column in row)

    def newest(self, column: str, n_rows: int) -> list[float]:
        """The last `n_rows` values of `column`, newest first."""
        values = (row[column] for row in reversed(self.rows) if column in row)
        return list(islice(values, n_rows))

    def mean_of_last(self, column: str, n_rows: int) -> float:
        """Mean of the last `n_rows` values of `column`: one step's loss is noise."""
        values = [row[column] for row in self.rows if column in row][-n_rows:]
        return sum(values) / len(values)

    def write(self, path: Path) -> None:
        """CSV with a column for every value that any row has, validation last; empty where a row has none."""
        found = {name for row in self.rows for name in row}
        # By name, not in the order of the rows' keys: rows that come back from a checkpoint have theirs sorted.
        names = [name for name in _FIRST if name in found]
        names += sorted(found.difference(names), key=lambda name: (name.startswith("validation"), name))
        lines = [",".join(names)]
        lines += [",".join(repr(row[name]) if name in row else "" for name in names) for row in self.rows]
        write_text(path, "\n".join(lines) + "\n")
