"""`axon schedule`: when to retrain. What is wanted stands in a file; `axon worker` makes a Prefect deployment of it."""

from __future__ import annotations

import re
import time
import uuid
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from tasks.errors import UserError
from tasks.files import write_json
from tasks.runtime.checkout import Checkout
from tasks.state_files import read_note

UTC = "UTC"
_N_CRON_FIELDS = 5
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
SHORTEST_S = 5
LONGEST_S = 3650 * 86400
_LATEST = 1e11  # seconds since 1970
_NONE = 'there is no schedule here; set one: axon schedule --cron "0 3 * * *", --every 6h or --on-data.'
_KEPT_NOTES = 2000
_KEPT_S = 7 * 86400
WORKER = "AXON_WORKER_PID"  # not beside the flow: importing Prefect fixes its settings, before a server has an address
TOO_LONG = "it took longer than --limit, and was ended; the next one goes on from its checkpoint"


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """One of `cron` and `every_s`, or neither with `on_data`: then a changed source is the only occasion.

    A retraining that takes longer than `limit_s` is ended, so that a stuck one does not stand in the way for ever.
    since: when `every_s` was set, in seconds since 1970; due times are counted from there, whenever a worker starts.
    notices: whose service gets notices, empty for none; notices_since: when its address was given.
    pool: of Prefect, whose workers serve it in place of `axon worker`; empty for none.
    """

    cron: str | None = None
    every_s: float | None = None
    on_data: bool = False
    limit_s: float = 86400.0
    paused: bool = False
    timezone: str = UTC
    since: float = 0.0
    notices: str = ""
    notices_since: float = 0.0
    pool: str = ""

    def __str__(self) -> str:
        when = [f"cron {self.cron} ({self.timezone})"] if self.cron else []
        when += [f"every {span(self.every_s)}"] if self.every_s else []
        when += ["when a source has changed"] if self.on_data else []
        when += [f"by the work pool {self.pool}"] if self.pool else []
        return ", ".join(when) + (" (paused)" if self.paused else "")


def span(seconds: float) -> str:
    """90 -> 90s, 7200 -> 2h."""
    for unit in ("d", "h", "m"):
        if seconds >= _UNITS[unit] and not seconds % _UNITS[unit]:
            return f"{seconds / _UNITS[unit]:g}{unit}"
    return f"{seconds:g}s"


