"""A target: the one thing in the graph that a person asks about."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tasks.lineage.graph import Artifact, made_by, version_name
from tasks.lineage.statement import Statement
from tasks.lineage.wording import short

if TYPE_CHECKING:
    from tasks.lineage.records.answers import Found

ALLOWED = (
    "A target is a path (models/ppo), a stage (sft, sft~1 for the execution before the last), a run (run, run~1, or "
    "the first 8 characters of its id), a registered version (axon-chat@1, axon-chat@champion), a record id "
    "(32 hex digits) or a piece of text in quotes."
)


@dataclass(frozen=True, kw_only=True)
class Target:
    """`kind`: artifact (an output), input (what no stage makes: code, raw data), execution, run, version, record or
    text. `statements`: what made it, or what it is itself; `artifacts`: those to follow downwards; `notes`: what a
    person must know to read the answer right."""

    kind: str
    name: str
    statements: tuple[Statement, ...] = ()
    artifacts: tuple[Artifact, ...] = ()
    notes: tuple[str, ...] = ()
    record: str | None = None
    found: tuple[Found, ...] = ()


def execution(statement: Statement, *notes: str) -> Target:
    return Target(
        kind="execution",
        name=f"{statement.stage} {short(str(statement.execution))}",
        statements=(statement,),
        artifacts=tuple(made_by(statement)),
        notes=notes,
    )


def itself(statement: Statement, *notes: str) -> Target:
    """The target that a statement is."""
    if statement.kind == "stage":
        return execution(statement, *notes)
    is_version = statement.kind == "register"
    name = version_name(statement) if is_version else f"{statement.kind} {short(statement.digest)}"
    kind = "version" if is_version else "run"
    return Target(kind=kind, name=name, statements=(statement,), notes=notes)


def output(artifact: Artifact, maker: Statement, *notes: str) -> Target:
    return Target(
        kind="artifact",
        name=f"{artifact.path} {short(artifact.digest)}",
        statements=(maker,),
        artifacts=(artifact,),
        notes=notes,
    )


def near(text: str, known: Iterable[str]) -> list[str]:
    """Names that `text` may be a slip of."""
    distinct = list(dict.fromkeys(known))
    by_end = {name.rpartition("/")[2]: name for name in reversed(distinct)}
    close = difflib.get_close_matches(text, distinct, n=3, cutoff=0.7)
    close += [by_end[end] for end in difflib.get_close_matches(text, by_end, n=2, cutoff=0.75)]
    return list(dict.fromkeys(close))[:3]
