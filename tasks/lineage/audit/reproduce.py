"""Run stages again from recorded inputs, in a workspace of their own, and say how deterministic they are."""

from __future__ import annotations

import shlex
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.errors import UserError
from tasks.lineage import hashing, surroundings
from tasks.lineage.audit import comparing, determinism, scratch
from tasks.lineage.audit.comparing import Compared
from tasks.lineage.audit.findings import listed
from tasks.lineage.statement import Statement, utc
from tasks.lineage.store import StatementStore
from tasks.runtime import stages
from tasks.runtime.checkout import Checkout

Run = Callable[[list[str], Path, dict[str, str], Path], int]
FAILED = "failed"


@dataclass(frozen=True, kw_only=True)
class Result:
    """What came of one stage. `kind`: a class of `comparing`, or "failed" and `why`; `files`: those that differ."""

    stage: str
    statement: str
    kind: str
    largest: float | None = None
    files: tuple[Compared, ...] = ()
    n_files: int = 0
    seconds: float = 0.0
    environment: tuple[str, ...] = ()
    why: str = ""

    def as_json(self) -> dict[str, Any]:
        return {
            "class": self.kind,
            "largest_difference": self.largest,
            "n_files": self.n_files,
            "differing": {file.path: {"difference": file.difference, "why": file.why} for file in self.files},
            "environment_differences": list(self.environment),
            "seconds": round(self.seconds, 1),
            "statement": self.statement,
            **({"why": self.why} if self.why else {}),
        }


def choose(checkout: Checkout, names: list[str]) -> dict[str, Statement]:
    """The executions to be reproduced by stage, in the order of `dvc.yaml`: of all stages, or of those named.

    They are those whose outputs `dvc.lock` records. Raises `UserError` for a stage that has none.
    """
    from tasks.lineage import recording

    graph = stages.read_stages(checkout.root)
    unknown = [name for name in names if name not in graph]
    if unknown:
        raise UserError(f"{listed(unknown)}: no such stage. Stages: {', '.join(graph)}.")
    current = recording.current(checkout, StatementStore.of(checkout))
    missing = [name for name in names if name not in current]
    if missing or not current:
        which = listed(missing) if missing else "every stage"
        raise UserError(
            f"no statement speaks for what dvc.lock records of {which}: `axon run` writes one.", exit_code=1
        )
    return {name: current[name] for name in graph if name in (names or current)}


def reproduce(checkout: Checkout, statement: Statement, *, tolerance: float, run: Run = scratch.run) -> Result:
    """Run one execution again and compare its outputs file by file; the class is kept in `.axon/determinism.json`.

    DVC takes no part in it, so that nothing is restored from its run cache. `tolerance`: the largest difference of two
    numbers that still counts as none.
    """
    stage = str(statement.stage)
    base = checkout.state / "reproduce" / stage
    shutil.rmtree(base, ignore_errors=True)
    folder, kept = base / "workspace", base / "recorded"
    folder.mkdir(parents=True)
    began = time.monotonic()
    try:
        scratch.prepare(checkout, statement, folder)
        log = checkout.state / "logs" / f"reproduce-{stage}.txt"
        log.parent.mkdir(parents=True, exist_ok=True)
        command = shlex.split(statement.external["command"])
        command[0] = sys.executable if command[0] in ("python", "python3") else command[0]
        code = run(command, folder, scratch.environment(checkout, folder), log)
        if code:
            return _failed(statement, f"it ended with exit code {code}; what it said is in {log}", began)
        files = _compare(checkout, statement, folder, kept)
        kind, largest = comparing.determinism(files, tolerance)
        result = Result(
            stage=stage,
            statement=statement.digest,
            kind=kind,
            largest=largest,
            files=tuple(files),
            n_files=len(statement.subjects),
            seconds=time.monotonic() - began,
            environment=tuple(_environment(checkout.root, statement)),
        )
        note = {**result.as_json(), "tolerance": tolerance, "when": utc(time.time())}
        determinism.write(checkout, stage, note)
        return result
    except scratch.NotThere as error:
        return _failed(statement, str(error), began)
    finally:
        shutil.rmtree(base, ignore_errors=True)


def _failed(statement: Statement, why: str, began: float) -> Result:
    return Result(
        stage=str(statement.stage),
        statement=statement.digest,
        kind=FAILED,
        why=why,
        seconds=time.monotonic() - began,
    )


def _compare(checkout: Checkout, statement: Statement, folder: Path, kept: Path) -> list[Compared]:
    """The files that are not bit for bit what was recorded."""
    found: dict[str, str] = {}
    for out in statement.outputs:
        if (folder / out).exists():
            found.update({name: digest.sha256 for name, digest in hashing.tree(folder / out).named(out).items()})
    differing = []
    for name in sorted({*statement.subjects, *found}):
        expected = statement.subjects.get(name)
        if name not in found or expected is None:
            why = "it was written then, and not now" if expected else "it was not written then"
            differing.append(Compared(path=name, difference=None, why=why))
        elif found[name] != expected.sha256:
            before = scratch.recorded(checkout, statement, name, kept)
            gone = Compared(path=name, difference=None, why="other bytes; the recorded file is here no more")
            differing.append(comparing.compare(name, before, folder / name) if before else gone)
    return differing


def _environment(root: Path, statement: Statement) -> list[str]:
    """In what this machine and its libraries differ from those of the statement."""
    then = statement.environment
    now = surroundings.environment(root, statement.determines.get("device"))
    facts = [key for key in ("python", "processor", "accelerator") if then.get(key) != now[key]]
    differences = [f"{key} {then.get(key)} → {now[key]}" for key in facts]
    workers = statement.determines.get("workers")
    if isinstance(workers, list):  # nodes were lost
        differences.append(f"workers {', then '.join(map(str, workers))} → as params.yaml says")
    libraries = then.get("libraries", {})
    for name in sorted({*libraries, *now["libraries"]}):
        if libraries.get(name) != now["libraries"].get(name):
            differences.append(f"{name} {libraries.get(name)} → {now['libraries'].get(name)}")
    return differences