def seconds(text: str, option: str) -> float:
    """A span of time: 30s, 45m, 6h, 1.5d."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smhd])", text.strip())
    value = float(found.group(1)) * _UNITS[found.group(2)] if found else 0.0
    if not SHORTEST_S <= value <= LONGEST_S:
        raise UserError(
            f"{option} {text!r} must be a span of {span(SHORTEST_S)} to {span(LONGEST_S)}, like 30s, 45m, 6h or 1d."
        )
    return value


def folder(checkout: Checkout) -> Path:
    return checkout.state / "schedule"


def _file(checkout: Checkout) -> Path:
    return folder(checkout) / "schedule.json"


def read(checkout: Checkout) -> Schedule | None:
    """The schedule of this checkout; None if there is none."""
    path = _file(checkout)
    return read_note(path, _taken, do="Set the schedule again, or: axon schedule --remove") if path.is_file() else None


def _taken(tree: Any) -> Schedule:
    from pydantic import TypeAdapter

    found = TypeAdapter(Schedule).validate_python(tree)
    if not all(SHORTEST_S <= value <= LONGEST_S for value in (found.limit_s, found.every_s or SHORTEST_S)):
        raise ValueError(f"a span is not of {span(SHORTEST_S)} to {span(LONGEST_S)}")
    return found


def needed(checkout: Checkout) -> Schedule:
    found = read(checkout)
    if found is None:
        raise UserError(_NONE)
    return found


def set_(
    checkout: Checkout,
    *,
    cron: str | None,
    every: str | None,
    on_data: bool,
    limit: str,
    timezone: str,
    pool: str | None = None,
) -> None:
    """Set the schedule, in place of the one before. The workers of `pool` serve it, without one `axon worker`."""
    from flows import work_pool

    if pool and on_data:
        raise UserError("--on-data needs `axon worker`, which looks at the sources; the workers of a pool do not.")
    if cron is not None and every is not None:
        raise UserError("--cron and --every do not go together; give one of them.")
    if timezone != UTC and cron is None:
        raise UserError(f"--timezone {timezone} goes with --cron: a span is as long everywhere.")
    if cron is not None:
        _check_cron(cron, timezone)
    every_s = seconds(every, "--every") if every is not None else None
    before = read(checkout)
    wanted = Schedule(
        cron=cron,
        every_s=every_s,
        on_data=on_data,
        limit_s=seconds(limit, "--limit"),
        timezone=timezone,
        since=before.since if before and before.every_s == every_s else time.time(),
        notices=before.notices if before else "",
        notices_since=before.notices_since if before else 0.0,
        pool=pool or "",
    )
    if wanted.pool:
        work_pool.apply(checkout, wanted)
    elif before is not None and before.pool:
        work_pool.remove(checkout)
    write_json(_file(checkout), asdict(wanted))
    server = f"prefect worker start --pool {wanted.pool}" if wanted.pool else "axon worker"
    Console(highlight=False).print(f"retraining {wanted}; `{server}` runs it while it is up.", soft_wrap=True)


def set_notices(checkout: Checkout, service: str) -> None:
    """Have notices sent by `service`, whose address is kept elsewhere; or none, where it is empty."""
    before = needed(checkout)
    if before.pool and service:
        raise UserError("--notify needs `axon worker`; for a work pool make automations at its Prefect server.")
    wanted = replace(before, notices=service, notices_since=time.time())
    write_json(_file(checkout), asdict(wanted))
    Console(highlight=False).print(_of_notices(wanted), soft_wrap=True)


def _of_notices(wanted: Schedule) -> str:
    if not wanted.notices:
        return "no notices: axon schedule --notify sets them"
    return f"notices of failures, promotions and refusals by {wanted.notices}"


def _check_cron(cron: str, timezone: str) -> None:
    if len(cron.split()) != _N_CRON_FIELDS:
        raise UserError(f"--cron {cron!r} ({timezone}): it must have five fields: minute hour day month weekday.")
    from prefect.client.schemas.schedules import CronSchedule
    from pydantic import ValidationError

    try:
        CronSchedule(cron=cron, timezone=timezone)
    except ValidationError as error:
        told = error.errors(include_url=False)[0]["msg"].removeprefix("Value error, ")
        raise UserError(f"--cron {cron!r} ({timezone}): {told}. Five fields: minute hour day month weekday.") from None


def pause(checkout: Checkout, *, paused: bool) -> None:
    from flows import work_pool

    wanted = replace(needed(checkout), paused=paused)
    if wanted.pool:
        work_pool.apply(checkout, wanted)
    write_json(_file(checkout), asdict(wanted))
    Console(highlight=False).print(f"retraining {wanted}", soft_wrap=True)


def remove(checkout: Checkout) -> None:
    if not _file(checkout).is_file():
        raise UserError(_NONE)
    try:
        pool = needed(checkout).pool
    except UserError:
        pool = ""  # damaged: it goes all the same
    if pool:
        from flows import work_pool

        work_pool.remove(checkout)
    _file(checkout).unlink()
    Console(highlight=False).print("the schedule is gone; what was trained stays")


def request(checkout: Checkout, why: str, *, name: str | None = None, occasion: str | None = None) -> str:
    """Ask for one retraining; the request waits on disk for the worker, and is served once by its name.

    occasion: the id of one that was cut short, which this goes on with.
    """
    name = name or uuid.uuid4().hex
    asked = {"why": why, "time": time.time(), "occasion": occasion}
    write_json(folder(checkout) / "requests" / f"{name}.json", asked)
    return name


def run_now(checkout: Checkout) -> str:
    """Ask for a retraining of whoever serves the schedule; returns who that is, in words."""
    from flows import work_pool

    wanted = read(checkout)
    if wanted is not None and wanted.pool:
        work_pool.run_now(checkout, "asked for")
        return f"asked for; a worker of the pool {wanted.pool} runs it, unless another retraining runs"
    request(checkout, "asked for")
    return "asked for; `axon worker` runs it as soon as no other retraining runs"


def requests(checkout: Checkout) -> list[tuple[Path, dict[str, Any]]]:
    """What was asked for and not yet handed on, oldest first."""

    def taken(tree: Any) -> dict[str, Any]:
        return {"why": str(tree["why"]), "time": float(tree["time"])}

    paths = (folder(checkout) / "requests").glob("*.json")
    found = [(path, read_note(path, taken, do="Remove it, and ask again: axon schedule --run-now")) for path in paths]
    return sorted(found, key=lambda pair: pair[1]["time"])


def show(checkout: Checkout) -> None:
    """The schedule, and what came of the last occasions."""
    console = Console(highlight=False)
    wanted = needed(checkout)
    console.print(f"retraining {wanted}", soft_wrap=True)
    console.print(_of_notices(wanted), soft_wrap=True)
    waiting = requests(checkout)
    if waiting:
        console.print(f"{len(waiting)} asked for, not yet begun")
    for line in noted(checkout)[-10:]:
        at = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(line["ended"]))
        console.print(f"  {at} UTC  {line['occasion']}  {line['outcome']}", soft_wrap=True, markup=False)


def note(
    checkout: Checkout,
    flow_run: str,
    *,
    occasion: str,
    outcome: str,
    began: float | None = None,
    due: float | None = None,
    failed: bool = False,
) -> bool:
    """Keep what came of an occasion, by the id of its flow run; the first word counts. Whether this was it.

    began: when it started, None if it never did. due: when it should have. Both in seconds since 1970.
    """
    path = folder(checkout) / "done" / f"{flow_run}.json"
    if path.is_file():
        return False
    told = {"flow_run": flow_run, "occasion": occasion, "due": due, "began": began, "ended": time.time()}
    write_json(path, {**told, "outcome": outcome, "failed": failed})
    return True


def is_noted(checkout: Checkout, flow_run: str) -> bool:
    return (folder(checkout) / "done" / f"{flow_run}.json").is_file()


def noted(checkout: Checkout) -> list[dict[str, Any]]:
    """What came of each occasion, oldest first."""

    def taken(tree: Any) -> dict[str, Any]:
        ended = float(tree["ended"])
        if not 0 <= ended < _LATEST:
            raise ValueError(f"{ended} is no time")
        return {**tree, "occasion": str(tree["occasion"]), "outcome": str(tree["outcome"]), "ended": ended}

    paths = (folder(checkout) / "done").glob("*.json")
    found = [read_note(path, taken, do="Remove it: it is a note and nothing depends on it.") for path in paths]
    return sorted(found, key=lambda line: float(line["ended"]))


def forget_old_notes(checkout: Checkout) -> None:
    """Keep the newest notes, and those of some days: a schedule of minutes writes a hundred thousand in a year."""
    paths = sorted((folder(checkout) / "done").glob("*.json"), key=lambda path: path.stat().st_mtime)
    for path in paths[:-_KEPT_NOTES]:
        if time.time() - path.stat().st_mtime > _KEPT_S:
            path.unlink(missing_ok=True)
