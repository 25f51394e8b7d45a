"""`axon uptrain` on the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tasks.runtime import checkout as checkouts
from tasks.runtime import environment


def uptrain(
    model: Annotated[str, typer.Argument(help="A stage, champion, challenger, or a model directory.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where to write the model directory; must not be there.")],
    kv_heads: Annotated[int, typer.Option(min=1, help="Key and value heads to pool to; 1 is multi-query.")],
    fraction: Annotated[float, typer.Option(help="Of the steps of pretrain in params.yaml, above 0, up to 1.")] = 0.05,
) -> None:
    """Pool key and value heads, then pretrain on a little.

    A tool beside the pipeline: it runs in this process, on its own, with pretrain's recipe and the text of tokens/, and
    writes nothing but DIR. It cannot be resumed.
    """
    from flows import uptraining

    checkout = checkouts.find()
    environment.prepare(checkout)
    uptraining.uptrain(checkout, model, kv_heads=kv_heads, fraction=fraction, out=out)


def add_to(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command()(uptrain)
