"""What Axon asks of DVC: which stages are stale and why, run one of them, and keep `dvc.lock` in order."""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks import yaml_text
from tasks.errors import UserError
from tasks.files import write_text
from tasks.runtime import stages
from tasks.runtime.stages import Stage


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a run would do, by stage in order: `stale` with the reasons, `follow` what may change behind them."""

    stale: dict[str, list[str]]
    follow: list[str]
    current: list[str]

    @property
    def nothing_to_do(self) -> bool:
        return not self.stale


def _repo(root: Path) -> Any:
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    logging.getLogger("dvc").setLevel(logging.ERROR)
    logging.getLogger("dvc_data").setLevel(logging.ERROR)
    try:
        return Repo(str(root))
    except DvcException as error:
        raise UserError(
            f"DVC cannot open this checkout: {_told(error)}. Mend .dvc/config or .dvc/config.local."
        ) from None


def _told(error: BaseException) -> str:
    """What DVC says, and what it says of the causes: the line of a file is there."""
    causes: list[str] = []
    cause: BaseException | None = error
    while cause is not None:
        causes.append(str(cause).strip().rstrip("."))
        cause = cause.__cause__
    return ": ".join(dict.fromkeys(causes))


def _reasons(changes: list[Any]) -> list[str]:
    """DVC's status of one stage as sentences."""
    reasons = []
    for change in changes:
        if isinstance(change, str):
            reasons.append(change)
            continue
        for kind, entries in change.items():
            what = "output" if "outs" in kind else "input"
            for path, state in entries.items():
                if isinstance(state, Mapping):
                    reasons.extend(f"parameter {key} {how}" for key, how in state.items())
                else:
                    reasons.append(f"{what} {path} is {state}")
    return reasons


def plan(root: Path, graph: Mapping[str, Stage], targets: list[str], parameters: Mapping[str, Any]) -> Plan:
    """Compare the workspace with `dvc.lock`; `parameters` may differ from the file (a dry run of `--set`)."""
    wanted = set(targets).union(*(stages.ancestors(graph, t) for t in targets)) if targets else set(graph)
    recorded = stages.read_lock(root)
    from dvc.exceptions import DvcException

    try:
        with contextlib.chdir(root), _repo(root) as repo:  # DVC takes paths from the working directory
            status: dict[str, Any] = repo.status()
    except DvcException as error:
        raise UserError(
            f"DVC cannot tell the state of this checkout: {_told(error)}. Mend what it names, or restore it with git."
        ) from None
    stale: dict[str, list[str]] = {}
    for name in graph:
        if name not in wanted:
            continue
        reasons = [r for r in _reasons(status.get(name, [])) if not r.startswith("parameter")]
        reasons += _changed_parameters(graph[name], recorded.get(name, {}), parameters)
        if name not in recorded:
            reasons = ["it has never run"]
        if reasons:
            stale[name] = reasons
    behind = stages.descendants(graph, set(stale))
    return Plan(
        stale=stale,
        follow=[n for n in graph if n in wanted and n in behind],
        current=[n for n in graph if n in wanted and n not in stale and n not in behind],
    )


def _changed_parameters(stage: Stage, recorded: Mapping[str, Any], parameters: Mapping[str, Any]) -> list[str]:
    """The dotted keys whose value differs from the one that the stage ran with."""
    before: Mapping[str, Any] = recorded.get("params", {}).get("params.yaml", {})
    changed: list[str] = []
    for key in stage.params:
        changed += _differences(key, before.get(key), stages.value_at(parameters, key))
    return changed


def _differences(key: str, before: Any, after: Any) -> list[str]:
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        keys = dict.fromkeys([*before, *after])
        return [d for k in keys for d in _differences(f"{key}.{k}", before.get(k), after.get(k))]
    return [] if before == after else [f"parameter {key} changed from {before!r} to {after!r}"]


class StageFailed(Exception):
    """A stage's command ended badly; `code` is its exit code (negative: the signal that ended it)."""

    def __init__(self, stage: str, code: int, message: str) -> None:
        super().__init__(message)
        self.stage = stage
        self.code = code


def reproduce(root: Path, name: str, *, run_cache: bool = True) -> bool:
    """Have DVC reproduce one stage if it is stale; whether it ran or was restored from the run cache.

    Without `run_cache` an earlier result of the same inputs is not taken for this one.
    """
    from dvc.exceptions import DvcException

    try:
        with contextlib.chdir(root), _repo(root) as repo:
            done = repo.reproduce(targets=[name], single_item=True, run_cache=run_cache)
    except DvcException as error:
        text = _told(error)
        found = re.search(r"exited with (-?\d+)", text)
        raise StageFailed(name, int(found.group(1)) if found else 1, text) from None
    return bool(done)


def write_lock_in_order(root: Path, graph: Mapping[str, Stage]) -> None:
    """Write the stages of `dvc.lock` in the order of `dvc.yaml`: DVC appends whichever ran first."""
    path = root / "dvc.lock"
    if not path.is_file():
        return
    tree = yaml_text.parse(path.read_text(encoding="utf-8"))
    entries = tree.get("stages") or {}
    ordered = {name: entries[name] for name in graph if name in entries}
    ordered.update((name, entry) for name, entry in entries.items() if name not in ordered)
    if list(ordered) != list(entries):
        from dvc.utils.serialize import dumps_yaml

        write_text(path, dumps_yaml({**tree, "stages": ordered}))
