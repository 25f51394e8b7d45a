"""Run one stage: its Prefect flow around one Ray actor. DVC starts this as `python -m flows.STAGE`.

The order matters for speed: the actor is started first and imports torch while this process imports Prefect.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

from flows import prefect_runs
from flows.prefect_server import is_away, is_ready_soon, prefect_server
from flows.progress import Progress
from flows.signals import EXIT_INTERRUPTED, SAME_SIGNAL_S
from tasks import redact
from tasks.errors import Stopped, UserError, machine_fault
from tasks.parameters import load
from tasks.redact import redacted
from tasks.runtime import checkout as checkouts
from tasks.runtime import environment, guard, head, stages
from tasks.runtime.checkout import Checkout
from tasks.runtime.cluster import StageWorkers, WorkerLost, stage_workers
from tasks.runtime.place import Files
from tasks.tracking import journal
from tasks.tracking.journal import Journal

EXIT_WORKER_LOST = 75  # EX_TEMPFAIL of sysexits.h: trying again helps


def main(name: str) -> None:
    """Run the stage and leave with its exit code: 0, 1 failed, 2 configuration, 75 a worker died."""
    guard.die_with_run()
    head.when_gone(lambda: _leave_without_ray(name))
    try:
        checkout = checkouts.find()
        environment.prepare(checkout)
        with guard.exclusive(checkout.locks / "stage", who=f"stage {name}", waiting=None):
            _execute(checkout, name)
        code = 0
    except UserError as error:
        _say(name, str(error))
        code = error.exit_code
    except WorkerLost as error:
        _say(name, f"a Ray worker was lost ({error}).")
        code = EXIT_WORKER_LOST
    except (KeyboardInterrupt, Stopped) as error:
        _say(name, f"{str(error) or 'interrupted'}; `axon run` goes on from there.")
        code = EXIT_INTERRUPTED
    except Exception as error:  # noqa: BLE001 an error of ours ends in one message too, its trace in a file
        _say(name, machine_fault(error) or _with_trace(name, error))
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    # Every result is on disk and every lock is gone with the process: the engines' exit handlers only cost time.
    os._exit(code)


def _say(name: str, told: str) -> None:
    print(f"\n{name}: {redacted(told)}", file=sys.stderr, flush=True)


def _leave_without_ray(name: str) -> None:
    """Whatever the stage waits for will not come: Ray's own limit for its control service is a minute."""
    os.write(2, f"\n{name}: Ray was lost.\n".encode())
    os._exit(EXIT_WORKER_LOST)


def _with_trace(name: str, error: Exception) -> str:
    log = checkouts.find().state / "logs" / f"{name}.txt"
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text(redact.traced(error), encoding="utf-8")
    return f"{type(error).__name__}: {error}\nThe trace is in {log}"


def _execute(checkout: Checkout, name: str) -> None:
    params = load(checkout.root)
    graph = stages.read_stages(checkout.root)
    stage = graph[name]
    # Outside a pipeline run the stage has a server of its own: Prefect's temporary one would outlive this process.
    with (
        Journal(checkout.journals, name) as record,
        prefect_server(checkout),
        stage_workers(checkout, name, params) as workers,
    ):
        stop_on_signals = _stopper(name, workers)
        stop_on_signals()
        inputs = stages.hash_inputs(checkout.root, graph, name)
        values = params.model_dump(mode="json")
        started = time.time()
        record.start(
            name,
            kind="stage",
            parent=os.environ.get(journal.PIPELINE_ID),
            params={key: stages.value_at(values, key) for key in stage.params},
            inputs=inputs,
        )
        from tasks.lineage import recording  # while the actor starts

        is_recorded = recording.is_on()
        if is_recorded:
            recording.prepare(checkout, stage, inputs)
        identity = stages.execution_digest(stage, inputs, values)
        files = Files.of(checkout, stage, inputs, identity)

        def do() -> dict[str, Any]:
            stop_on_signals()  # Prefect has put a handler of its own in place for the time of a flow
            return _work(workers, files, name, record)

        work = _as_flow(checkout, name, do)
        result = work()
        outputs = {out: stages.digest(checkout.root / out) for out in stage.outs}
        record.metrics(0, {"work_s": result["work_s"]})
        if "workers" in result:
            record.write("workers", nodes=result["workers"])
        statement = None
        if is_recorded:
            pipeline = os.environ.get(journal.PIPELINE_ID)
            statement = recording.record_stage(
                checkout, stage, inputs, values, outputs, record.id, pipeline, started, workers=result.get("workers")
            ).reference
        record.end("FINISHED", outputs=outputs, used=result["used"], statement=statement)
    if journal.PIPELINE_ID not in os.environ:
        _deliver(checkout)


