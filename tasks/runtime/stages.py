"""The stages as `dvc.yaml` states them, and what a stage checks for itself before it runs.

DVC decides whether a stage must run, but trusts file times for what it has seen before. So a stage hashes its own
inputs when it starts and compares them with what `dvc.lock` says their producers wrote.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tasks import yaml_text
from tasks.errors import UserError
from tasks.files import file_md5


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One entry of `dvc.yaml`: `deps` and `outs` are paths relative to the root, `params` dotted keys."""

    name: str
    cmd: str
    deps: tuple[str, ...]
    outs: tuple[str, ...]
    params: tuple[str, ...]


def _paths(entries: list[Any] | None) -> tuple[str, ...]:
    return _texts([next(iter(entry)) if isinstance(entry, dict) and entry else entry for entry in entries or []])


def _texts(entries: list[Any] | None) -> tuple[str, ...]:
    for entry in entries or []:
        if not isinstance(entry, str) or not entry:
            raise ValueError(f"{entry!r} stands where a name must be")
    return tuple(entries or [])


def read_stages(root: Path) -> dict[str, Stage]:
    """The stages of `dvc.yaml` in the order of the file, which is an order of execution."""
    try:
        tree = yaml_text.parse((root / "dvc.yaml").read_text(encoding="utf-8"))
        entries = tree["stages"]
        stages = {}
        for name, entry in entries.items():
            outs = _paths(entry.get("outs")) + _paths(entry.get("metrics")) + _paths(entry.get("plots"))
            stages[name] = Stage(
                name=_texts([name])[0],
                cmd=_texts([entry["cmd"]])[0],
                deps=_paths(entry.get("deps")),
                outs=outs,
                params=_texts(entry.get("params")),
            )
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"dvc.yaml in {root} cannot be read: {error}. Restore it with: git checkout dvc.yaml") from None
    return stages


def producers(stages: Mapping[str, Stage], name: str) -> list[str]:
    """The stages whose outputs `name` reads directly."""
    deps = stages[name].deps
    return [
        other.name
        for other in stages.values()
        if any(dep == out or dep.startswith(out + "/") for dep in deps for out in other.outs)
    ]


def ancestors(stages: Mapping[str, Stage], name: str) -> set[str]:
    """All stages that must be right before `name` can run."""
    found: set[str] = set()
    waiting = [name]
    while waiting:
        for producer in producers(stages, waiting.pop()):
            if producer not in found:
                found.add(producer)
                waiting.append(producer)
    return found


def descendants(stages: Mapping[str, Stage], names: set[str]) -> set[str]:
    """All stages that read, directly or not, what `names` write."""
    return {name for name in stages if name not in names and ancestors(stages, name) & names}


def _ignored(path: Path) -> bool:
    return "__pycache__" in path.parts or path.suffix == ".pyc"


def listing(directory: Path) -> list[dict[str, str]]:
    """The MD5 and relative path of every file in it, in DVC's order."""
    files = (p for p in directory.rglob("*") if p.is_file() and not _ignored(p.relative_to(directory)))
    entries = [{"md5": file_md5(p), "relpath": p.relative_to(directory).as_posix()} for p in files]
    return sorted(entries, key=lambda entry: entry["relpath"])


def digest(path: Path) -> str:
    """The MD5 of a file, or of a directory's listing, equal to what DVC writes into `dvc.lock`."""
    if path.is_dir():
        text = json.dumps(listing(path), sort_keys=True)
        return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest() + ".dir"
    return file_md5(path)


def value_at(tree: Any, key: str) -> Any:
    """The value of a dotted key in nested mappings; None where it is missing."""
    for part in key.split("."):
        if not isinstance(tree, Mapping) or part not in tree:
            return None
        tree = tree[part]
    return tree


def read_lock(root: Path) -> dict[str, Any]:
    """The stages of `dvc.lock`; empty if there is none yet."""
    path = root / "dvc.lock"
    if not path.is_file():
        return {}
    try:
        tree = yaml_text.parse(path.read_text(encoding="utf-8"))
        return dict((tree or {}).get("stages") or {})
    except (yaml.YAMLError, UnicodeDecodeError, AttributeError, ValueError) as error:
        raise UserError(
            f"dvc.lock in {root} is damaged: {error}. Restore it with `git checkout dvc.lock`, "
            f"or remove it to run everything again."
        ) from None


def hash_inputs(root: Path, stages: Mapping[str, Stage], name: str) -> dict[str, str]:
    """Hash every dependency of the stage; a `UserError` if one is missing or altered since it was written."""
    recorded = {
        out["path"]: out["md5"] for entry in read_lock(root).values() for out in entry.get("outs", ()) if "md5" in out
    }
    digests, wrong = {}, []
    for dep in stages[name].deps:
        path = root / dep
        if not path.exists():
            wrong.append(f"{dep} is missing")
            continue
        digests[dep] = digest(path)
        if dep in recorded and digests[dep] != recorded[dep]:
            wrong.append(f"{dep} has MD5 {digests[dep]}, but dvc.lock records {recorded[dep]}")
    if wrong:
        listed = "\n".join(f"  - {line}" for line in wrong)
        raise UserError(
            f"the inputs of stage {name} are not what was made for it:\n{listed}\n"
            f"An artifact was damaged or edited. Delete it and run `axon run`: it is restored or made again.",
            exit_code=1,
        )
    return digests


def execution_digest(stage: Stage, inputs: Mapping[str, str], parameters: Mapping[str, Any]) -> str:
    """What identifies an execution: command, inputs (data and code) and the parameters the stage depends on."""
    values = {key: value_at(parameters, key) for key in stage.params}
    text = json.dumps([stage.name, stage.cmd, dict(sorted(inputs.items())), values], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
