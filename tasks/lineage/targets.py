"""What a person means by TARGET: a path, a stage, a run, a registered version, a record, or a piece of text."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tasks import registry
from tasks.errors import UserError
from tasks.lineage import paths
from tasks.lineage.aliases import aliases_of
from tasks.lineage.graph import Graph, made_by
from tasks.lineage.records.ids import parse as parse_record_id
from tasks.lineage.statement import Statement
from tasks.lineage.target import ALLOWED, Target, execution, itself, near, output
from tasks.lineage.wording import many, short, when
from tasks.runtime import stages
from tasks.runtime.checkout import Checkout


@dataclass(frozen=True)
class Resolver:
    """Finds targets in `graph`; paths are taken from `here`, then from the root of `checkout`."""

    graph: Graph
    checkout: Checkout
    here: Path = field(default_factory=Path.cwd)

    def resolve(self, text: str) -> Target:
        """The target named by `text`. `stage:NAME`, `path:…`, `run:…`, `version:…`, `record:…` and `text:…` say which
        kind is meant. Raises `UserError` with near matches and what is allowed."""
        ways: dict[str, Callable[[str], Target | None]] = {
            "stage": self._stage,
            "run": self._run,
            "version": self._version,
            "path": self._path,
            "record": self._record,
            "text": self._text,
        }
        kind, colon, rest = text.partition(":")
        if colon and rest and kind in ways:
            ways, text = {kind: ways[kind]}, rest
        if list(ways) == ["record"]:
            parse_record_id(text)
        if not text.strip():
            raise UserError(f"the target is empty. {ALLOWED}")
        for kind, way in ways.items():
            if kind == "text" and len(ways) > 1 and len(text.split()) == 1 and self._near(text):
                break  # a slip of the pen, and no word of a record
            target = way(text)
            if target is not None:
                return target
        raise UserError(self._unknown(text))

    def _stage(self, text: str) -> Target | None:
        name, back = _back(text)
        executions = self.graph.stages.get(name)
        if executions is None:
            if re.fullmatch(r"\w+", name) and name in stages.read_stages(self.checkout.root):
                raise UserError(f"stage {name} has no statement yet; `axon run {name}` writes one.", exit_code=1)
            return None
        if back is not None:
            return execution(_nth(executions, back, f"stage {name} has", "execution"))
        current = self._current(name, executions)
        newest = executions[-1]
        if current is None or current.outputs == newest.outputs:
            return execution(newest)
        later = f"the newest execution, {newest.execution}, wrote something else: {name}~0 names it"
        return execution(current, f"this is the execution whose outputs dvc.lock records; {later}")

    def _current(self, name: str, executions: list[Statement]) -> Statement | None:
        """The newest execution whose outputs are those that `dvc.lock` records."""
        entry = stages.read_lock(self.checkout.root).get(name, {})
        recorded = {out["path"]: out["md5"] for out in entry.get("outs", ()) if "md5" in out}
        return next((s for s in reversed(executions) if s.outputs == recorded), None)

    def _run(self, text: str) -> Target | None:
        name, back = _back(text)
        if name == "run":
            runs = self.graph.kind("run")
            if not runs:
                raise UserError("no pipeline run has a statement yet; `axon run` writes one.", exit_code=1)
            return self._of_run(_nth(runs, back or 0, "lineage/statements holds", "pipeline run"))
        if not re.fullmatch(r"[0-9a-f]{8,64}(\.dir)?", text.lower()):
            return None
        return self._by_id(text.lower())

    def _by_id(self, digits: str) -> Target | None:
        """Whatever has an id or a digest that begins with `digits`."""
        found: dict[str, Target] = {}
        for statement in self.graph.statements.values():
            ids = (statement.execution, statement.digest)
            if any(known and known.startswith(digits) for known in ids):
                is_run = statement.kind == "run"
                found[str(statement.digest)] = self._of_run(statement) if is_run else itself(statement)
        pipelines = {s.pipeline for s in self.graph.kind("stage") if (s.pipeline or "").startswith(digits)}
        ended = {run.execution for run in self.graph.kind("run")}
        for pipeline in pipelines - ended:
            found[str(pipeline)] = self._unended(str(pipeline))
        for artifact, makers in self.graph.makers.items():
            if artifact.digest.startswith(digits):
                found[f"{artifact.path}@{artifact.digest}"] = output(artifact, makers[-1])
        if len(found) > 1:
            listed = ", ".join(target.name for target in list(found.values())[:6])
            raise UserError(f"{digits} begins the ids of several things: {listed}. Give more of its characters.")
        return next(iter(found.values()), None)

    def _of_run(self, run: Statement) -> Target:
        behind = self.graph.stages_of(run).values()
        artifacts = tuple(artifact for statement in behind for artifact in made_by(statement))
        return Target(kind="run", name=f"run {short(str(run.execution))}", statements=(run,), artifacts=artifacts)

    def _unended(self, pipeline: str) -> Target:
        """A pipeline run that was broken off: its own stage executions are all there is of it."""
        done = tuple(s for s in self.graph.kind("stage") if s.pipeline == pipeline)
        artifacts = tuple(artifact for statement in done for artifact in made_by(statement))
        note = "this run did not end well: it has no statement of its own, and these are the stages it finished"
        return Target(kind="run", name=f"run {short(pipeline)}", statements=done, artifacts=artifacts, notes=(note,))

    def _version(self, text: str) -> Target | None:
        name, _, version = text.rpartition("@")
        if name not in {registry.NAME, *(known.rpartition("@")[0] for known in self.graph.versions)}:
            return None  # a piece of text may have an @ too
        notes = []
        if not version.isdigit():
            aliases = aliases_of(self.checkout, name)
            if version not in aliases:
                known = ", ".join(f"{name}@{alias}" for alias in aliases) or "none"
                raise UserError(f"the registry has no {text}; aliases of {name}: {known}.{self._versions()}")
            notes.append(f"{text} is version {aliases[version]} now")
            version = aliases[version]
        registered = self.graph.versions.get(f"{name}@{version}")
        if registered is None:
            raise UserError(f"no statement registers {name}@{version}.{self._versions()}")
        for asked in self.graph.kind("forget"):
            if registered.parameters["md5"] in {held.get("md5") for held in asked.parameters.get("versions") or ()}:
                notes.append(f"it contains records that were to be forgotten on {when(asked.finished)}")
        return itself(registered, *notes)

    def _versions(self) -> str:
        known = ", ".join(self.graph.versions)
        return f" Versions with a statement: {known}." if known else " No version has a statement yet."

    def _path(self, text: str) -> Target | None:
        return paths.resolve(self.graph, self.checkout, self.here, text)

    def _record(self, text: str) -> Target | None:
        if not re.fullmatch(r"[0-9a-fA-F]{32}", text):
            return None
        return Target(kind="record", name=f"record {text.lower()}", record=text.lower())

    def _text(self, text: str) -> Target | None:
        from tasks.lineage.index import RecordIndex

        found = RecordIndex(self.checkout.state, self.checkout.root).find_text(text)
        ids = sorted({one.record_id for one in found})
        if len(ids) == 1:
            places = ", ".join(sorted({one.where for one in found}))
            note = f"this is the one record with {text!r} (in {places})"
            return Target(kind="record", name=f"record {ids[0]}", record=ids[0], notes=(note,), found=tuple(found))
        return Target(kind="text", name=repr(text), found=tuple(found)) if found else None

    def _near(self, text: str) -> list[str]:
        known = [*self.graph.stages, *self.graph.versions, *stages.read_stages(self.checkout.root)]
        known += [artifact.path for artifact in self.graph.makers]
        for statement in self.graph.statements.values():
            known += [*statement.subjects, *statement.inputs]
        return near(text, known)

    def _unknown(self, text: str) -> str:
        close = self._near(text)
        shown = text if len(text) <= 60 else text[:59] + "…"
        meant = f"; did you mean {' or '.join(close)}? " if close else ". "
        none = "" if self.graph.statements else "There is no statement in lineage/statements: `axon run` writes them. "
        word = f" As a word of a record it is text:{shown}." if close and len(text.split()) == 1 else ""
        return f"nothing is known by {shown!r}{meant}{none}{ALLOWED}{word}"


def _back(text: str) -> tuple[str, int | None]:
    """NAME~N as (NAME, N); without ~N, N is None."""
    match = re.fullmatch(r"(.+)~(\d{1,6})", text)
    return (match[1], int(match[2])) if match else (text, None)


def _nth(known: list[Statement], back: int, there: str, one: str) -> Statement:
    if back >= len(known):
        raise UserError(
            f"{there} {many(len(known), one)}, so that ~{back} goes too far back; allowed are ~0 to ~{len(known) - 1}."
        )
    return known[-1 - back]
