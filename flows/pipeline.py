"""The whole pipeline as one Prefect flow: every stale stage in graph order, then registration.

DVC decides whether a stage runs, Prefect when, Ray where; MLflow remembers. Read this first, then `flows/stage.py`.
"""

from __future__ import annotations

import difflib
import os
import signal
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console

from flows import prefect_runs, registration, services, summary
from flows.prefect_server import is_away, prefect_server
from flows.signals import EXIT_INTERRUPTED, Interruption
from flows.stage import EXIT_WORKER_LOST
from tasks import registry
from tasks.errors import UserError
from tasks.lineage.audit import determinism
from tasks.parameters import Parameters
from tasks.redact import in_errors, redacted
from tasks.retraining import snapshots
from tasks.runtime import guard, leftovers, reproduction, stages
from tasks.runtime.checkout import Checkout
from tasks.runtime.reproduction import Plan, StageFailed
from tasks.runtime.stages import Stage
from tasks.tracking import journal
from tasks.tracking.journal import Journal
from tasks.tracking.mlflow_store import StoreAway

_RETRIES = 3
_RETRY_DELAYS_S = [1, 5, 20]


@dataclass
class Run:
    """A pipeline run under way: what it was asked, and what it has done so far (seconds by stage)."""

    checkout: Checkout
    params: Parameters
    graph: dict[str, Stage]
    plan: Plan
    console: Console
    targets: list[str]
    not_restored: frozenset[str] = frozenset()  # stages for which an earlier result of the same inputs is not taken
    seconds: dict[str, float] = field(default_factory=dict)
    interruption: Interruption = field(init=False)
    wait_for_ray: Callable[[], None] = lambda: None

    def __post_init__(self) -> None:
        self.interruption = Interruption(self.checkout)


def retrying_helps(error: Any) -> bool:
    """Whether a stage failed because a process was killed or lost, and not because of what it was given."""
    if not isinstance(error, StageFailed) or _was_interrupted(error):
        return False
    return error.code < 0 or error.code in (EXIT_WORKER_LOST, 137, 143)


def _was_interrupted(error: StageFailed) -> bool:
    # A shell between DVC and the stage may pass on the stage's own code, or end by the Ctrl-C that it got as well.
    return error.code in (EXIT_INTERRUPTED, -signal.SIGINT)


def execute(run: Run, *, is_whole: bool = True) -> registry.Version | None:
    """Start or find the engines, run the pipeline flow, and register; returns the registered version.

    is_whole: whether this is a run of its own, with a statement, and not the first part of a retraining.
    """
    from tasks.lineage import events, indexing, recording

    is_recorded = recording.is_on()
    run.interruption.install()
    with ExitStack() as stack:
        if is_recorded:
            stack.enter_context(events.emitting(run.checkout))
        record = stack.enter_context(Journal(run.checkout.journals, "pipeline"))
        closed = guard.close_earlier_runs(run.checkout)
        if closed:
            run.console.print(f"[dim]closed what {len(closed)} interrupted run(s) had left behind[/dim]")
        stack.enter_context(guard.run_guard(run.checkout, record.id))
        os.environ[journal.PIPELINE_ID] = record.id
        stack.callback(os.environ.pop, journal.PIPELINE_ID, None)
        began = time.time()
        record.start("pipeline", kind="pipeline", params=run.params.model_dump(mode="json"))
        run.console.print("[dim]starting Prefect, Ray and MLflow …[/dim]")
        started = time.monotonic()
        wait_for_prefect = stack.enter_context(prefect_server(run.checkout))
        run.wait_for_ray = stack.enter_context(services.ray_head(run.checkout, run.params))
        sender = stack.enter_context(services.mlflow_sender(run.checkout))
        wait_for_prefect()
        prefect_runs.close_dead(run.checkout)
        run.wait_for_ray()
        prefect = redacted(os.environ["PREFECT_API_URL"]).removesuffix("/api")
        ray = redacted(os.environ["AXON_RAY_ADDRESS"])
        seconds = time.monotonic() - started
        run.console.print(f"[dim]Prefect at {prefect}, Ray at {ray}, ready in {seconds:.0f} s[/dim]")
        try:
            _pipeline_flow(run, record)
        except StageFailed as error:
            if _was_interrupted(error) or run.interruption.is_asked:
                raise KeyboardInterrupt from None
            raise
        finally:
            # Also of a run that failed: the next one may overwrite what shows which records were used.
            if is_recorded:
                indexing.bring_up_to_date(run.checkout, run.params.model_dump(mode="json"))
        statement = _record_run(run, record, began) if is_recorded and is_whole else None
        record.end("FINISHED", outputs={}, statement=statement)
        try:
            sender.deliver()
        except StoreAway as error:
            if not run.targets:
                raise UserError(
                    f"every stage is done, but the model is not registered: {error}. What it was not told is kept; "
                    "run `axon run` again when it answers.",
                    exit_code=1,
                ) from None
        return None if run.targets else registration.register(run.checkout, run.console, pipeline=record.id)


