"""One trial: the real step with changed parameters, in a folder of its own, under Ray Tune.

The folder looks like a checkout to the step: inputs are links into the real one, outputs are its own. Nothing of it is
an output of DVC.
"""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from tasks.errors import UserError, machine_fault
from tasks.files import write_text
from tasks.parameters import Parameters
from tasks.runtime import cluster, training_group, worker
from tasks.runtime.place import Files, Place
from tasks.sweeping.plan import Plan

# Keys of what a trial reports to Ray Tune.
VALUE = "value"  # of the goal's metric
PERCENT = "percent"  # of the training that is done; ASHA's time. The last report has none: there is nothing to stop
EVENTS = "events"  # what the step reported since the last time, for the journal
PLACEMENT = "placement"  # the placement group of the trial's workers, "" without
FINISHED, FAILED = "finished", "failed"
KEPT = ("params.yaml", "metrics")


def run(config: Mapping[str, Any], plan: Plan) -> None:
    """What Ray Tune runs in the process of trial `config["number"]`.

    Ray Tune lets `tune.report` return only when the trial may go on; where it may not, the report raises `SystemExit`
    in this thread and the process ends.
    """
    from ray import tune

    number = config["number"]
    folder, params = plan.folder_of(number), plan.params[number - 1]
    reporter = Reporter(plan)
    started = time.monotonic()
    try:
        os.chdir(folder)
        for step in plan.steps:
            reporter.begin(step)
            _execute(step, params, folder, reporter)
    except Exception as error:  # noqa: BLE001 one trial's fault is a result of the sweep, not its end
        tune.report({FAILED: _in_words(error), EVENTS: reporter.take()})
        return
    tune.report({FINISHED: True, "work_s": time.monotonic() - started, EVENTS: reporter.take()})


def _in_words(error: Exception) -> str:
    if isinstance(error, UserError):
        return str(error)
    return machine_fault(error) or f"{type(error).__name__}: {error}"


class Reporter:
    """Keeps what the step reports, and hands it to Ray Tune whenever the goal's value is there."""

    def __init__(self, plan: Plan) -> None:
        self._goal = plan.goal
        self._step = ""
        self._placement = ""
        self._events: list[dict[str, Any]] = []

    def begin(self, step: str) -> None:
        self._step = step

    def report(self, step: int, n_steps: int, values: Mapping[str, float]) -> None:
        self.event({"step": step, "n_steps": n_steps, "time": time.time(), "values": dict(values)})

    def event(self, event: dict[str, Any]) -> None:
        """One report of the step. Blocks while Ray Tune decides; raises `SystemExit` if it decides against."""
        from ray import tune

        is_goal = self._step == self._goal.stage
        values = event["values"]
        if not is_goal:
            values = {f"{self._step}/{name}": value for name, value in values.items()}
        self._events.append({**event, "values": values})
        if not is_goal or self._goal.metric not in values:
            return
        step, n_steps = event["step"], event["n_steps"]
        told = {VALUE: float(values[self._goal.metric]), "step": step, "n_steps": n_steps, EVENTS: self.take()}
        told[PLACEMENT] = self._placement
        tune.report(told | ({PERCENT: 100.0 * step / n_steps} if 0 < step < n_steps else {}))

    def place(self, placement: str) -> None:
        """Which placement group the step's workers are in."""
        self._placement = placement

    def take(self) -> list[dict[str, Any]]:
        taken, self._events = self._events, []
        return taken


def prepare(plan: Plan, number: int) -> None:
    """Make the folder of a trial: links to its inputs, and a note of its parameters."""
    folder = plan.folder_of(number)
    folder.mkdir(parents=True)
    for path in plan.inputs:
        link = folder / path
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(Path(plan.root) / path)
    values = plan.params[number - 1].model_dump(mode="json")
    write_text(folder / "params.yaml", yaml.safe_dump(values, sort_keys=False))


def _execute(step: str, params: Parameters, folder: Path, reporter: Reporter) -> None:
    checkpoints = folder / "checkpoints" / step
    if params.workers > 1 and step in cluster.GROUPS:
        training_group.run(
            Place(root=str(folder)),
            step,
            params,
            Files(checkpoints=str(checkpoints)),
            storage=str(folder / "ray-train"),
            on_event=reporter.event,
            stopping=threading.Event(),
            stop_within_s=0.0,
            on_placement=reporter.place,
        )
        return
    pool = _pool(step, params, folder)
    try:
        worker.execute(str(folder), step, params, checkpoints, report=reporter.report, pool=pool)
    finally:
        _end(pool)


def _pool(step: str, params: Parameters, folder: Path) -> list[Any]:
    """The processes that a step fans out to. They ask Ray for no processors: the trial holds them already."""
    if step not in cluster.POOLS:
        return []
    import ray

    pool_class: Any = ray.remote(num_cpus=0)(worker.PoolWorker)
    place, files = Place(root=str(folder)), Files(checkpoints="")
    imports = list(cluster.POOLS[step])
    return [pool_class.remote(place, files, imports) for _ in range(params.runtime.sampling_workers)]


def _end(pool: Sequence[Any]) -> None:
    import ray

    for member in pool:
        ray.kill(member)


def tidy(folder: Path) -> None:
    """Remove all that a trial has made but its parameters, metrics and curves.

    Models that were trained outside DVC have no statement: nobody could say later what they had learnt from.
    """
    if not folder.is_dir():
        return
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            path.unlink()
    for path in sorted(folder.iterdir()):
        if path.name in KEPT:
            continue
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
