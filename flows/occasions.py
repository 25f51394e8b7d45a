"""What becomes of every due time of a schedule: it is run, or it is noted why not, once.

Prefect holds a flow run for each due time and each request. A worker that was killed leaves some that nobody runs any
more, and some that are late; a server that was killed may have let one begin that never did. A run that was cut short
goes on as a new one, under the id of the first, so that a decision it came to is not made again.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import psutil

from flows import schedule
from flows.schedule import Schedule
from tasks.runtime.checkout import Checkout

SCHEDULED = "schedule"  # the occasion of a run that came by its time
AGAIN = "again-"  # how the request is named that goes on with a run
_ACTIVE = ("PENDING", "RUNNING", "CANCELLING")
_ABANDONED_S = 20.0
_OVERDUE_S = 30.0  # the flow ends what is stuck by itself; past this it is the flow that is stuck
_LOOK_BACK = timedelta(days=1)  # notes are kept for longer


@dataclass
class Occasions:
    """The flow runs of one deployment, seen by the worker that runs them."""

    checkout: Checkout
    client: Any
    deployment: UUID
    unseen: dict[str, float] = field(default_factory=dict)  # runs that no process has, and since when

    async def take_over(self) -> int:
        """What an earlier worker has left: runs that nobody runs any more go on, of those that are late the last is
        run, unless one goes on that makes up for them. Returns how many were missed."""
        for run in await self._runs(*_ACTIVE):
            await self._cut_short(run, "its worker was gone")
        goes_on = any(path.stem.startswith(AGAIN) for path, _ in schedule.requests(self.checkout))
        late = [run for run in await self.due() if run.auto_scheduled]
        instead = "the one that was cut short goes on" if goes_on else "only the last of these is run"
        for run in late if goes_on else late[:-1]:
            await self._drop(run, f"missed while no worker ran; {instead}")
        return len(late)

    async def look(self) -> None:
        """Runs that nobody runs, runs past their limit, due times that fall into another run, ends without a note."""
        active = await self._runs(*_ACTIVE)
        processes = _processes()
        for run in active:
            await self._examine(run, processes.get(str(run.id)))
        self.unseen = {id_: since for id_, since in self.unseen.items() if id_ in {str(run.id) for run in active}}
        if active:
            for run in await self.due():
                if run.auto_scheduled:
                    await self._drop(run, "skipped: the one before was still running")
        await self._note_ends()

    async def is_idle(self) -> bool:
        return not await self._runs(*_ACTIVE) and not await self.due()

    async def due(self) -> list[Any]:
        """Scheduled runs whose time has come, earliest first."""
        return await self._runs("SCHEDULED", expected_start_time={"before_": datetime.now(UTC)})

    async def _runs(self, *types: str, sort: str = "EXPECTED_START_TIME_ASC", **filters: Any) -> list[Any]:
        """The runs of the deployment in a state of these types, as many as the server gives at once."""
        from prefect.client.schemas.filters import FlowRunFilter
        from prefect.client.schemas.sorting import FlowRunSort

        wanted = {
            "deployment_id": {"any_": [str(self.deployment)]},
            "state": {"type": {"any_": list(types)}},
            **filters,
        }
        found = await self.client.read_flow_runs(
            flow_run_filter=FlowRunFilter.model_validate(wanted), sort=FlowRunSort(sort)
        )
        return list(found)

    async def _examine(self, run: Any, process: int | None) -> None:
        """Go on with a run that has no process, and end one that has outlived its limit."""
        if process is None:
            since = self.unseen.setdefault(str(run.id), time.monotonic())
            if time.monotonic() - since >= _ABANDONED_S:
                await self._cut_short(run, "nothing ran it")
            return
        self.unseen.pop(str(run.id), None)
        limit_s = (schedule.read(self.checkout) or Schedule()).limit_s
        began = run.start_time or run.state.timestamp
        if datetime.now(UTC) - began > timedelta(seconds=limit_s + _OVERDUE_S):
            self._note(run, schedule.TOO_LONG, failed=True)
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)  # its runner tells Prefect

    async def _cut_short(self, run: Any, why: str) -> None:
        """Ask for a run that goes on with this one, and close this one."""
        from prefect.states import Crashed

        # In this order: a worker that is killed here does it once more, and the request is the same.
        self._ask_again(run)
        self._note(run, f"cut short: {why}; another one goes on with it")
        await self.client.set_flow_run_state(run.id, Crashed(message=why), force=True)

    def _ask_again(self, run: Any) -> None:
        occasion = str(run.parameters.get("occasion_id") or run.id)
        why = f"goes on: {_occasion(run).removeprefix('goes on: ').removesuffix(' was cut short')} was cut short"
        schedule.request(self.checkout, why, name=f"{AGAIN}{run.id}", occasion=occasion)

    async def _drop(self, run: Any, why: str) -> None:
        from prefect.states import Cancelled

        state: Any = Cancelled(message=why)
        self._note(run, why)
        await self.client.set_flow_run_state(run.id, state)

    async def _note_ends(self) -> None:
        """Note how runs ended whose own process could not: it was killed, never began, or somebody cancelled it."""
        lately = {"after_": datetime.now(UTC) - _LOOK_BACK}
        for run in await self._runs("CRASHED", "FAILED", "CANCELLED", sort="END_TIME_DESC", end_time=lately):
            if schedule.is_noted(self.checkout, str(run.id)):
                continue
            told = str(run.state.message or run.state.name)
            if run.state.is_crashed() and run.parameters.get("occasion_id") is None:
                self._ask_again(run)
                self._note(run, f"cut short: {told}; another one goes on with it")
            else:
                self._note(run, told, failed=not run.state.is_cancelled())

    def _note(self, run: Any, outcome: str, *, failed: bool = False) -> None:
        schedule.note(
            self.checkout,
            str(run.id),
            occasion=_occasion(run),
            outcome=outcome,
            began=_seconds(run.start_time),
            due=_seconds(run.expected_start_time),
            failed=failed,
        )


def _occasion(run: Any) -> str:
    return str(run.parameters.get("occasion", SCHEDULED))


def _seconds(at: datetime | None) -> float | None:
    return at.timestamp() if at else None


def _processes() -> Mapping[str, int]:
    """The processes that this one has started for flow runs, by the id of the run."""
    found = {}
    for child in psutil.Process().children():
        with suppress(psutil.Error):
            run = child.environ().get("PREFECT__FLOW_RUN_ID")
            if run and child.status() != psutil.STATUS_ZOMBIE:
                found[run] = child.pid
    return found
