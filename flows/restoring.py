"""`axon restore`: a run's parameters, `dvc.lock` and artifacts again, and what of them is gone."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.markup import escape

from tasks.lineage.wording import many, when
from tasks.retraining import snapshots
from tasks.runtime import guard
from tasks.runtime.checkout import Checkout

_SHOWN = 12


def restore(checkout: Checkout, wanted: str) -> int:
    """Bring the run back; returns 0, or 1 where some artifacts are in no cache."""
    console = Console(highlight=False, soft_wrap=not sys.stdout.isatty())

    def waiting(holder: str) -> None:
        print(f"waiting for {holder} to end …", file=sys.stderr)

    with guard.exclusive(checkout.locks / "run", who="axon restore", waiting=waiting):
        found = snapshots.restore(checkout, wanted)
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
