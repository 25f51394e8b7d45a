"""Bring the record index up to date with the statements: what each stage execution consumed, while it can be known."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from tasks.lineage import index, recording
from tasks.lineage.records.tables import NotInWorkspace
from tasks.lineage.statement import Statement
from tasks.lineage.store import StatementStore
from tasks.runtime import stages
from tasks.runtime.checkout import Checkout


def bring_up_to_date(checkout: Checkout, values: Mapping[str, Any]) -> list[Path]:
    """Index every execution whose outputs stand in the workspace and that the index does not know; the files written.

    Executions of someone else, whose statements and `dvc.lock` came by git without what they made, are left out;
    questions name what the index does not know. Done once at the end of a run and not in each stage: loading the
    libraries takes longer than the work. `values` are those of params.yaml, for keys that a stage's own statement does
    not hold.
    """
    written: list[Path] = []
    folder = checkout.state / "records"
    made = {out for stage in stages.read_stages(checkout.root).values() for out in stage.outs}

    @cache
    def digest(path: str) -> str | None:
        return stages.digest(checkout.root / path) if (checkout.root / path).exists() else None

    def stands(statement: Statement) -> bool:
        files = {**{path: found["md5"] for path, found in statement.inputs.items()}, **statement.outputs}
        return all(digest(path) == md5 for path, md5 in files.items() if path in made)

    for name, statement in recording.current(checkout, StatementStore.of(checkout)).items():
        execution = statement.execution
        if execution is None or any(folder.glob(f"*/uses-{name}-{execution}.parquet")) or not stands(statement):
            continue
        try:
            written += index.build(
                checkout.root,
                checkout.state,
                name,
                execution,
                {**values, **statement.parameters},
                statement.outputs,
                {path: found["md5"] for path, found in statement.inputs.items()},
            )
        except NotInWorkspace:  # the data behind its inputs was replaced since
            continue
    return written
