"""Campaigns of kills through all stages, with a state on disk from which the next call of the command goes on."""

from __future__ import annotations

import json
import os
import platform
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from mlflow.tracking import MlflowClient

from tasks.runtime import stages
from tests.chaos import checks, plan
from tests.chaos.leg import Leg, Outcome, Setting
from tests.chaos.mlflow_server import MlflowServer
from tests.chaos.plan import Kill
from tests.flows.workspace import Workspace
from tests.helpers import code_digest

_TRIES = 5
_EARLIER = 0.6


class State:
    """What campaigns have found so far: a JSON file."""

    def __init__(self, path: Path, seed: int) -> None:
        self._path = path
        self.tree: dict[str, Any] = {"seed": seed, "code": code_digest(), "seconds": {}, "kills": [], "closings": {}}
        self.tree["legs"] = 0
        if path.is_file():
            self.tree = json.loads(path.read_text())
        else:
            cores = f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}"
            self.tree |= {"machine": cores, "date": time.strftime("%Y-%m-%d"), "undisturbed_s": None}

    @property
    def outcomes(self) -> list[Outcome]:
        return [Outcome.of_json(tree) for tree in self.tree["kills"]]

    def add(self, outcomes: Iterable[Outcome]) -> None:
        self.tree["kills"] += [outcome.as_json() for outcome in outcomes]
        self.tree["legs"] += 1
        self.save()

    def save(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        beside = self._path.with_suffix(".part")
        beside.write_text(json.dumps(self.tree, indent=1))
        beside.replace(self._path)


def seconds_by_stage(workspace: Workspace) -> dict[str, float]:
    """How long each stage took in the first pipeline run that ran it, DVC's part included."""
    found: dict[str, float] = {}
    for events in workspace.executions("pipeline"):
        for event in events:
            for key, value in event.get("values", {}).items():
                found.setdefault(key.removeprefix("seconds/"), value)
    return found


def undisturbed(work: Path, state: State) -> Workspace:
    """The workspace of one whole run from nothing, made the first time; all others are held against its lock."""
    workspace = Workspace(work / "undisturbed")
    if not state.tree["seconds"]:
        shutil.rmtree(workspace.root, ignore_errors=True)
        print("one undisturbed run of the tiny pipeline, from nothing …", flush=True)
        began = time.monotonic()
        result = Workspace.create(workspace.root).axon("run")
        if result.returncode:
            raise SystemExit(f"the undisturbed run ended with {result.returncode}:\n{result.stdout}{result.stderr}")
        state.tree["undisturbed_s"] = time.monotonic() - began
        state.tree["seconds"] = seconds_by_stage(workspace)
        state.save()
    return workspace


@contextmanager
def setting_behind(whole: Workspace, folder: Path, seconds: dict[str, float]) -> Iterator[Setting]:
    """A workspace below `folder` with the results of `whole`, and an MLflow server that is ended with it."""
    workspace = Workspace.create(folder / "checkout")
    workspace.take_results(whole, but=())
    server = MlflowServer(folder / "mlflow")
    try:
        yield Setting(workspace, whole.lock, seconds, server)
    finally:
        server.kill()


def in_words(outcome: Outcome) -> str:
    """One line about a kill."""
    kill = outcome.kill
    how = "the run went on" if outcome.code == 0 else f"the run ended ({outcome.code}), the next one went on"
    after = f", stage done {outcome.recovered_s:.0f} s later" if outcome.recovered_s is not None else ""
    return (
        f"seed {kill.seed}  campaign {kill.campaign}  leg {outcome.leg:>2}  {kill.stage:<13} {kill.kind:<8}"
        f"at {outcome.at_s:4.1f} s  {outcome.command}: {how}{after}"
    )


def whole_run(setting: Setting) -> list[str]:
    """What is wrong with `axon run` at the end of a campaign: it registers, and every run of MLflow is closed."""
    result = setting.workspace.axon("run")
    wrong = [] if result.returncode == 0 else [f"`axon run` ended with {result.returncode}: {result.stderr[-300:]}"]
    wrong += checks.differences(setting.workspace.lock, setting.lock)
    wrong += checks.orphans(setting.workspace, ())
    wrong += checks.locks_left(setting.workspace.root)
    client = MlflowClient(tracking_uri=f"sqlite:///{setting.workspace.root}/.axon/mlflow.db")
    return wrong + [
        f"MLflow has a run of {run.info.run_name} that is {run.info.status}"
        for experiment in client.search_experiments()
        for run in client.search_runs([experiment.experiment_id])
        if run.info.status not in ("FINISHED", "FAILED", "KILLED")
    ]


def run(
    work: Path, state: State, *, n_campaigns: int, for_at_most_s: float, only: Iterable[tuple[str, str]] = ()
) -> bool:
    """Carry out what is missing of the campaigns until the time is up; whether all are done.

    only: (stage, kind) pairs; empty: all.
    """
    deadline = time.monotonic() + for_at_most_s
    whole = undisturbed(work, state)
    wanted = set(only)
    for number in range(1, n_campaigns + 1):
        done = {(o.kill.campaign, o.kill.stage, o.kill.kind) for o in state.outcomes}
        kills = plan.campaign(state.tree["seed"], number, list(stages.read_stages(whole.root)))
        kills = [k for k in kills if (number, k.stage, k.kind) not in done]
        kills = [k for k in kills if not wanted or (k.stage, k.kind) in wanted]
        if (wanted and not kills) or str(number) in state.tree["closings"]:
            continue
        folder = work / f"campaign-{number}"
        shutil.rmtree(folder, ignore_errors=True)
        with setting_behind(whole, folder, state.tree["seconds"]) as setting:
            if not _carry_out(setting, kills, state, deadline):
                return False
            if not wanted:
                state.tree["closings"][str(number)] = whole_run(setting)
                state.save()
        if not any(o.problems for o in state.outcomes if o.kill.campaign == number):
            shutil.rmtree(folder, ignore_errors=True)
    return True


def _carry_out(setting: Setting, kills: list[Kill], state: State, deadline: float) -> bool:
    """All legs of a campaign, and again, earlier, what was missed because the process had gone; False: time is up."""
    for _ in range(_TRIES):
        missed: list[Kill] = []
        for of_leg in plan.legs(kills) if kills else []:
            if time.monotonic() > deadline:
                return False
            leg = Leg(setting, of_leg, state.tree["legs"] + 1)
            began = time.monotonic()
            outcomes = leg.carry_out()
            state.add(outcomes)
            missed += leg.missed
            print(*(in_words(outcome) for outcome in outcomes), sep="\n", flush=True)
            print(*(f"  PROBLEM: {problem}" for problem in leg.problems), sep="\n", end="", flush=True)
            names = ", ".join(dict.fromkeys(kill.stage for kill in of_leg))
            missing = "".join(f"; missed: {k.kind} in {k.stage}" for k in leg.missed)
            print(f"  leg {leg.number} ({names}): {time.monotonic() - began:.0f} s{missing}", flush=True)
        kills = [replace(kill, moment=kill.moment * _EARLIER) for kill in missed]
    if kills:
        raise RuntimeError(f"never met: {', '.join(f'{kill.kind} in {kill.stage}' for kill in kills)}")
    return True
