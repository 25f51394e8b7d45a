"""`axon worker`: a Prefect server with its scheduler, and a runner that serves the retraining of this checkout.

What was missed while no worker ran is run once. Overlapping runs are not started. A worker that is killed leaves
nothing that keeps the next one from going on.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from rich.console import Console

from flows import schedule
from flows.prefect_server import prefect_server
from flows.schedule import Schedule
from tasks.redact import redacted
from tasks.runtime import guard
from tasks.runtime.checkout import Checkout

DEPLOYMENT = "axon"
_LOOK_EVERY_S = 1.0
_SETTLED_S = 3.0  # a file that is still being written is not looked at
_POLL_S = 2.0


def work(checkout: Checkout) -> None:
    """Serve until SIGINT or SIGTERM. A second worker of the checkout waits for this one."""
    console = Console(highlight=False)

    def waiting(holder: str) -> None:
        console.print(f"waiting for {holder} to end …")

    with guard.exclusive(checkout.locks / "worker", who="axon worker", waiting=waiting):
        with prefect_server(checkout, with_services=True) as wait_until_ready:
            wait_until_ready()
            prefect = redacted(os.environ["PREFECT_API_URL"]).removesuffix("/api")
            console.print(f"serving {checkout.root}; Prefect at {prefect}")
            with suppress(KeyboardInterrupt):
                asyncio.run(_Worker(checkout, console).run())
        console.print("the worker ends; what was asked for meanwhile waits for the next one")


@dataclass
class _Worker:
    checkout: Checkout
    console: Console
    applied: Schedule | None = None
    deployment: Any = None
    data: str | None = None
    changed_at: float | None = None
    seen: str | None = None

    async def run(self) -> None:
        from prefect.client.orchestration import get_client
        from prefect.runner import Runner

        runner = Runner(name=DEPLOYMENT, query_seconds=_POLL_S, limit=1, pause_on_shutdown=False)
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        async with get_client() as client:
            self.data = _sources(self.checkout.root)
            await self._apply(runner)
            await self._clear(client)
            serving = asyncio.create_task(runner.start())
            while not runner.started and not serving.done():
                await asyncio.sleep(0.05)  # it takes SIGTERM for itself when it starts
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.add_signal_handler(number, stop.set)
            while not stop.is_set() and not serving.done():
                await self._look(runner, client)
                with suppress(TimeoutError):
                    await asyncio.wait_for(stop.wait(), _LOOK_EVERY_S)
            if serving.done():
                serving.result()
            await runner.astop()
            serving.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await serving

    async def _apply(self, runner: Any) -> None:
        """Make the deployment what the file says."""
        from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy
        from prefect.schedules import Cron

        from flows.scheduled import retrain

        wanted = schedule.read(self.checkout)
        if wanted == self.applied and self.deployment is not None:
            return
        asked = wanted or Schedule(paused=True)
        made = await retrain.ato_deployment(
            name=DEPLOYMENT,
            schedule=Cron(asked.cron, timezone=asked.timezone) if asked.cron else None,
            interval=timedelta(seconds=asked.every_s) if asked.every_s else None,
            paused=asked.paused,
            parameters={"limit_s": asked.limit_s},
            concurrency_limit=ConcurrencyLimitConfig(limit=1, collision_strategy=ConcurrencyLimitStrategy.CANCEL_NEW),
        )
        self.deployment = await runner.aadd_deployment(made)
        self.applied = wanted
        self.console.print(
            f"retraining {wanted}" if wanted else "no schedule: `axon schedule` sets one", soft_wrap=True
        )

    async def _runs(self, client: Any, *types: str) -> list[Any]:
        """The runs of the deployment in a state of these types, earliest first."""
        from prefect.client.schemas.filters import FlowRunFilter
        from prefect.client.schemas.sorting import FlowRunSort

        wanted = {"deployment_id": {"any_": [str(self.deployment)]}, "state": {"type": {"any_": list(types)}}}
        found = await client.read_flow_runs(
            flow_run_filter=FlowRunFilter.model_validate(wanted), sort=FlowRunSort.EXPECTED_START_TIME_ASC
        )
        return list(found)

    async def _due(self, client: Any) -> list[Any]:
        """Scheduled runs whose time has come."""
        now = datetime.now(UTC)
        scheduled = await self._runs(client, "SCHEDULED")
        return [run for run in scheduled if run.expected_start_time and run.expected_start_time <= now]

    async def _clear(self, client: Any) -> None:
        """What an earlier worker has left: runs that nobody runs any more, and all but one of those that are late."""
        from prefect.states import Cancelled, Crashed

        for run in await self._runs(client, "RUNNING", "PENDING", "CANCELLING"):
            occasion = str(run.parameters.get("occasion", "schedule"))
            # In this order: a worker that is killed here does it once more, and the request is the same.
            schedule.request(self.checkout, f"goes on: {occasion} was cut short", name=f"again-{run.id}")
            schedule.note(self.checkout, str(run.id), occasion, time.time(), "cut short: its worker was gone")
            await client.set_flow_run_state(run.id, Crashed(message="its worker was gone"), force=True)
        late = await self._due(client)
        for run in late[:-1]:
            missed: Any = Cancelled(message="missed while no worker ran; only the last of these is run")
            await client.set_flow_run_state(run.id, missed, force=True)
        if late:
            self.console.print(f"{len(late)} retraining(s) were missed; one is run now")

    async def _look(self, runner: Any, client: Any) -> None:
        """A changed schedule, changed data, and what was asked for."""
        await self._apply(runner)
        if self.applied is not None and self.applied.on_data and not self.applied.paused:
            self._look_at_data()
        waiting = schedule.requests(self.checkout)
        if not waiting or await self._runs(client, "RUNNING", "PENDING") or await self._due(client):
            return  # two at once would be one too many, and the deployment would drop the second
        path, asked = waiting[0]
        # The same request twice is the same run: the key is the request's.
        run = await client.create_flow_run_from_deployment(
            self.deployment,
            parameters={"limit_s": (self.applied or Schedule()).limit_s, "occasion": asked["why"]},
            idempotency_key=path.stem,
        )
        # It goes when its run has begun; a run that the server cancelled, for another was quicker, is asked for anew.
        if run.state is not None and run.state.is_cancelled():
            schedule.request(self.checkout, asked["why"])
        if run.state is None or not run.state.is_scheduled():
            path.unlink()

    def _look_at_data(self) -> None:
        now = _sources(self.checkout.root)
        loop_time = asyncio.get_running_loop().time()
        if now == self.data:
            return
        if self.changed_at is None or now != self.seen:
            self.changed_at, self.seen = loop_time, now
        elif loop_time - self.changed_at >= _SETTLED_S:
            self.data, self.changed_at = now, None
            schedule.request(self.checkout, "a source changed")


def _sources(root: Path) -> str:
    """A digest of names, sizes and times of the files below `sources/`."""
    listed = hashlib.sha256()
    for path, size, time_ns in _files(root / "sources"):
        listed.update(f"{path}\0{size}\0{time_ns}\n".encode())
    return listed.hexdigest()


def _files(folder: Path) -> Iterable[tuple[str, int, int]]:
    for path in sorted(folder.rglob("*")):
        with suppress(FileNotFoundError):
            stat = path.stat()
            if path.is_file():
                yield str(path), stat.st_size, stat.st_mtime_ns
