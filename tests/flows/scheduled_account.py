"""What became of every due time, counted without Axon's code: from Prefect's database and the files of statements."""

from __future__ import annotations

import base64
import json
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

STARTING_S = 15.0  # of the process of a run, where its server was killed just before
SLACK_S = 6.0  # between what happens and what the server writes down, on a machine that trains


@dataclass(frozen=True)
class Run:
    """A flow run as Prefect's database has it; times in seconds since 1970."""

    id: str
    due: float
    began: float | None
    ended: float | None
    state: str
    message: str
    is_by_schedule: bool
    key: str | None
    occasion: str

    @property
    def was_run(self) -> bool:
        """Whether a process of it has existed; the server gives one that is cancelled before a beginning at its end."""
        return self.began is not None and not (self.state == "CANCELLED" and self.began == self.ended)

    def covers(self, at: float) -> bool:
        """Whether it held the runner's only place: from its due time on, also while its server was away."""
        return self.was_run and min(self.due, self.began - SLACK_S) <= at <= (self.ended or float("inf")) + SLACK_S


def _seconds(text: str | None) -> float | None:
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp() if text else None


def runs(root: Path) -> list[Run]:
    """Every run of the deployment that has been due or begun, in the order of their times."""
    database = sqlite3.connect(f"file:{root}/.axon/prefect/prefect.db?mode=ro", uri=True, timeout=30)
    try:
        rows = database.execute(
            "SELECT run.id, run.expected_start_time, run.start_time, run.end_time, run.state_type, state.message, "
            "run.auto_scheduled, run.idempotency_key, run.parameters FROM flow_run AS run "
            "JOIN deployment ON deployment.id = run.deployment_id "
            "LEFT JOIN flow_run_state AS state ON state.id = run.state_id "
            "WHERE deployment.name = 'axon' ORDER BY run.expected_start_time"
        ).fetchall()
    finally:
        database.close()
    found = [
        Run(
            id=id_,
            due=_seconds(due) or 0.0,
            began=_seconds(began),
            ended=_seconds(ended),
            state=state,
            message=message or "",
            is_by_schedule=bool(auto),
            key=key,
            occasion=json.loads(parameters).get("occasion_id") or id_,
        )
        for id_, due, began, ended, state, message, auto, key, parameters in rows
    ]
    now = datetime.now(UTC).timestamp()
    return [run for run in found if run.due <= now or run.was_run]


def decisions(root: Path) -> list[dict[str, Any]]:
    """What each signed decision says, in the order of the chain."""
    found = []
    for path in sorted((root / "lineage" / "statements").glob("*-decide.json")):
        statement = json.loads(base64.b64decode(json.loads(path.read_text())["payload"]))
        found.append(statement["predicate"]["buildDefinition"]["externalParameters"]["parameters"])
    return found


@dataclass(frozen=True)
class Account:
    """notes: what `axon schedule` shows, by the id of the run. down: when no worker was up, as (from, to)."""

    runs: list[Run]
    decided: list[dict[str, Any]]
    notes: dict[str, dict[str, Any]]
    down: list[tuple[float, float]]

    @property
    def due(self) -> list[Run]:
        return [run for run in self.runs if run.is_by_schedule]

    def of(self, kind: str) -> list[Run]:
        return [run for run in self.due if self.kind(run) == kind]

    def kind(self, run: Run) -> str:
        """How a due time is accounted for; 'lost' where nothing says what became of it."""
        kinds: dict[str, Callable[[], bool]] = {
            "ran": lambda: run.was_run and (run.state == "COMPLETED" or self._was_decided(run)),
            "ended by its limit": lambda: run.was_run and "longer than --limit" in self.told(run),
            "skipped": lambda: run.state == "CANCELLED" and self._falls_into_another(run),
            "missed": lambda: run.state == "CANCELLED" and "missed" in run.message and self._was_down(run),
            "cut short": lambda: run.state == "CRASHED" and len(self.going_on_with(run)) == 1,
        }
        return next((name for name, holds in kinds.items() if holds()), "lost")

    def _was_decided(self, run: Run) -> bool:
        """Whether it had come to its one decision when a worker that left cancelled it."""
        return run.state == "CANCELLED" and [
            self.told(run).startswith(f"{d['action']}:") for d in self.decisions_of(run)
        ] == [True]

    def told(self, run: Run) -> str:
        return self.notes.get(run.id, {}).get("outcome", "")

    def _falls_into_another(self, run: Run) -> bool:
        return "still running" in run.message and any(o.covers(run.due) for o in self.runs if o.id != run.id)

    def _was_down(self, run: Run) -> bool:
        """Whether no worker was up when it was due, or the worker went down before it had begun it."""
        return any(
            start - SLACK_S <= run.due <= end + SLACK_S or (not run.was_run and 0 <= start - run.due <= STARTING_S)
            for start, end in self.down
        )

    def going_on_with(self, run: Run) -> list[Run]:
        return [other for other in self.runs if other.key == f"again-{run.id}"]

    def decisions_of(self, run: Run) -> list[dict[str, Any]]:
        return [d for d in self.decided if run.occasion in d.get("occasions", ())]
