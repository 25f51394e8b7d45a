"""Checkpoints for resuming: tensors and a JSON state, written atomically, with digests, the last two kept.

They stand in `StepContext.checkpoints`, outside the outputs, because DVC removes outputs before it runs a stage.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from tasks.errors import Stopped, UserError
from tasks.files import flush_to_disk, read_json, write_json
from tasks.training.parallel import World, whole

log = logging.getLogger(__name__)

_N_KEPT = 2
_SHARD = "tensors-{rank:05d}-of-{size:05d}.safetensors"
_STATE = "state.json"


def _digest_of_json(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _digest_of_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Checkpoints:
    """The checkpoints of one stage, saved at most every `every_s` seconds (0: whenever it is asked).

    With several workers each writes its share of the tensors, and reads all shares: their number may have changed.
    Workers on several nodes may have a folder each, in which all shares are found again only after a start.
    """

    def __init__(
        self,
        directory: Path,
        *,
        every_s: float,
        world: World | None = None,
        asked_to_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self._directory = directory
        self._asked_to_stop = asked_to_stop
        self._is_stopping = False
        self._every_s = every_s
        self._world = world or World()
        self._saved_at = time.monotonic()

    def is_due(self) -> bool:
        """Whether it is time, or the work was asked to stop. The first worker decides for all: their clocks differ."""
        is_first, asked = self._world.is_first, self._asked_to_stop()
        own = asked or time.monotonic() - self._saved_at >= self._every_s
        due, stopping = self._world.total([float(own and is_first), float(asked and is_first)])
        self._is_stopping = bool(stopping)
        return bool(due)

    def save(self, number: int, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        """Write checkpoint `number`, larger than any before, and remove all but the last two.

        Raises `Stopped` behind it where `is_due` has found that the work was asked to stop.
        """
        self._write(f"checkpoint-{number:08d}", tensors, state, self._world)
        if self._world.is_keeper:
            for old in self._all()[:-_N_KEPT]:
                shutil.rmtree(old)
        self._saved_at = time.monotonic()
        if self._is_stopping:
            raise Stopped(f"stopped behind checkpoint {number}")

    def save_anchor(self, number: int, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        """Write the state of step `number`, to go back to should training diverge behind it.

        Those that a resumed run may need are kept: all behind the oldest checkpoint, and the one before that.
        """
        if self._world.node_rank is None:
            self._write(f"anchor-{number:08d}", tensors, state, self._world)
        else:  # every folder holds all of it: it is read again without a start in between
            entire = _entire(tensors, self._world)
            if self._world.is_keeper:
                self._write(f"anchor-{number:08d}", entire, state, World())
            self._world.total([0.0])
        if self._world.is_keeper:
            checkpoints = [_number(path) for path in self._all()]
            not_needed = [path for path in self._anchors() if checkpoints and _number(path) <= min(checkpoints)][:-1]
            for old in not_needed:
                shutil.rmtree(old)

    def load_anchor(self, step: int, device: torch.device) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The newest state of `save_anchor` not behind `step`; every worker finds the same one.

        Raises `UserError` where it is damaged.
        """
        directory = [path for path in self._anchors() if _number(path) <= step][-1]
        fault = _fault(directory)
        if fault:
            raise UserError(f"{directory} is damaged ({fault}); delete {self._directory} and run again.", exit_code=1)
        return _read(directory, device)

    def _write(self, called: str, tensors: dict[str, Tensor], state: dict[str, Any], world: World) -> None:
        """Write a folder, whole or not at all; each worker of `world` its share."""
        partial = self._directory / f".{called}.partial"
        if world.is_keeper:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
        world.total([0.0])  # no worker writes before the folder is there
        name = _SHARD.format(rank=world.rank + 1, size=world.size)
        held = [set(json.loads(names)) for names in world.gather_text(json.dumps(sorted(tensors)))]
        names, own = _share(tensors, held, world.rank), {}
        for key, tensor in sorted(tensors.items()):
            entire = whole(tensor.detach())  # one at a time, and all workers alike
            if key in names:
                own[key] = entire.cpu().contiguous()
        safetensors.torch.save_file(own, partial / name, metadata={"format": "pt"})
        digests = world.gather(bytes.fromhex(_digest_of_file(partial / name)))
        if world.is_keeper:
            shards = {_SHARD.format(rank=i + 1, size=world.size): d.hex() for i, d in enumerate(digests)}
            write_json(partial / _STATE, {"shards": shards, "digest": _digest_of_json(state), "state": state})
            for file in partial.iterdir():
                flush_to_disk(file)
            shutil.rmtree(self._directory / called, ignore_errors=True)
            os.replace(partial, self._directory / called)
        world.total([0.0])  # nobody trains on before the folder stands

    def load(self, device: torch.device) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """The newest undamaged checkpoint, or None. A damaged one is removed and logged, never used."""
        newest = self._newest_undamaged() if self._world.is_first else None
        (number,) = self._world.total([0.0 if newest is None else 1.0 + _number(newest)])
        if not number:
            return None
        return _read(self._directory / f"checkpoint-{int(number) - 1:08d}", device)

    def _newest_undamaged(self) -> Path | None:
        for directory in reversed(self._all()):
            fault = _fault(directory)
            if not fault:
                return directory
            log.warning("%s is damaged (%s); removed, going back to the one before", directory.name, fault)
            shutil.rmtree(directory)
        return None

    def _all(self) -> list[Path]:
        return sorted(self._directory.glob("checkpoint-*"))

    def _anchors(self) -> list[Path]:
        return sorted(self._directory.glob("anchor-*"))


