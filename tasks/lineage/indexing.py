"""Bring the record index up to date with the statements: what each stage execution consumed, while it can be known."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tasks.lineage import index, recording
from tasks.lineage.store import StatementStore
from tasks.runtime.checkout import Checkout


def bring_up_to_date(checkout: Checkout, values: Mapping[str, Any]) -> list[Path]:
    """Index every execution whose outputs stand in the workspace and that the index does not know; the files written.

    Done once at the end of a run and not in each stage: loading the libraries takes longer than the work. `values` are
    those of params.yaml, for keys that a stage's own statement does not hold.
    """
    written: list[Path] = []
    folder = checkout.state / "records"
    for name, statement in recording.current(checkout, StatementStore.of(checkout)).items():
        execution = statement.execution
        if execution is None or any(folder.glob(f"*/uses-{name}-{execution}.parquet")):
            continue
        written += index.build(
            checkout.root,
            checkout.state,
            name,
            execution,
            {**values, **statement.parameters},
            statement.outputs,
            {path: found["md5"] for path, found in statement.inputs.items()},
        )
    return written
