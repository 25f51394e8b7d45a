"""Everything that the report shows, read from the files that the stages left behind."""

from __future__ import annotations

import csv
import hashlib
import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.errors import UserError
from tasks.files import read_json

TRAINING_STAGES = ("pretrain", "sft", "reward_model", "dpo", "ppo", "sft_continued")
METRICS = ("tokenizer", "pretrain", "sft", "preferences", "reward_model", "dpo", "ppo", "sft_continued", "evaluate")
MODEL_DIRECTORIES = ("pretrain", "sft", "reward_model", "dpo", "ppo", "sft_continued")
DIGESTED = ("data", "tokenizer", "tokens", "preferences", "models", "evaluation")

Curve = dict[str, list[tuple[float, float]]]
"""Column -> (step, value) of every row that has a value."""


@dataclass(frozen=True, kw_only=True)
class Digest:
    path: str
    n_bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Inputs:
    parameters: dict[str, Any]
    metrics: dict[str, Any]
    curves: dict[str, Curve]
    samples: list[dict[str, Any]]
    manifest: dict[str, Any]
    n_parameters: dict[str, int]
    digests: list[Digest]


def _json(root: Path, path: str) -> Any:
    try:
        return read_json(root / path)
    except FileNotFoundError:
        raise UserError(f"report: {path} is missing; run `axon run report` to make it", exit_code=1) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"report: {path} is damaged ({error}); delete it and run `axon run`", exit_code=1) from None


def read_curve(path: Path) -> Curve:
    """The columns of a learning curve; empty and non-finite cells are left out."""
    curve: Curve = {}
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            for column, cell in row.items():
                if column != "step" and cell and math.isfinite(float(cell)):
                    curve.setdefault(column, []).append((float(row["step"]), float(cell)))
    return curve


def count_parameters(path: Path) -> int:
    """The number of weights in a safetensors file, from its header alone."""
    with path.open("rb") as file:
        (header_size,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(header_size))
    return sum(math.prod(tensor["shape"]) for name, tensor in header.items() if name != "__metadata__")


def digests(root: Path) -> list[Digest]:
    """SHA-256 of every file below the directories of artifacts, in the order of their paths."""
    found = []
    for directory in DIGESTED:
        for path in sorted((root / directory).rglob("*"), key=lambda p: p.relative_to(root).as_posix()):
            relative = path.relative_to(root)
            # DVC leaves a .gitignore beside outputs: it is the checkout's, not an artifact.
            if not path.is_file() or any(part.startswith(".") for part in relative.parts):
                continue
            with path.open("rb") as file:
                sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            found.append(Digest(path=relative.as_posix(), n_bytes=path.stat().st_size, sha256=sha256))
    return found


def read(root: Path, parameters: dict[str, Any]) -> Inputs:
    """Read all inputs of the report below `root`; `UserError` names the first that is missing or damaged."""
    curves = {}
    for stage in TRAINING_STAGES:
        path = f"metrics/curves/{stage}.csv"
        try:
            curves[stage] = read_curve(root / path)
        except FileNotFoundError:
            raise UserError(f"report: {path} is missing; run `axon run report` to make it", exit_code=1) from None
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"report: {path} is damaged ({error}); delete it and run `axon run`", exit_code=1) from None
    return Inputs(
        parameters=parameters,
        metrics={stage: _json(root, f"metrics/{stage}.json") for stage in METRICS},
        curves=curves,
        samples=_json(root, "evaluation/samples.json"),
        manifest=_json(root, "data/manifest.json"),
        n_parameters={
            name: count_parameters(root / "models" / name / "model.safetensors")
            for name in MODEL_DIRECTORIES
            if (root / "models" / name / "model.safetensors").is_file()
        },
        digests=digests(root),
    )
