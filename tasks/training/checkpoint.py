"""Checkpoints for resuming: tensors and a JSON state, written atomically, with digests, the last two kept.

They stand in `StepContext.checkpoints`, outside the outputs, because DVC removes outputs before it runs a stage.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import time
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from tasks.files import new_directory, read_json, write_json

log = logging.getLogger(__name__)

_N_KEPT = 2
_TENSORS = "tensors.safetensors"
_STATE = "state.json"


def _digest_of_json(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _digest_of_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Checkpoints:
    """The checkpoints of one stage, saved at most every `every_s` seconds (0: whenever it is asked)."""

    def __init__(self, directory: Path, *, every_s: float) -> None:
        self._directory = directory
        self._every_s = every_s
        self._saved_at = time.monotonic()

    def is_due(self) -> bool:
        return time.monotonic() - self._saved_at >= self._every_s

    def save(self, number: int, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        """Write checkpoint `number`, larger than any before, and remove all but the last two."""
        with new_directory(self._directory / f"checkpoint-{number:08d}") as directory:
            whole = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
            safetensors.torch.save_file(whole, directory / _TENSORS, metadata={"format": "pt"})
            digests = {"tensors": _digest_of_file(directory / _TENSORS), "state": _digest_of_json(state)}
            write_json(directory / _STATE, {"digests": digests, "state": state})
        for old in self._all()[:-_N_KEPT]:
            shutil.rmtree(old)
        self._saved_at = time.monotonic()

    def load(self, device: torch.device) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """The newest undamaged checkpoint, or None. A damaged one is removed and logged, never used."""
        for directory in reversed(self._all()):
            fault, content = _read(directory, device)
            if content is not None:
                return content
            log.warning("%s is damaged (%s); removed, going back to the one before", directory.name, fault)
            shutil.rmtree(directory)
        return None

    def _all(self) -> list[Path]:
        return sorted(self._directory.glob("checkpoint-*"))


def _read(directory: Path, device: torch.device) -> tuple[str, tuple[dict[str, Tensor], dict[str, Any]] | None]:
    """("", content), or (what is wrong, None)."""
    try:
        content = read_json(directory / _STATE)
        digests, state = content["digests"], content["state"]
        if _digest_of_json(state) != digests["state"]:
            return f"{_STATE} does not have its digest", None
        if _digest_of_file(directory / _TENSORS) != digests["tensors"]:
            return f"{_TENSORS} does not have its digest", None
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing", None
    except (ValueError, KeyError, TypeError) as error:
        return f"{_STATE} cannot be read: {error}", None
    return "", (safetensors.torch.load_file(directory / _TENSORS, device=str(device)), state)


def prefixed(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}{name}": t for name, t in tensors.items()}


def without_prefix(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose name starts with `prefix`, by the rest of their name."""
    return {name[len(prefix) :]: t for name, t in tensors.items() if name.startswith(prefix)}
