"""What `axon sweep` shows: a line whenever a trial starts, reports or ends, and in the end their ranking."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from flows.progress import duration
from tasks.sweeping import experiment
from tasks.sweeping.plan import Goal, Plan
from tasks.sweeping.space import shown

if TYPE_CHECKING:
    from tasks.sweeping.tuning import Trial

_COLORS = {"finished": "green", "stopped": "yellow", "cut short": "yellow", "failed": "red"}


def print_plan(console: Console, plan: Plan, asked: int) -> None:
    """What is about to run."""
    n = len(plan.trials)
    fewer = f" (the ranges hold no more; {asked} were asked for)" if n < asked else ""
    better = "lower" if plan.goal.mode == "min" else "higher"
    console.print(f"{n} trials{fewer} of {' → '.join(plan.steps)} by {plan.goal.metric}, {better} is better")
    console.print("[dim]starting Ray and MLflow …[/dim]")


class Lines:
    """Prints what changes; knows the best value so far."""

    def __init__(self, console: Console, goal: Goal, n_trials: int) -> None:
        self._console, self._goal, self._n_trials = console, goal, n_trials
        self._best: float | None = None
        self._last: dict[int, int] = {}

    def __call__(self, trial: Trial) -> None:
        name = f"trial {trial.number:>2}/{self._n_trials}"
        if trial.state == "running" and trial.number not in self._last:
            self._last[trial.number] = -1
            self._console.print(f"[bold]{name}[/bold]  {escape(shown(trial.values))}", soft_wrap=True)
        elif trial.state == "running":
            self._console.print(f"  {name}  step {trial.step:>5}/{trial.n_steps}  {self._value(trial)}")
        else:
            self._end(trial, name)

    def _value(self, trial: Trial) -> str:
        return f"{self._goal.metric} {trial.value:.4f}" if trial.value is not None else ""

    def _end(self, trial: Trial, name: str) -> None:
        color = _COLORS[trial.state]
        text = f"  {name}  [{color}]{trial.state}[/{color}] in {duration(trial.seconds)}  {self._value(trial)}"
        if trial.state == "finished" and trial.value is not None:
            if self._best is None or self._goal.is_better(trial.value, self._best):
                self._best = trial.value
                text += "  [green]best so far[/green]"
        elif trial.message:
            text += f"  {escape(trial.message)}"
        self._console.print(text, soft_wrap=True)


def print_ranking(console: Console, ranked: Sequence[Trial], goal: Goal, chosen: Trial | None) -> None:
    """All trials, the best first."""
    table = Table(title="Trials", title_justify="left", title_style="bold", pad_edge=False, box=SIMPLE)
    table.add_column("trial", justify="right")
    keys = list(ranked[0].values) if ranked else []
    for heading in _headings(keys):
        table.add_column(heading, overflow="fold")
    for heading in (goal.metric.removeprefix("validation_"), "steps", "time"):
        table.add_column(heading, justify="right", overflow="fold")
    table.add_column("state")
    for trial in ranked:
        mark = "[green]✓[/green] " if trial is chosen else ""
        color = _COLORS.get(trial.state, "dim")
        table.add_row(
            f"{mark}{trial.number}",
            *(escape(json.dumps(trial.values[key])) for key in keys),
            f"{trial.value:.5f}" if trial.value is not None else "–",
            f"{trial.step}/{trial.n_steps}" if trial.n_steps else "–",
            duration(trial.seconds),
            f"[{color}]{trial.state}[/{color}]",
        )
    console.print()
    console.print(table)


def _headings(keys: Sequence[str]) -> list[str]:
    """The last part of each dotted key, or all of it where two keys end alike."""
    short = [key.rpartition(".")[2] for key in keys]
    return [own if short.count(own) == 1 else key for own, key in zip(short, keys, strict=True)]


def print_command(console: Console, values: Mapping[str, Any]) -> None:
    """The best trial's parameters, and how to run them for real."""
    console.print(f"best: {escape(shown(values))}", soft_wrap=True)
    console.print("Run it for real, with all that follows from it (in the activated environment), by")
    console.print(f"  {escape(experiment.command(values))}", soft_wrap=True)
    console.print("or by")
    console.print("  axon sweep --run-best")