def _number(directory: Path) -> int:
    return int(directory.name.rpartition("-")[2])


def _share(tensors: dict[str, Tensor], held: list[set[str]], rank: int) -> list[str]:
    """The names that worker `rank` writes: the largest first, each to whoever has least so far.

    held: the names that each worker has. What not all have, a part of a pipeline, is written by the first that has it.
    """
    by_all = set.intersection(*held)
    own = [name for name in tensors if name not in by_all and not any(name in names for names in held[:rank])]
    filled = [0] * len(held)
    sizes = {name: tensor.numel() * tensor.element_size() for name, tensor in tensors.items() if name in by_all}
    for name in sorted(by_all, key=lambda key: (-sizes[key], key)):
        writer = filled.index(min(filled))
        filled[writer] += sizes[name]
        if writer == rank:
            own.append(name)
    return own


def _entire(tensors: dict[str, Tensor], world: World) -> dict[str, Tensor]:
    """All tensors that any worker has, or a part of, on every worker."""
    own = {name: whole(tensor.detach()) for name, tensor in sorted(tensors.items())}
    described = json.dumps({name: [list(t.shape), str(t.dtype).removeprefix("torch.")] for name, t in own.items()})
    held = [json.loads(text) for text in world.gather_text(described)]
    for name in sorted(set().union(*held)):
        holders = [rank for rank, names in enumerate(held) if name in names]
        if len(holders) < world.size:
            shape, kind = held[holders[0]][name]
            tensor = own[name].clone() if name in own else torch.empty(shape, dtype=getattr(torch, kind))
            own[name] = world.broadcast(tensor, holders[0])
    return own


def _read(directory: Path, device: torch.device) -> tuple[dict[str, Tensor], dict[str, Any]]:
    content = read_json(directory / _STATE)
    tensors: dict[str, Tensor] = {}
    for name in content["shards"]:
        tensors |= safetensors.torch.load_file(directory / name, device=str(device))
    return tensors, content["state"]


def _fault(directory: Path) -> str:
    """What is wrong with a checkpoint; empty if nothing is."""
    try:
        content = read_json(directory / _STATE)
        if _digest_of_json(content["state"]) != content["digest"]:
            return f"{_STATE} does not have its digest"
        for name, digest in content["shards"].items():
            if _digest_of_file(directory / name) != digest:
                return f"{name} does not have its digest"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{_STATE} cannot be read: {error}"
    return ""


def prefixed(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}{name}": t for name, t in tensors.items()}


def without_prefix(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose name starts with `prefix`, by the rest of their name."""
    return {name[len(prefix) :]: t for name, t in tensors.items() if name.startswith(prefix)}
