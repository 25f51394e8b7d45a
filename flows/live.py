"""`axon report --live`: what is known of this checkout beyond its last run; a view, and never an output of DVC.

How deterministic each stage was found to be, which versions are registered, how good they were over time, and where the
chain of statements ends.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from flows import quality
from tasks.lineage import recording, registrations
from tasks.lineage.audit import determinism
from tasks.lineage.statement import Statement
from tasks.lineage.store import StatementStore
from tasks.lineage.wording import duration, seconds, when
from tasks.promotion import quality as measured
from tasks.registry import NAME
from tasks.runtime import stages
from tasks.runtime.checkout import Checkout


def show(checkout: Checkout) -> None:
    """Print the tables and the anchor; asks no server and imports none of the engines."""
    store = StatementStore.of(checkout)
    statements = [stored.statement for stored in store.all()]
    current = recording.current(checkout, store)
    console = Console(highlight=False)
    console.print(_stages(list(stages.read_stages(checkout.root)), current, determinism.read(checkout)))
    versions = [s for s in statements if s.kind == "register" and s.parameters.get("name") == NAME]
    if versions:
        console.print(_versions(versions, registrations.aliases(statements, NAME)))
    quality.show(console, measured.points(statements))
    head = store.head()
    if head is not None:
        console.print(f"anchor: key {head.key} head {head.digest}", soft_wrap=True)


def _stages(names: Sequence[str], current: Mapping[str, Statement], found: Mapping[str, Mapping[str, Any]]) -> Table:
    table = Table(
        title="Stages, and what `axon audit --reproduce` found of them",
        title_justify="left",
        title_style="bold",
        box=SIMPLE,
        pad_edge=False,
    )
    for column in ("stage", "executed (UTC)", "took"):
        table.add_column(column, no_wrap=True)
    table.add_column("run again")
    for name in names:
        statement = current.get(name)
        executed = (_utc(statement.finished), duration(seconds(statement))) if statement else ("no statement", "")
        table.add_row(name, *executed, _found(found.get(name), statement))
    return table


def _found(note: Mapping[str, Any] | None, statement: Statement | None) -> str:
    """The class, by how much numbers differ, when that was found, and whether of the execution that is current."""
    if note is None:
        return "not tried"
    largest = note.get("largest_difference")
    parts = [
        str(note.get("class")),
        *([f"at most {largest:g}"] if largest else []),
        str(note.get("when"))[: len("2026-01-31")],
    ]
    if statement is None or note.get("statement") != statement.digest:
        parts.append("of an earlier execution")
    return ", ".join(parts)


def _utc(time: str) -> str:
    return when(time).removesuffix(" UTC")


def _versions(registered: Sequence[Statement], aliases: Mapping[str, str]) -> Table:
    table = Table(title=f"Versions of {NAME}", title_justify="left", title_style="bold", box=SIMPLE, pad_edge=False)
    for column in ("version", "model", "registered (UTC)", "aliases"):
        table.add_column(column, no_wrap=True)
    for statement in registered:
        facts = statement.parameters
        version = str(facts.get("version"))
        held = ", ".join(sorted(alias for alias, holder in aliases.items() if holder == version))
        table.add_row(version, str(facts.get("model")), _utc(statement.finished), held)
    return table
