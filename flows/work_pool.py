"""A schedule that a work pool of a Prefect server serves, in place of `axon worker`.

The deployment is kept by the server, and whichever worker of the pool is up runs it in this checkout. Prefect does the
accounting: of two runs that would overlap it cancels the later one.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from flows import prefect_server as servers
from flows.schedule import Schedule
from tasks.errors import UserError
from tasks.redact import redacted
from tasks.runtime.checkout import Checkout

_API = "PREFECT_API_URL"


def deployment_name(checkout: Checkout) -> str:
    """Of the deployment of this checkout: a server may hold those of several, also of folders with one name."""
    return f"axon-{checkout.root.name}-{hashlib.sha256(str(checkout.root).encode()).hexdigest()[:8]}"


def apply(checkout: Checkout, wanted: Schedule) -> None:
    """Make the deployment what the schedule says, or change it.

    Raises `UserError` where the server does not answer or has no such pool.
    """

    async def do(client: Any) -> None:
        from prefect.exceptions import ObjectNotFound

        try:
            await client.read_work_pool(wanted.pool)
        except ObjectNotFound:
            raise UserError(
                f"--work-pool {wanted.pool!r}: {_server()} has no such pool; make it with: "
                f"prefect work-pool create {wanted.pool} --type process"
            ) from None
        await _deploy(checkout, wanted)

    _ask(do)


async def _deploy(checkout: Checkout, wanted: Schedule) -> None:
    from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy
    from prefect.flows import Flow
    from prefect.schedules import Cron, Interval

    source: Any = await Flow.afrom_source(source=str(checkout.root), entrypoint="flows/scheduled.py:retrain")
    times: Any = None
    if wanted.cron:
        times = Cron(wanted.cron, timezone=wanted.timezone)
    elif wanted.every_s:
        anchor = datetime.fromtimestamp(wanted.since, UTC)
        times = Interval(timedelta(seconds=wanted.every_s), anchor_date=anchor)
    await source.adeploy(
        name=deployment_name(checkout),
        work_pool_name=wanted.pool,
        schedule=times,
        paused=wanted.paused,
        concurrency_limit=ConcurrencyLimitConfig(limit=1, collision_strategy=ConcurrencyLimitStrategy.CANCEL_NEW),
        build=False,
        push=False,
        print_next_steps=False,
        ignore_warnings=True,
    )


def remove(checkout: Checkout) -> None:
    """Take the deployment away, with the runs that it has for later."""

    async def do(client: Any) -> None:
        found = await _deployment(checkout, client)
        if found is not None:
            await client.delete_deployment(found.id)

    _ask(do)


def run_now(checkout: Checkout, why: str) -> None:
    """Ask for one run."""

    async def do(client: Any) -> None:
        found = await _deployment(checkout, client)
        if found is None:
            raise UserError(f"{_server()} has no deployment of this schedule any more; set it again with --work-pool.")
        await client.create_flow_run_from_deployment(found.id, parameters={"occasion": why})

    _ask(do)


async def _deployment(checkout: Checkout, client: Any) -> Any:
    from prefect.exceptions import ObjectNotFound

    try:
        return await client.read_deployment_by_name(f"retrain/{deployment_name(checkout)}")
    except ObjectNotFound:
        return None


def _server() -> str:
    return f"Prefect at {_API}={redacted(os.environ[_API])}"


def _ask(do: Callable[[Any], Awaitable[None]]) -> None:
    """Let `do` talk to the server that the pool belongs to."""
    if not os.environ.get(_API):
        raise UserError(f"a work pool belongs to a Prefect server: set {_API} to its address.")
    Path(os.environ["PREFECT_HOME"]).mkdir(
        mode=0o700, parents=True, exist_ok=True
    )  # or Prefect warns that it is not there
    from prefect.client.orchestration import get_client

    async def talk() -> None:
        async with get_client() as client:
            await do(client)

    try:
        asyncio.run(talk())
    except Exception as error:
        if servers.is_away(error):
            told = f"{_server()} does not answer. Nothing was changed; start it, or set {_API} to where it is."
            raise UserError(told, exit_code=1) from None
        raise
