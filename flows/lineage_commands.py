"""The commands below `axon lineage`; the first word decides: a command, or the target of `show`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from tasks.errors import UserError
from tasks.runtime import checkout as checkouts
from tasks.runtime import environment
from tasks.runtime.checkout import Checkout


class Drawing(StrEnum):
    TREE, JSON, MERMAID, HTML = "tree", "json", "mermaid", "html"


class Listing(StrEnum):
    TREE, JSON, CSV = "tree", "json", "csv"


class Report(StrEnum):
    TREE, JSON = "tree", "json"


class TargetFirst(TyperGroup):
    """`axon lineage models/ppo` is `axon lineage show models/ppo`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] != "--help":
            args = ["show", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=TargetFirst,
    no_args_is_help=True,
    subcommand_metavar="TARGET | COMMAND [ARGS]...",
    help="""What made a thing, what it went into, which records are in it, what differs between two.

A TARGET is a path (models/ppo), a stage (sft; sft~1 is the execution before the last), a run (run, run~1, or the first
8 characters of an id), a registered version (axon-chat@1, axon-chat@champion), a record id, or a piece of text.
What is named like a command: axon lineage show record, or stage:record.""",
)
Output = Annotated[Path | None, typer.Option("--output", metavar="FILE", help="Write it there.")]


def _checkout() -> Checkout:
    checkout = checkouts.find()
    environment.prepare(checkout)
    return checkout


@app.command()
def show(
    target: Annotated[str, typer.Argument(help="Path, stage, run, version, record id or text.")],
    form: Annotated[Drawing, typer.Option("--format")] = Drawing.TREE,
    up: Annotated[bool, typer.Option("--up", help="Only what made it.")] = False,
    down: Annotated[bool, typer.Option("--down", help="Only what it went into.")] = False,
    output: Output = None,
) -> None:
    """What made TARGET, and what it went into. The word `show` may be left out."""
    from flows import lineage

    lineage.show(_checkout(), target, form=form.value, up=up, down=down, output=output)


@app.command()
def record(
    record_id: Annotated[str, typer.Argument(metavar="ID", help="32 hex digits.")],
    form: Annotated[Drawing, typer.Option("--format")] = Drawing.TREE,
    output: Output = None,
) -> None:
    """Every artifact and registered version that contains a record, and how it came there."""
    from flows import lineage

    lineage.show(_checkout(), f"record:{record_id}", form=form.value, up=False, down=False, output=output)


@app.command()
def model(
    target: Annotated[str, typer.Argument(metavar="NAME@VERSION", help="Or an output, such as models/ppo.")],
    records: Annotated[bool, typer.Option("--records", help="The records in it, instead of what made it.")] = False,
    form: Annotated[Listing, typer.Option("--format", help="csv and json list every id.")] = Listing.TREE,
    output: Output = None,
) -> None:
    """What made a model; with --records, the records in it by source, licence and split."""
    from flows import lineage

    if records:
        lineage.records(_checkout(), target, form=form.value, output=output)
        return
    if form is Listing.CSV:
        raise UserError("--format csv lists records: add --records.")
    lineage.show(_checkout(), target, form=form.value, up=True, down=False, output=output)


@app.command()
def diff(
    before: Annotated[str, typer.Argument(metavar="A")],
    after: Annotated[str, typer.Argument(metavar="B")],
    form: Annotated[Report, typer.Option("--format")] = Report.TREE,
    output: Output = None,
    exit_code: Annotated[bool, typer.Option("--exit-code", help="Leave with 1 if there is a difference.")] = False,
) -> None:
    """What differs between two runs, executions, outputs or registered versions, and which stages lie behind it."""
    from flows import lineage

    differs = lineage.compare(_checkout(), before, after, form=form.value, output=output)
    if differs and exit_code:
        raise typer.Exit(1)
