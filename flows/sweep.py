"""`axon sweep`: trials of one training stage under Ray Tune and ASHA, outside DVC; the best again as `dvc exp run`.

Everything that can be wrong is looked for before anything starts.
"""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from flows import services, sweep_display
from tasks import parameters
from tasks.data import sources
from tasks.errors import UserError
from tasks.files import read_json, write_json
from tasks.runtime import cluster, guard, stages
from tasks.runtime.checkout import Checkout
from tasks.sweeping import experiment
from tasks.sweeping import plan as plans
from tasks.sweeping import space as spaces
from tasks.sweeping.plan import Plan
from tasks.sweeping.trial import tidy
from tasks.tracking.journal import Journal

if TYPE_CHECKING:
    from tasks.sweeping.tuning import Trial

RESULT = "sweep.json"


@dataclass(frozen=True, kw_only=True)
class Request:
    """What was asked for on the command line. `grace`: percent of its training that every trial gets."""

    stage: str
    over: tuple[str, ...]
    n_trials: int
    metric: str | None = None
    mode: str | None = None
    concurrent: int = 1
    seed: int = 0
    budget_s: float | None = None
    grace: int = 12
    run_best: bool = False


def sweep(checkout: Checkout, asked: Request) -> int:
    """Run the trials and say which is best; with `run_best` run that as a DVC experiment. Returns the exit code.

    Raises `UserError` (exit code 2) for what is wrong in the call, before anything has started.
    """
    console = Console(highlight=False, soft_wrap=not sys.stdout.isatty())
    _plan(checkout, asked)
    with guard.exclusive(checkout.locks / "run", who="axon sweep", waiting=_waiting(console)):
        plan, values = _plan(checkout, asked)  # another run may have changed what it waited for
        try:
            with _signals(), guard.exclusive(checkout.locks / "stage", who="axon sweep", waiting=None):
                found = _search(checkout, plan, values, asked, console)
        except KeyboardInterrupt:
            print("\naxon: interrupted; the trials are ended. `axon sweep` again starts anew.", file=sys.stderr)
            return 130
        from tasks.sweeping import tuning

        chosen = tuning.best(found, plan.goal)
        sweep_display.print_ranking(console, tuning.ranked(found, plan.goal), plan.goal, chosen)
        if chosen is None:
            raise UserError("no trial ran to its end; what became of them is above.", exit_code=1)
        sweep_display.print_command(console, chosen.values)
        return _run(checkout, chosen.values, console) if asked.run_best else 0


def run_last(checkout: Checkout) -> int:
    """Run the best trial of the last sweep that has one."""
    console = Console(highlight=False, soft_wrap=not sys.stdout.isatty())
    for path in sorted(checkout.sweeps.glob(f"*/{RESULT}"), reverse=True):
        written = read_json(path)
        if written["best"] is not None:
            console.print(f"the best of {written['id']} (trial {written['best']['number']})")
            experiment.check_repository(checkout.root)
            with guard.exclusive(checkout.locks / "run", who="axon sweep --run-best", waiting=_waiting(console)):
                return _run(checkout, written["best"]["values"], console)
    raise UserError("no sweep of this checkout has a trial that ran to its end; `axon sweep --help` shows how.")


def _waiting(console: Console) -> Callable[[str], None]:
    return lambda holder: console.print(f"waiting for {holder} to end …")


def _plan(checkout: Checkout, asked: Request) -> tuple[Plan, dict[str, Any]]:
    """The plan of a sweep, and the parameters as they stand; every mistake in the call is found here."""
    root = checkout.root
    tree = parameters.read_tree(root / "params.yaml")
    params = parameters.check(tree)
    sources.check_sources(params, root)
    graph = stages.read_stages(root)
    goal = plans.goal(asked.stage, graph, asked.metric, asked.mode)
    space = [spaces.parse(text) for text in asked.over]
    if not space:
        raise UserError("nothing to search over: give --over KEY=DISTRIBUTION(…), as `axon sweep --help` shows.")
    spaces.check(space, tree)
    steps = plans.steps(graph, goal.stage, space)
    trials = spaces.sample(space, asked.n_trials, seed=asked.seed)
    checked = spaces.check_trials(trials, tree)
    if asked.run_best:
        experiment.check_repository(root)
    name = f"{time.strftime('%Y%m%d-%H%M%S')}-{goal.stage}"
    plan = Plan(
        root=str(root),
        folder=str(checkout.sweeps / name),
        goal=goal,
        steps=tuple(steps),
        inputs=tuple(plans.inputs(graph, steps)),
        keys=tuple(sorted({key for step in steps for key in graph[step].params})),
        trials=tuple(trials),
        params=tuple(checked),
    )
    if "RAY_ADDRESS" not in os.environ:
        from tasks.sweeping import tuning

        here = cluster.n_cpus_needed(tuning.largest(plan))
        tuning.check_room(plan, asked.concurrent, {"CPU": here, "GPU": math.inf})
    return plan, params.model_dump(mode="json")


