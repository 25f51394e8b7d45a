"""Trials under Ray Tune: its variant generator hands them out, ASHA stops the bad ones, journals keep what they did.

Ray Tune writes the state of an experiment with pickle. It writes into a folder that is removed afterwards, and nothing
is read back.
"""

from __future__ import annotations

import logging
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ray import PlacementGroupID, tune
from ray.tune import PlacementGroupFactory
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search.basic_variant import BasicVariantGenerator
from ray.util.placement_group import PlacementGroup, remove_placement_group

from tasks.errors import UserError
from tasks.parameters import Parameters
from tasks.runtime import cluster, stages
from tasks.runtime.checkout import Checkout
from tasks.sweeping import trial as trials
from tasks.sweeping.plan import Goal, Plan
from tasks.sweeping.space import Values
from tasks.tracking.journal import Journal

WAITING, RUNNING, FINISHED, STOPPED, CUT, FAILED = "waiting", "running", "finished", "stopped", "cut short", "failed"
_STATUSES = {FINISHED: "FINISHED", STOPPED: "KILLED", CUT: "KILLED", FAILED: "FAILED"}
_REDUCTION = 3  # of the trials at a rung, the best third goes on
_LITTLE = 0.001  # CPUs of a trial that only waits for its workers
_GONE_WITHIN_S = 5.0  # after its end, a trial's process and what it has started
# Read by Ray Tune where it starts and while it runs.
_SETTINGS = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # files for TensorBoard and others
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # the last report has no time, that of a failure no value
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_FORCE_TRIAL_CLEANUP_S": "5",
    "TUNE_WARN_INSUFFICENT_RESOURCE_THRESHOLD_S": "-1",
}


@dataclass
class Trial:
    """What has come of trial `number` so far; `value` is the last reported one of the goal's metric."""

    number: int
    values: Values
    state: str = WAITING
    value: float | None = None
    step: int = 0
    n_steps: int = 0
    seconds: float = 0.0
    message: str = ""
    journal: Journal | None = field(default=None, repr=False)
    started: float = 0.0
    placement: str = ""  # of its workers

    def as_json(self) -> dict[str, Any]:
        return {
            "number": self.number,
            "values": self.values,
            "state": self.state,
            "value": self.value if self.value is not None and math.isfinite(self.value) else None,
            "step": self.step,
            "n_steps": self.n_steps,
            "seconds": round(self.seconds, 1),
            "message": self.message,
        }


def n_cpus(plan: Plan) -> int:
    """The CPUs of one trial, whichever needs most."""
    return max(params.threads * params.workers for params in plan.params)


def largest(plan: Plan) -> Parameters:
    return max(plan.params, key=lambda params: params.threads * params.workers)


def _is_group(plan: Plan) -> bool:
    return any(params.workers > 1 for params in plan.params) and bool(set(plan.steps) & set(cluster.GROUPS))


def resources(plan: Plan) -> PlacementGroupFactory:
    """What Ray sets aside for a trial. Workers that train together ask for their own."""
    if _is_group(plan):
        return PlacementGroupFactory([{"CPU": _LITTLE}])
    uses_gpu = any(params.device == "cuda" for params in plan.params)
    return PlacementGroupFactory([{"CPU": n_cpus(plan), **({"GPU": 1} if uses_gpu else {})}])


def check_room(plan: Plan, concurrent: int, there: Mapping[str, float]) -> None:
    """Raises `UserError` where Ray, which has `there` (CPU, GPU), has too little for so many trials at once."""
    params = largest(plan)
    needs = {"CPU": n_cpus(plan)}
    if any(one.device == "cuda" for one in plan.params):
        needs["GPU"] = params.workers
    for what, each in needs.items():
        if each * concurrent > there.get(what, 0):
            raise UserError(
                f"{concurrent} trial(s) at once, each with threads={params.threads} and workers={params.workers}, need "
                f"{each * concurrent} {what}s, and there are {there.get(what, 0):g}. Give a smaller --concurrent, or "
                f"set {'threads or workers' if what == 'CPU' else 'device'} in params.yaml."
            )


