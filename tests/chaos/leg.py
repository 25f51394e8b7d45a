"""One leg of a campaign: `axon run` of some stages of a finished workspace, with kills in them, and the checks."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil
from mlflow.tracking import MlflowClient

from tasks.runtime import stages
from tasks.tracking import journal
from tests.chaos import checks
from tests.chaos.disturbed import Disturbed, candidates, described
from tests.chaos.mlflow_server import MlflowServer
from tests.chaos.plan import Kill
from tests.flows.workspace import Workspace

_RUN_LIMIT_S = 240
_MAX_RUNS = 4
_EVERY_S = 0.02


@dataclass
class Setting:
    """A finished workspace to disturb, what is undisturbed (the lock, seconds by stage), and an MLflow server."""

    workspace: Workspace
    lock: bytes
    seconds: dict[str, float]
    server: MlflowServer


@dataclass
class Outcome:
    """What came of a kill. Times in seconds; `problems` are those of its leg, empty where all is as it must be."""

    kill: Kill
    leg: int = 0
    command: str = ""  # of the process that was killed; empty where none was met
    at_s: float = 0.0  # since the stage began
    struck_at: float = 0.0  # by the clock
    execution: str | None = None  # of the stage that was under way
    code: int = 0  # of the run if that ended before the stage was done; 0 where it went on
    recovered_s: float | None = None  # from the kill to the end of the stage
    problems: list[str] = field(default_factory=list)

    @classmethod
    def of_json(cls, tree: dict[str, Any]) -> Outcome:
        return cls(**{**tree, "kill": Kill(**tree["kill"])})

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def without(lock: str, dropped: Sequence[str]) -> str:
    """The text of a `dvc.lock` without the entries of some stages."""
    kept, is_kept = [], True
    for line in lock.splitlines(keepends=True):
        begun = re.match(r"  (\w+):$", line.rstrip("\n"))
        if begun:
            is_kept = begun.group(1) not in dropped
        if is_kept:
            kept.append(line)
    return "".join(kept)


def forget(setting: Setting, dropped: Sequence[str]) -> None:
    """As if these stages had never run: no result, no entry, no checkpoint, nothing in DVC's run cache."""
    root = setting.workspace.root
    graph = stages.read_stages(root)
    (root / "dvc.lock").write_text(without(setting.lock.decode(), dropped))
    found = [root / out for name in dropped for out in graph[name].outs]
    found += [path for name in dropped for path in (root / ".axon" / "checkpoints").glob(f"{name}-*")]
    for path in (*found, root / ".dvc" / "cache" / "runs"):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


class Leg:
    """Runs of one leg, one after another until one ends well, and the kills that are still to come."""

    def __init__(self, setting: Setting, kills: Sequence[Kill], number: int) -> None:
        self._setting = setting
        self._workspace = setting.workspace
        self._targets = list(dict.fromkeys(kill.stage for kill in kills))
        self.missed = list(kills)  # what was not struck, in the end because there was no process in time
        self.outcomes: list[Outcome] = []
        self.problems: list[str] = []
        self.number = number
        self._began: dict[str, float] = {}
        self._server_back_at: float | None = None
        self._uses_server = any(kill.kind == "mlflow" for kill in kills)
        self._variables = {"MLFLOW_TRACKING_URI": setting.server.url} if self._uses_server else {}

    def carry_out(self) -> list[Outcome]:
        """Run, kill, run again where a run has ended, and check."""
        if self._uses_server:
            self._setting.server.start()
        forget(self._setting, self._targets)
        before = self._journals()
        for _ in range(_MAX_RUNS):
            run = Disturbed(self._workspace, self._targets, self._variables)
            try:
                self._follow(run)
            finally:
                run.end()
            self.problems += checks.orphans(self._workspace, run.seen.values())
            if self._uses_server:
                self._setting.server.start()
            if run.code == 0 and "told by the next run" not in run.text:
                break
        else:
            self.problems.append(f"{_MAX_RUNS} runs, and none ended well: {run.text[-300:]}")
        self._check(before)
        for outcome in self.outcomes:
            outcome.problems = self.problems
        return self.outcomes

    def _follow(self, run: Disturbed) -> None:
        """Until the run ends: strike what is due, and note which stages are done."""
        deadline = time.monotonic() + _RUN_LIMIT_S * len(self._targets)
        while run.code is None:
            now, text = time.monotonic(), run.text
            if now > deadline:
                self.problems.append("the run had not ended in time")
                return
            for kill in list(self.missed):
                if run.has_begun(kill.stage, text) and not run.is_done(kill.stage, text):
                    self._strike(kill, run, now - self._began.setdefault(kill.stage, now))
            self._note_done(run, text)
            if self._server_back_at is not None and now > self._server_back_at:
                self._setting.server.launch()
                self._server_back_at = None
            run.look_now_and_then()
            time.sleep(_EVERY_S)
        self._note_done(run, run.text)
        for outcome in self.outcomes:
            if outcome.recovered_s is None and not outcome.code:
                outcome.code = run.code

    def _strike(self, kill: Kill, run: Disturbed, since_s: float) -> None:
        """Kill the process if its moment has come and there is one: a moment may come before the process does."""
        if since_s < kill.moment * self._setting.seconds[kill.stage]:
            return
        outcome = Outcome(kill, self.number, at_s=since_s)
        if kill.kind == "mlflow":
            outcome.command = "mlflow server, and what it started"
            self._setting.server.kill()
            self._server_back_at = time.monotonic() + kill.away_s
        else:
            there = candidates(kill.kind, kill.stage, run)
            if not there:
                return
            victim = there[int(kill.pick * len(there))]
            outcome.command = described(victim)
            outcome.execution = self._under_way(kill.stage)  # before it may be written that it has ended
            try:
                victim.kill()
            except psutil.NoSuchProcess:
                return
        outcome.struck_at = time.monotonic()
        self.outcomes.append(outcome)
        self.missed.remove(kill)

    def _note_done(self, run: Disturbed, text: str) -> None:
        for outcome in self.outcomes:
            if outcome.recovered_s is None and run.is_done(outcome.kill.stage, text):
                outcome.recovered_s = time.monotonic() - outcome.struck_at

    def _check(self, before: set[Path]) -> None:
        made = sorted(self._journals() - before)
        by_name = {name: _executions(made, name) for name in (*self._targets, "pipeline")}
        store = self._variables.get("MLFLOW_TRACKING_URI", f"sqlite:///{self._workspace.root}/.axon/mlflow.db")
        kills = [(o.kill.kind, o.kill.stage, o.execution) for o in self.outcomes]
        self.problems += checks.differences(self._workspace.lock, self._setting.lock)
        self.problems += checks.locks_left(self._workspace.root)
        self.problems += checks.ended_wrongly(kills, by_name)
        self.problems += checks.tracked_wrongly(MlflowClient(tracking_uri=store), made)

    def _journals(self) -> set[Path]:
        return set((self._workspace.root / ".axon" / "journal").glob("*.jsonl"))

    def _under_way(self, stage: str) -> str | None:
        """The execution of the stage that has begun and not ended."""
        newest = sorted(p for p in self._journals() if f"-{stage}-" in p.name)[-1:]
        events = journal.read(newest[0])[0] if newest else []
        return str(events[0]["id"]) if events and events[-1]["event"] != "end" else None


def _executions(paths: Sequence[Path], name: str) -> list[checks.Execution]:
    found = [journal.read(path)[0] for path in paths if f"-{name}-" in path.name]
    return [events for events in found if events]