def _search(checkout: Checkout, plan: Plan, values: dict[str, Any], asked: Request, console: Console) -> list[Trial]:
    """Run the trials under the engines that they need, and keep what came of them."""
    from tasks.sweeping import tuning

    graph = stages.read_stages(checkout.root)
    inputs = plans.check_inputs(checkout, graph, plan.steps, values)
    for earlier in checkout.sweeps.glob("*/*"):
        tidy(earlier)
    sweep_display.print_plan(console, plan, asked.n_trials)
    settings = {
        "stage": plan.goal.stage,
        "over": list(asked.over),
        "metric": plan.goal.metric,
        "mode": plan.goal.mode,
        "seed": asked.seed,
        "n_trials": len(plan.trials),
    }
    record = Journal(checkout.journals, "sweep")
    # The journal ends first, however that is, so that MLflow is still told.
    with _engines(checkout, plan, record, asked.concurrent), record:
        data = {path: md5 for path, md5 in inputs.items() if path in plan.inputs}
        record.start(f"sweep {plan.goal.stage}", kind="sweep", params=settings, inputs=data)
        found = tuning.run(
            checkout,
            plan,
            record,
            concurrent=asked.concurrent,
            budget_s=asked.budget_s,
            grace=asked.grace,
            on_change=sweep_display.Lines(console, plan.goal, len(plan.trials)),
        )
        chosen = tuning.best(found, plan.goal)
        if chosen is not None and chosen.value is not None:
            record.metrics(0, {f"best/{plan.goal.metric}": chosen.value, "best/trial": float(chosen.number)})
        _keep(plan, settings, found, chosen)
        if chosen is None:
            record.end("FAILED", message="no trial ran to its end")
    return found


@contextmanager
def _engines(checkout: Checkout, plan: Plan, record: Journal, concurrent: int) -> Iterator[None]:
    """Ray, somebody who tells MLflow, and somebody who ends what is left of this process."""
    from tasks.sweeping import tuning

    guard.close_earlier_runs(checkout)
    largest = tuning.largest(plan)
    with (
        guard.run_guard(checkout, record.id),
        services.ray_head(checkout, largest, n_cpus=cluster.n_cpus_needed(largest) + 1) as wait_for_ray,
        services.mlflow_sender(checkout),
    ):
        wait_for_ray()
        cluster.connect(largest)
        signal.signal(signal.SIGTERM, _interrupt)  # Ray has put one of its own in place, which leaves without a word
        tuning.check_room(plan, concurrent, cluster.resources())
        yield


def _keep(plan: Plan, settings: dict[str, Any], found: Sequence[Trial], chosen: Trial | None) -> None:
    content = {
        "id": Path(plan.folder).name,
        **settings,
        "best": chosen.as_json() if chosen is not None else None,
        "trials": [trial.as_json() for trial in found],
    }
    write_json(Path(plan.folder) / RESULT, content)


@contextmanager
def _signals() -> Iterator[None]:
    """SIGTERM ends a sweep as Ctrl-C does."""
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _interrupt(_number: int, _frame: Any) -> None:
    raise KeyboardInterrupt


def _run(checkout: Checkout, values: dict[str, Any], console: Console) -> int:
    """Run the chosen parameters as an experiment of DVC."""
    console.print(f"[bold]{experiment.command(values)}[/bold]", soft_wrap=True)
    command = [sys.executable, "-m", "dvc", *experiment.arguments(values)]
    process = subprocess.Popen(command, cwd=checkout.root, preexec_fn=guard.bind_to_parent)
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # the stage gets it from the terminal too, and saves
    try:
        code = process.wait()
    finally:
        signal.signal(signal.SIGINT, before)
    if code:
        raise UserError(
            f"`dvc exp run` failed (exit code {code}); what it said is above. What is done is kept: "
            "`axon sweep --run-best` goes on from there.",
            exit_code=1,
        )
    console.print("Next: `axon run` registers the model; `dvc exp show` compares experiments.")
    return 0