def _stopper(name: str, workers: StageWorkers) -> Callable[[], None]:
    """What has the first SIGINT or SIGTERM ask the step to stop where it can go on; a second one leaves at once."""
    asked_at: float | None = None

    def handle(_number: int, _frame: Any) -> None:
        nonlocal asked_at
        if asked_at is None:
            asked_at = time.monotonic()
            workers.stopping.set()
            os.write(2, f"\n{name}: stopping behind a checkpoint; once more leaves at once\n".encode())
        elif time.monotonic() - asked_at > SAME_SIGNAL_S:
            os._exit(EXIT_INTERRUPTED)

    def install() -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, handle)

    return install


def _as_flow(checkout: Checkout, name: str, work: Callable[[], dict[str, Any]]) -> Callable[[], dict[str, Any]]:
    """The Prefect flow `name` with the one task `work`."""
    from prefect import flow, tags, task
    from prefect.cache_policies import NO_CACHE
    from prefect.logging.handlers import APILogWorker
    from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings

    found: list[dict[str, Any]] = []

    def noted() -> dict[str, Any]:
        with redact.in_errors():
            found.append(work())
        return found[0]

    step = task(name=f"{name}-step", persist_result=False, cache_policy=NO_CACHE)(noted)

    @flow(name=name, flow_run_name=name, persist_result=False)
    def stage() -> dict[str, Any]:
        return step()

    def run() -> dict[str, Any]:
        if not is_ready_soon():
            return _without_prefect(name, work)
        # The pipeline's flow has a heartbeat; ending this one's takes up to a second (Prefect 3.8).
        no_heartbeat = temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None})
        try:
            with no_heartbeat, tags(prefect_runs.tag_of(checkout), prefect_runs.of_pipeline()):
                return stage()
        except Exception as error:
            if not is_away(error):
                raise
            return found[0] if found else _without_prefect(name, work)
        finally:
            APILogWorker.drain_all(timeout=5)

    return run


def _without_prefect(name: str, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Work is not lost for a server that only shows it."""
    url = redacted(os.environ["PREFECT_API_URL"])
    print(
        f"{name}: Prefect does not answer at {url}; going on without it, and it will not show this stage.", flush=True
    )
    return work()


def _work(workers: StageWorkers, files: Files, name: str, record: Journal) -> dict[str, Any]:
    """Execute the step in its worker, showing and recording what it reports."""
    with Progress(name) as progress:

        def on_event(event: dict[str, Any]) -> None:
            progress.show(event)
            record.metrics(event["step"], event["values"], event["time"])

        return workers.run(files, on_event)


def _deliver(checkout: Checkout) -> None:
    """Outside a pipeline run there is nobody else to tell MLflow and OpenLineage."""
    from tasks.tracking.mlflow_store import Sender, StoreAway

    try:
        Sender(checkout).deliver()
    except StoreAway as error:
        print(f"{error}. What it was not told is kept, and told by the next run.", file=sys.stderr)
    from tasks.lineage import events, indexing, recording

    if recording.is_on():
        with events.emitting(checkout):
            indexing.bring_up_to_date(checkout, load(checkout.root).model_dump(mode="json"))
