"""`axon restore`: a run's parameters, `dvc.lock` and artifacts again, and what of them is gone."""

from __future__ import annotations

import sys
import time

from rich.console import Console
from rich.markup import escape

from tasks.lineage import recording
from tasks.lineage.wording import many, when
from tasks.parameters import load
from tasks.retraining import snapshots
from tasks.runtime import guard
from tasks.runtime.checkout import Checkout
from tasks.tracking.journal import Journal
from tasks.tracking.mlflow_store import Sender, StoreAway

_SHOWN = 12


def _record(checkout: Checkout) -> None:
    """State that the workspace is that run's again: an audit holds it against the newest run."""
    if not recording.is_on():
        return
    began = time.time()
    values = load(checkout.root).model_dump(mode="json")
    with Journal(checkout.journals, "pipeline") as record:
        record.start("pipeline", kind="pipeline", params=values)
        written = recording.record_run(checkout, parameters=values, targets=[], execution=record.id, started=began)
        snapshots.keep(checkout, record.id)
        record.end("FINISHED", outputs={}, statement=written.reference)
    try:
        Sender(checkout).deliver()
    except StoreAway as error:
        print(f"{error}. What it was not told is kept, and told by the next run.", file=sys.stderr)


def restore(checkout: Checkout, wanted: str) -> int:
    """Bring the run back; returns 0, or 1 where some artifacts are in no cache."""
    console = Console(highlight=False, soft_wrap=not sys.stdout.isatty())

    def waiting(holder: str) -> None:
        print(f"waiting for {holder} to end …", file=sys.stderr)

    with guard.exclusive(checkout.locks / "run", who="axon restore", waiting=waiting):
        found = snapshots.restore(checkout, wanted)
        _record(checkout)
    console.print(f"run {found.run.execution} of {when(found.run.finished)}: parameters and dvc.lock are back")
    if found.commit:
        console.print(f"its code: git checkout {found.commit}", soft_wrap=True)
    if not found.missing:
        console.print("[green]every artifact is back[/green]")
        return 0
    console.print(f"[yellow]{many(len(found.missing), 'artifact')} in no cache here:[/yellow]")
    for path in found.missing[:_SHOWN]:
        console.print(f"  {escape(path)}")
    console.print("Fetch them with `dvc pull`, or make them again with `axon run`.")
    return 1