class Watcher(tune.Callback):
    """Keeps a journal a trial, and tells `on_change` of every start, report and end."""

    def __init__(self, checkout: Checkout, plan: Plan, parent: Journal, on_change: Callable[[Trial], None]) -> None:
        self._checkout, self._plan, self._parent, self._on_change = checkout, plan, parent, on_change
        self._left: list[tuple[float, str]] = []  # when a trial ended, and the placement group of its workers
        self.found = {n: Trial(number=n, values=values) for n, values in enumerate(plan.trials, 1)}

    def _of(self, trial: Any) -> Trial:
        return self.found[trial.config["number"]]

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        found = self._of(trial)
        found.state, found.started = RUNNING, time.monotonic()
        found.journal = Journal(self._checkout.journals, "trial")
        values = self._plan.params[found.number - 1].model_dump(mode="json")
        params = {key: stages.value_at(values, key) for key in self._plan.keys}
        found.journal.start(f"trial {found.number}", kind="trial", parent=self._parent.id, params=params)
        self._on_change(found)

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **i: Any) -> None:
        found = self._of(trial)
        found.placement = result.pop("placement", found.placement)
        for event in result.pop("events", ()):
            if found.journal is not None:
                found.journal.metrics(event["step"], event["values"], event["time"])
        if "failed" in result:
            found.state, found.message = FAILED, result["failed"]
        elif "finished" in result:
            found.state = FINISHED
            if found.journal is not None:
                found.journal.metrics(0, {"work_s": result["work_s"]})
        else:
            found.value, found.step, found.n_steps = result["value"], result["step"], result["n_steps"]
            self._on_change(found)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        found = self._of(trial)
        if found.state == RUNNING:
            is_asha = bool((trial.last_result or {}).get("done"))
            found.state = STOPPED if is_asha else CUT
            found.message = "stopped by ASHA" if is_asha else "the budget was spent"
        self._end(found)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        found = self._of(trial)
        found.state, found.message = FAILED, "its process was lost"
        self._end(found)

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Give back what the workers of trials that were ended in the middle had, or the next trial waits for ever.

        Ray (2.60) keeps a placement group as long as its job goes on; Ray Train's own watcher needs a dashboard.
        """
        while self._left and time.monotonic() - self._left[0][0] > _GONE_WITHIN_S:
            _release(self._left.pop(0)[1])

    def _end(self, found: Trial) -> None:
        if found.journal is None:
            return
        if found.placement:
            self._left.append((time.monotonic(), found.placement))
        found.seconds = time.monotonic() - found.started
        found.journal.end(_STATUSES[found.state], message=found.message)
        found.journal.close()
        found.journal = None
        trials.tidy(self._plan.folder_of(found.number))
        self._on_change(found)

    def interrupt(self) -> None:
        """End what is still under way."""
        for found in self.found.values():
            if found.journal is not None:
                found.state, found.message = CUT, "interrupted"
                self._end(found)


def _release(placement: str) -> None:
    """Remove a placement group; one that is gone is left alone."""
    remove_placement_group(PlacementGroup(PlacementGroupID(bytes.fromhex(placement))))


def run(
    checkout: Checkout,
    plan: Plan,
    parent: Journal,
    *,
    concurrent: int,
    budget_s: float | None,
    grace: int,
    on_change: Callable[[Trial], None],
) -> list[Trial]:
    """Run all trials; Ray is there already.

    grace: percent of its training after which a trial may be stopped. Raises `KeyboardInterrupt` where it was
    interrupted, with every journal ended.
    """
    for number in range(1, len(plan.trials) + 1):
        trials.prepare(plan, number)
    watcher = Watcher(checkout, plan, parent, on_change)
    try:
        with _quiet_tune(), _storage(plan) as storage:
            tune.run(
                tune.with_parameters(trials.run, plan=plan),
                name=Path(plan.folder).name,
                storage_path=str(storage),
                config={"number": tune.grid_search(list(watcher.found))},
                search_alg=BasicVariantGenerator(max_concurrent=concurrent),
                scheduler=ASHAScheduler(
                    time_attr=trials.PERCENT,
                    metric=trials.VALUE,
                    mode=plan.goal.mode,
                    max_t=100,
                    grace_period=grace,
                    reduction_factor=_REDUCTION,
                    stop_last_trials=False,
                ),
                resources_per_trial=resources(plan),
                time_budget_s=budget_s,
                callbacks=[watcher],
                raise_on_failed_trial=False,
                verbose=0,
            )
    finally:
        watcher.interrupt()
        for number in watcher.found:
            trials.tidy(plan.folder_of(number))
    return list(watcher.found.values())


@contextmanager
def _quiet_tune() -> Iterator[None]:
    for name in ("ray.tune", "ray.air", "ray.train"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    before = {name: os.environ.get(name) for name in _SETTINGS}
    os.environ.update(_SETTINGS)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def _storage(plan: Plan) -> Iterator[Path]:
    """Where Ray Tune may write, for as long as it runs; also what it puts into Ray's own temporary folder."""
    folder = Path(plan.folder) / ".tune"
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        for written in _session().glob(f"artifacts/*/{Path(plan.folder).name}"):
            shutil.rmtree(written, ignore_errors=True)


def _session() -> Path:
    import ray._private.worker as ray_worker

    node: Any = ray_worker._global_node
    return Path(node.get_session_dir_path())


def ranked(found: list[Trial], goal: Goal) -> list[Trial]:
    """Those that ran to their end first, the best of them first; then those that were stopped, by their last value."""
    worst = math.inf

    def key(one: Trial) -> tuple[int, float, int]:
        order = [FINISHED, STOPPED, CUT, RUNNING, FAILED, WAITING].index(one.state)
        value = one.value if one.value is not None and math.isfinite(one.value) else None
        if value is None:
            return order, worst, one.number
        return order, value if goal.mode == "min" else -value, one.number

    return sorted(found, key=key)


def best(found: list[Trial], goal: Goal) -> Trial | None:
    """The best of the trials that ran to their end; None if none did with a finite value."""
    whole = [t for t in found if t.state == FINISHED and t.value is not None and math.isfinite(t.value)]
    return ranked(whole, goal)[0] if whole else None
