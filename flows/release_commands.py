"""The commands that let models out and keep them fresh: promote, rollback, history, retrain, restore, schedule …"""

from __future__ import annotations

from typing import Annotated

import typer

from tasks.errors import UserError
from tasks.runtime import checkout as checkouts
from tasks.runtime import environment
from tasks.runtime.checkout import Checkout


def _checkout() -> Checkout:
    checkout = checkouts.find()
    environment.prepare(checkout)
    return checkout


def add_to(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    for command in (promote, rollback, history, retrain, restore, worker):
        app.command()(command)
    app.command("schedule")(schedule_)


def promote(
    version: Annotated[str | None, typer.Argument(help="Default: the challenger.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Past the gate; needs --reason.")] = False,
    reason: Annotated[str | None, typer.Option(help="Why, for everyone to read.")] = None,
) -> None:
    """Hold the challenger against the champion on held-out items, and promote it if it is better."""
    from flows import promotion

    raise typer.Exit(0 if promotion.promote(_checkout(), version, force=force, reason=reason) else 1)


def rollback(
    reason: Annotated[str, typer.Option(help="Why, for everyone to read.")],
    to: Annotated[str | None, typer.Option(metavar="VERSION", help="Default: the champion before this one.")] = None,
) -> None:
    """Give the champion's place back to an earlier version."""
    from flows import promotion

    promotion.rollback(_checkout(), to, reason=reason)


def history(form: Annotated[str, typer.Option("--format", help="text or json")] = "text") -> None:
    """Show every promotion, refusal and rollback, with its reasons."""
    from flows import promotion

    promotion.history(_checkout(), form=form)


def retrain(
    force: Annotated[bool, typer.Option("--force", help="Also where nothing is new.")] = False,
) -> None:
    """Pull new data; if enough is new, train, ask the gate, and promote or keep the champion."""
    from flows import retrain as retraining

    retraining.retrain(_checkout(), force=force)


def restore(
    run: Annotated[str, typer.Argument(help="run, run~1 for the one before, or the first 8 characters of its id.")],
) -> None:
    """Bring back the parameters, dvc.lock and artifacts of a run."""
    from flows import restoring

    raise typer.Exit(restoring.restore(_checkout(), run))


def schedule_(
    cron: Annotated[str | None, typer.Option(help='Like "0 3 * * *": minute hour day month weekday.')] = None,
    every: Annotated[str | None, typer.Option(metavar="SPAN", help="30m, 6h, 1d.")] = None,
    on_data: Annotated[bool, typer.Option("--on-data", help="When a file in sources/ has changed.")] = False,
    limit: Annotated[str, typer.Option(metavar="SPAN", help="A retraining that takes longer is ended.")] = "1d",
    timezone: Annotated[str, typer.Option(help="Of --cron.")] = "UTC",
    work_pool: Annotated[
        str | None, typer.Option(metavar="NAME", help="Of Prefect, to serve it in place of `axon worker`.")
    ] = None,
    pause: Annotated[bool, typer.Option("--pause", help="Start none until --resume.")] = False,
    resume: Annotated[bool, typer.Option("--resume")] = False,
    run_now: Annotated[bool, typer.Option("--run-now", help="Ask the worker for one.")] = False,
    notify: Annotated[
        bool | None,
        typer.Option(
            "--notify/--no-notify",
            help="Send notices of failures, promotions and refusals to the address in AXON_NOTIFY_URL.",
            show_default=False,
        ),
    ] = None,
    list_: Annotated[bool, typer.Option("--list", help="Show it, as without options.")] = False,
    remove: Annotated[bool, typer.Option("--remove", help="With its notices.")] = False,
) -> None:
    """Set when to retrain; without options, show it and what came of the last ones. `axon worker` does it."""
    from flows import notices, schedule

    checkout = _checkout()
    wants_time = cron is not None or every is not None or on_data
    if not wants_time and (limit, timezone) != ("1d", schedule.UTC):
        raise UserError("--limit and --timezone go with --cron, --every or --on-data.")
    if not wants_time and work_pool is not None:
        raise UserError("--work-pool goes with --cron or --every.")
    wants = wants_time or notify is not None
    if sum((wants, pause, resume, run_now, list_, remove)) > 1:
        raise UserError("--pause, --resume, --run-now, --list and --remove go alone.")
    if wants:
        service = notices.service() if notify else ""
        if wants_time:
            schedule.set_(
                checkout, cron=cron, every=every, on_data=on_data, limit=limit, timezone=timezone, pool=work_pool
            )
        if notify is not None:
            schedule.needed(checkout)
            notices.keep_address(checkout) if notify else notices.forget_address(checkout)
            schedule.set_notices(checkout, service)
    elif pause or resume:
        schedule.pause(checkout, paused=pause)
    elif remove:
        schedule.remove(checkout)  # also one that is damaged
        notices.forget_address(checkout)
    elif run_now:
        print(schedule.run_now(checkout))
    else:
        schedule.show(checkout)


def worker() -> None:
    """Serve the schedule of this checkout until Ctrl-C: a Prefect server, its scheduler, and the runs."""
    from flows import worker as workers

    workers.work(_checkout())
