"""What the trials of a sweep run, on which inputs, and by which value they are judged."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tasks.errors import UserError
from tasks.parameters import Parameters
from tasks.runtime import reproduction, stages
from tasks.runtime.checkout import Checkout
from tasks.runtime.stages import Stage
from tasks.sweeping.space import Swept, Values

# What a stage reports while it trains, and which way is better; the first is the default.
METRICS: dict[str, dict[str, str]] = {
    "pretrain": {"validation_bits_per_byte": "min"},
    "sft": {"validation_loss": "min", "validation_token_accuracy": "max"},
    "reward_model": {"validation_pairwise_accuracy": "max", "validation_loss": "min"},
    "ppo": {"reward": "max"},
    "dpo": {"validation_reward_accuracy": "max", "validation_reward_margin": "max", "validation_loss": "min"},
    "sft_continued": {"validation_loss": "min", "validation_token_accuracy": "max"},
}
_CODE = ("tasks/", "axon_models/")  # imported from the checkout, not read as data


@dataclass(frozen=True, kw_only=True)
class Goal:
    """The reported value by which trials of `stage` are compared; `mode` is min or max."""

    stage: str
    metric: str
    mode: str

    def is_better(self, value: float, other: float) -> bool:
        return value < other if self.mode == "min" else value > other


def goal(stage: str, graph: Mapping[str, Stage], metric: str | None, mode: str | None) -> Goal:
    """Check and complete what was asked for. Raises `UserError`."""
    if stage not in METRICS:
        close = difflib.get_close_matches(stage, list(METRICS), n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        what = "trains nothing" if stage in graph else "is not a stage"
        raise UserError(f"{stage} {what}; {hint}stages that can be swept: {', '.join(METRICS)}")
    known = METRICS[stage]
    wanted = metric or next(iter(known))
    if wanted not in known:
        close = difflib.get_close_matches(wanted, list(known), n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        raise UserError(f"--metric {wanted}: {stage} does not report it; {hint}it reports: {', '.join(known)}")
    if mode not in (None, "min", "max"):
        raise UserError(f"--mode {mode}: allowed are min and max.")
    return Goal(stage=stage, metric=wanted, mode=mode or known[wanted])


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What every trial does: plain values, which Ray carries to the processes of the trials.

    `steps`: the stages that a trial runs, in order, the last of which is the goal's; `inputs`: the paths that they
    read from the checkout; `keys`: the parameters that they depend on; `trials` and `params`: what is changed in each,
    and all of its parameters.
    """

    root: str
    folder: str
    goal: Goal
    steps: tuple[str, ...]
    inputs: tuple[str, ...]
    keys: tuple[str, ...]
    trials: tuple[Values, ...]
    params: tuple[Parameters, ...]

    def folder_of(self, number: int) -> Path:
        """Of trial `number`, from 1."""
        return Path(self.folder) / f"{number:03d}"


def steps(graph: Mapping[str, Stage], stage: str, space: Sequence[Swept]) -> list[str]:
    """The stages that a trial must run: from the first that a swept parameter touches to `stage`.

    Raises `UserError` for a parameter that changes none of them.
    """
    before = stages.ancestors(graph, stage)
    candidates = [name for name in graph if name in before or name == stage]
    touched: set[str] = set()
    idle = []
    for swept in space:
        by_key = {name for name in candidates if any(_covers(key, swept.key) for key in graph[name].params)}
        touched |= by_key
        if not by_key:
            idle.append(f"{swept.key} changes neither {stage} nor a stage before it")
    if idle:
        listed = "\n".join(f"  - {one}" for one in idle)
        raise UserError(f"--over: {len(idle)} mistake(s); nothing was started:\n{listed}")
    behind = stages.descendants(graph, touched)
    return [name for name in candidates if name in touched or name in behind or name == stage]


def _covers(key: str, swept: str) -> bool:
    return swept == key or swept.startswith(f"{key}.")


def inputs(graph: Mapping[str, Stage], names: Sequence[str]) -> list[str]:
    """The paths that the stages `names` read and that none of them writes, code apart; none lies in another."""
    found = {dep for name in names for dep in _outer(graph, names, name) if not dep.startswith(_CODE)}
    return sorted(dep for dep in found if not any(dep.startswith(f"{other}/") for other in found))


def _outer(graph: Mapping[str, Stage], names: Sequence[str], name: str) -> tuple[str, ...]:
    written = [out for other in names for out in graph[other].outs]
    return tuple(dep for dep in graph[name].deps if not any(dep == out or dep.startswith(f"{out}/") for out in written))


def check_inputs(checkout: Checkout, graph: Mapping[str, Stage], names: Sequence[str], values: Any) -> dict[str, str]:
    """Hash what trials of the stages `names` read; MD5 by path.

    Raises `UserError` (exit code 1) where it is missing, altered, or no more what the parameters would give: a trial
    must see what `dvc exp run` would.
    """
    outer = {name: replace(graph[name], deps=_outer(graph, names, name)) for name in names}
    producers = [p for p in graph if p not in names and any(p in stages.producers(graph, name) for name in names)]
    if producers:
        plan = reproduction.plan(checkout.root, graph, producers, values)
        if plan.stale:
            listed = "\n".join(f"  - {name}: {'; '.join(reasons[:3])}" for name, reasons in plan.stale.items())
            raise UserError(
                f"what trials of {names[-1]} start from is not current:\n{listed}\n"
                f"Run it first: axon run {' '.join(producers)}",
                exit_code=1,
            )
    found: dict[str, str] = {}
    for name in names:
        found |= stages.hash_inputs(checkout.root, {**graph, **outer}, name)
    return found
