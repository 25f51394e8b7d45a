"""What tests of steps share: parameters with a few values changed, and a `StepContext` without any engine."""

from __future__ import annotations

import copy
import hashlib
import importlib
import json
import multiprocessing
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from tasks.parameters import Parameters, check, read_tree
from tasks.runtime import stages
from tasks.steps.context import FanOut, StepContext

REPOSITORY = Path(__file__).resolve().parents[1]
_CODE = ("axon_models", "tasks", "flows", "dvc.yaml", "params.yaml", "constraints.txt")


def code_digest() -> str:
    """Of all code that runs in a pipeline, so that what two versions did is not put into one table."""
    paths = [REPOSITORY / name for name in _CODE]
    files = sorted(f for p in paths for f in (p.rglob("*") if p.is_dir() else [p]) if f.is_file())
    listing = [f"{f.relative_to(REPOSITORY)} {stages.digest(f)}" for f in files if "__pycache__" not in f.parts]
    return hashlib.sha256("\n".join(listing).encode()).hexdigest()[:16]


def make_tree(overrides: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The values of the repository's `params.yaml` with dotted keys replaced: `{"pretrain.n_steps": 3}`."""
    tree: dict[str, Any] = copy.deepcopy(read_tree(REPOSITORY / "params.yaml"))
    for key, value in (overrides or {}).items():
        *path, last = key.split(".")
        section = tree
        for part in path:
            section = section[part]
        if last not in section:
            raise KeyError(f"{key} is not in params.yaml")
        section[last] = value
    return tree


def make_params(overrides: Mapping[str, Any] | None = None) -> Parameters:
    return check(make_tree(overrides))


def _call(function: str, item: str) -> str:
    """Apply "module:name" to a JSON item and return the JSON of its result, as another process would."""
    module, name = function.split(":")
    return json.dumps(getattr(importlib.import_module(module), name)(json.loads(item)))


def serial_fan_out(name: str, function: str, items: Sequence[Mapping[str, Any]]) -> list[Any]:
    return [json.loads(_call(function, json.dumps(item))) for item in items]


def process_fan_out(n_processes: int) -> FanOut:
    """A fan-out over fresh processes of one thread each, for timing."""

    def fan_out(name: str, function: str, items: Sequence[Mapping[str, Any]]) -> list[Any]:
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(n_processes, mp_context=spawn, initializer=_one_thread) as pool:
            texts = pool.map(_call, [function] * len(items), [json.dumps(item) for item in items])
            return [json.loads(text) for text in texts]

    return fan_out


def _one_thread() -> None:
    os.environ.update(OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false")


def _silent(step: int, n_steps: int, values: Mapping[str, float]) -> None:
    pass


def make_context(
    root: Path,
    params: Parameters | Mapping[str, Any] | None = None,
    *,
    report: Callable[[int, int, Mapping[str, float]], None] = _silent,
    fan_out: FanOut = serial_fan_out,
    checkpoints: Path | None = None,
    checkpoint_every_s: float = 3600.0,
) -> StepContext:
    """A context below `root`; `params` are checked parameters, or dotted overrides of `params.yaml`.

    `root/constraints.txt` is copied from the repository when it is missing, since steps read it.
    """
    checked = params if isinstance(params, Parameters) else make_params(params)
    root.mkdir(parents=True, exist_ok=True)
    constraints = root / "constraints.txt"
    if not constraints.exists():
        constraints.write_bytes((REPOSITORY / "constraints.txt").read_bytes())
    folder = checkpoints or root / ".axon" / "checkpoints" / "test"
    folder.mkdir(parents=True, exist_ok=True)
    return StepContext(
        params=checked,
        root=root,
        checkpoints=folder,
        checkpoint_every_s=checkpoint_every_s,
        report=report,
        fan_out=fan_out,
    )
