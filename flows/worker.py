"""`axon worker`: a Prefect server with its scheduler, and a runner that serves the retraining of this checkout.

What was missed while no worker ran is run once. Overlapping runs are not started. A worker that is killed leaves
nothing that keeps the next one from going on. What becomes of each due time is the business of `flows/occasions.py`.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

from rich.console import Console

from flows import notices, schedule
from flows import prefect_server as servers
from flows.notices import Announcer
from flows.occasions import Occasions
from flows.schedule import Schedule
from tasks.errors import UserError
from tasks.redact import redacted
from tasks.runtime import guard
from tasks.runtime.checkout import Checkout

DEPLOYMENT = "axon"
_LOOK_EVERY_S = 1.0
_ASK_EVERY_S = 3.0  # each look at the server costs it some milliseconds that training could have
_SETTLED_S = 3.0  # a file that is still being written is not looked at
_POLL_S = 2.0
_AWAY_LIMIT_S = 120.0


def work(checkout: Checkout) -> None:
    """Serve until SIGINT or SIGTERM. A second worker of the checkout waits for this one.

    Raises `UserError` where the Prefect server does not come back.
    """
    console = Console(highlight=False)

    def waiting(holder: str) -> None:
        console.print(f"waiting for {holder} to end …")

    wanted = schedule.read(checkout)
    if wanted is not None and wanted.pool:
        raise UserError(
            f"the schedule of this checkout is served by a work pool: prefect worker start --pool {wanted.pool}. "
            "For `axon worker` set it again without --work-pool."
        )
    with (
        guard.exclusive(checkout.locks / "worker", who="axon worker", waiting=waiting),
        # Prefect's process of a run is bound to the worker only once the flow begins: until then it would outlive a
        # worker that is killed, asking for a server that is gone, for a minute and more.
        guard.run_guard(checkout, f"worker-{uuid4().hex}", folder="workers"),
    ):
        os.environ[schedule.WORKER] = str(os.getpid())
        schedule.forget_old_notes(checkout)
        with servers.prefect_server(checkout, with_services=True) as wait_until_ready:
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
    occasions: Occasions | None = None
    announcer: Announcer = field(init=False)
    data: str | None = None
    changed_at: float | None = None
    seen: str | None = None
    asked_at: float = 0.0
    away_since: float | None = None

    def __post_init__(self) -> None:
        self.announcer = Announcer(self.checkout)

    async def run(self) -> None:
        from prefect.client.orchestration import get_client
        from prefect.runner import Runner

        # A run holds the runner's only place from its due time on, and no place at the server: what a server knows of
        # who holds one is gone when it is killed, and Prefect then ends the run.
        runner = Runner(
            name=DEPLOYMENT, query_seconds=_POLL_S, prefetch_seconds=_POLL_S, limit=1, pause_on_shutdown=False
        )
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        async with get_client() as client:
            self.data = _sources(self.checkout.root)
            while not await self._reached(self._begin(runner, client)):
                await asyncio.sleep(_LOOK_EVERY_S)
            serving = asyncio.create_task(runner.start())
            while not runner.started and not serving.done():
                await asyncio.sleep(0.05)  # it takes SIGTERM for itself when it starts
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.add_signal_handler(number, stop.set)
            while not stop.is_set() and not serving.done():
                await self._reached(self._look(runner, client))
                with suppress(TimeoutError):
                    await asyncio.wait_for(stop.wait(), _LOOK_EVERY_S)
            if serving.done() and serving.exception() is not None:
                raise _gone(self.checkout) from serving.exception()
            if not serving.done():
                await runner.astop()
            serving.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await serving

    async def _reached(self, work: Any) -> bool:
        """Whether the server answered; it may be away for a while, and is started again."""
        try:
            await work
        except Exception as error:
            if not servers.is_away(error):
                raise
            self.away_since = self.away_since or time.monotonic()
            if time.monotonic() - self.away_since > _AWAY_LIMIT_S:
                raise _gone(self.checkout) from error
            return False
        self.away_since = None
        return True

    async def _begin(self, runner: Any, client: Any) -> None:
        occasions = await self._apply(runner, client)
        n_missed = await occasions.take_over()
        if n_missed:
            self.console.print(f"{n_missed} retraining(s) were missed; one is run now")

    async def _apply(self, runner: Any, client: Any) -> Occasions:
        """Make the deployment what the file says, if it is not that already: a change drops what was due next."""
        from prefect.exceptions import ObjectNotFound

        from flows.scheduled import retrain

        wanted = schedule.read(self.checkout)
        if wanted is not None and wanted.pool:
            wanted = None  # others serve it
        if wanted == self.applied and self.occasions is not None:
            return self.occasions
        version = _version(self.checkout, wanted)
        try:
            found = await client.read_deployment_by_name(f"{retrain.name}/{DEPLOYMENT}")
        except ObjectNotFound:
            found = None
        if found is not None and found.version == version:
            deployment = await runner.aadd_deployment(_AsItIs(found.id))
        else:
            deployment = await runner.aadd_deployment(await _deployment(wanted or Schedule(paused=True), version))
            await client.request(
                "POST",
                "/deployments/{id}/schedule",
                path_params={"id": deployment},
                json={"start_time": datetime.now(UTC).isoformat()},
            )
        await notices.apply(self.checkout, client)
        self.occasions = Occasions(self.checkout, client, deployment)
        self.applied = wanted
        told = f"retraining {wanted}" if wanted else "no schedule: `axon schedule` sets one"
        self.console.print(told, soft_wrap=True)
        return self.occasions

    async def _look(self, runner: Any, client: Any) -> None:
        """A changed schedule, changed data, what was asked for, and what became of due times."""
        occasions = await self._apply(runner, client)
        if self.applied is not None and self.applied.on_data and not self.applied.paused:
            self._look_at_data()
        if time.monotonic() - self.asked_at < _ASK_EVERY_S:
            return
        self.asked_at = time.monotonic()
        await occasions.look()
        await self.announcer.look()
        waiting = schedule.requests(self.checkout)
        if not waiting or not await occasions.is_idle():
            return
        path, asked = waiting[0]
        # The same request twice is the same run: the key is the request's. It goes when its run has begun.
        run = await client.create_flow_run_from_deployment(
            occasions.deployment,
            parameters={"occasion": asked["why"], "occasion_id": asked.get("occasion")},
            idempotency_key=path.stem,
        )
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


@dataclass(frozen=True)
class _AsItIs:
    """A deployment that the server has already, for a runner that would write it anew."""

    id: UUID
    name: str = DEPLOYMENT
    storage: None = None

    async def aapply(self) -> UUID:
        return self.id


async def _deployment(asked: Schedule, version: str) -> Any:
    from prefect.schedules import Cron, Interval

    from flows.scheduled import retrain

    times = None
    if asked.cron:
        times = Cron(asked.cron, timezone=asked.timezone)
    elif asked.every_s:
        times = Interval(timedelta(seconds=asked.every_s), anchor_date=datetime.fromtimestamp(asked.since, UTC))
    return await retrain.ato_deployment(
        name=DEPLOYMENT,
        schedule=times,
        paused=asked.paused,
        version=version,
    )


def _version(checkout: Checkout, wanted: Schedule | None) -> str:
    """A digest of all that the deployment is made of."""
    asked = wanted or Schedule(paused=True)
    times = (asked.cron, asked.every_s, asked.since if asked.every_s else None, asked.timezone, asked.paused)
    code = Path(__file__).with_name("scheduled.py").read_bytes()
    return hashlib.sha256(repr((str(checkout.root), times, code)).encode()).hexdigest()[:16]


def _gone(checkout: Checkout) -> UserError:
    return UserError(
        f"Prefect does not answer any more; what it said is in {servers.log_of(checkout)}. The schedule is kept: run "
        "`axon worker` again.",
        exit_code=1,
    )


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
