"""Quality over time for a reader: a row for each decision that measured, and a line for each metric."""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from tasks.lineage.wording import when
from tasks.promotion import quality
from tasks.promotion.quality import Point
from tasks.registry import CHALLENGER, CHAMPION


def show(console: Console, measured: Sequence[Point]) -> None:
    """Print the table and a line for each metric; nothing where nothing was measured."""
    if not measured:
        return
    console.print(_table(measured))
    if not all(quality.comparable(measured)):
        console.print("* measured on other items than the decision before: its figures do not compare with those above")
    for line in _lines(measured):
        console.print(line, soft_wrap=True)


def _table(measured: Sequence[Point]) -> Table:
    table = Table(
        title="Quality over time: the new model (the champion it met)",
        title_justify="left",
        title_style="bold",
        box=SIMPLE,
        pad_edge=False,
    )
    names = quality.metrics(measured)
    for column in ("when (UTC)", "version", "decision"):
        table.add_column(column, no_wrap=True)
    for name in names:
        table.add_column(name, justify="right", overflow="fold")
    for point, compares in zip(measured, quality.comparable(measured), strict=True):
        at = when(point.when).removesuffix(" UTC")
        versions = f"{point.version} ({point.champion})"
        figures = [_pair(point, name) for name in names]
        table.add_row(at, versions, point.action + ("" if compares else " *"), *figures)
    return table


def _pair(point: Point, name: str) -> str:
    figures = point.figures.get(name)
    return "–" if figures is None else f"{figures[CHALLENGER]:.4g} ({figures[CHAMPION]:.4g})"


def _lines(measured: Sequence[Point]) -> list[str]:
    """For each metric the champion's figure after each decision: bars, and the same in words."""
    told = []
    for name in quality.metrics(measured):
        values = [value for point in measured if (value := point.of_champion(name)) is not None]
        over = "1 decision" if len(values) == 1 else f"{len(values)} decisions"
        told.append(
            f"{name} of the champion ({quality.better(name)}): {quality.sparkline(values)}  "
            f"{values[0]:.4g} → {values[-1]:.4g} over {over}, {min(values):.4g} to {max(values):.4g}"
        )
    return told