def _pipeline_flow(run: Run, record: Journal) -> None:
    """Run the Prefect flow `pipeline`: one task a stage, tried again where a process was lost."""
    from prefect import flow, tags, task
    from prefect.cache_policies import NO_CACHE
    from prefect.logging.handlers import APILogWorker

    def only_lost_processes(_task: Any, _run: Any, state: Any) -> bool:
        return _is_worth_another_try(run, state.result(raise_on_failure=False))

    failed: list[Exception] = []  # what ended the last stage, if it did not end well

    def one(name: str) -> None:
        if run.interruption.is_asked:  # between two stages there was none to pass it on to
            raise KeyboardInterrupt
        run.interruption.install()
        failed.clear()
        try:
            run.wait_for_ray()
            with in_errors():
                _reproduce(run, name, record)
        except Exception as error:
            failed.append(error)
            raise

    names = [n for n in run.graph if n in run.plan.stale or n in run.plan.follow]

    @flow(name="pipeline", flow_run_name="pipeline", persist_result=False)
    def pipeline() -> None:
        for name in names:
            task(
                name=name,
                task_run_name=name,
                retries=_RETRIES,
                retry_delay_seconds=[float(s) for s in _RETRY_DELAYS_S],
                retry_condition_fn=only_lost_processes,
                persist_result=False,
                cache_policy=NO_CACHE,
            )(one)(name)

    try:
        with tags(prefect_runs.tag_of(run.checkout)):
            pipeline()
    except Exception as error:
        if not is_away(error):
            raise
        if failed and not _is_worth_another_try(run, failed[0]):
            raise failed[0] from None  # Prefect could only not be told of it
        run.console.print("[yellow]Prefect does not answer; going on without it[/yellow]")
        for name in names:  # those that are done are current
            _with_retries(run, lambda name=name: one(name))  # type: ignore[misc]
    finally:
        APILogWorker.drain_all(timeout=5)
        reproduction.write_lock_in_order(run.checkout.root, run.graph)
        prefect_runs.close_dead(run.checkout)  # a stage that was killed and tried again


def _is_worth_another_try(run: Run, error: Any) -> bool:
    if run.interruption.is_asked or not retrying_helps(error):
        return False
    run.console.print(f"[yellow]{error.stage}: a process was lost; going on from its last checkpoint[/yellow]")
    return True


def _with_retries(run: Run, work: Callable[[], None]) -> None:
    """What Prefect does about a failed task, for when it is away."""
    for delay in _RETRY_DELAYS_S:
        try:
            return work()
        except StageFailed as error:
            if not _is_worth_another_try(run, error):
                raise
        time.sleep(delay)
    work()


def _reproduce(run: Run, name: str, record: Journal) -> None:
    """Have DVC reproduce one stage, and say what came of it."""
    started = time.monotonic()
    journals = set(run.checkout.journals.glob("*.jsonl"))
    run.console.print(f"[bold]{name}[/bold]")
    with leftovers.keeping_lock(run.checkout):
        ran = reproduction.reproduce(run.checkout.root, name, run_cache=name not in run.not_restored)
    if not ran:
        run.console.print(f"  {name}: unchanged")
        return
    run.seconds[name] = time.monotonic() - started
    record.metrics(0, {f"seconds/{name}": run.seconds[name]})
    executed = any(f"-{name}-" in p.name for p in set(run.checkout.journals.glob("*.jsonl")) - journals)
    figure = summary.key_figure(run.checkout.root, name)
    how = "restored from DVC's cache" if not executed else f"{run.seconds[name]:.0f} s"
    run.console.print(f"  [green]✓[/green] {name}  {how}  {figure}")


def _record_run(run: Run, record: Journal, started: float) -> dict[str, str]:
    """Write the statement of the whole run; returns how the journal names it."""
    from tasks.lineage import recording

    values = run.params.model_dump(mode="json")
    written = recording.record_run(
        run.checkout, parameters=values, targets=run.targets, execution=record.id, started=started
    )
    snapshots.keep(run.checkout, record.id)
    return written.reference


def check_targets(checkout: Checkout, targets: list[str]) -> dict[str, Stage]:
    """The stage graph; a `UserError` if a target is not in it."""
    graph = stages.read_stages(checkout.root)
    for target in targets:
        if target not in graph:
            close = difflib.get_close_matches(target, list(graph), n=1)
            hint = f"did you mean {close[0]}? " if close else ""
            raise UserError(f"{target} is not a stage; {hint}Stages: {', '.join(graph)}.")
    return graph


def prepare(
    checkout: Checkout, params: Parameters, targets: list[str], console: Console, *, run_cache: bool | None = None
) -> Run:
    """Ask DVC what there is to do. `run_cache`: take earlier results of the same inputs; None: where a stage is not
    known to be other than deterministic, since one result of such a stage does not stand for another."""
    graph = check_targets(checkout, targets)
    not_restored = [
        n for n in graph if (determinism.is_known_not_to_be(checkout, n) if run_cache is None else not run_cache)
    ]
    plan = reproduction.plan(checkout.root, graph, targets, params.model_dump(mode="json"))
    return Run(
        checkout=checkout,
        params=params,
        graph=graph,
        plan=plan,
        console=console,
        targets=targets,
        not_restored=frozenset(not_restored),
    )
