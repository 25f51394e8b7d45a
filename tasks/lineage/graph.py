"""Artifacts, executions and registered versions as a graph, made of the statements alone.

A statement names those behind its inputs by their digests: these links are what the graph follows upwards. Downwards
it follows content, so that whatever read the same bytes is found, whichever execution wrote them. No signature is
verified and no file is hashed here; that is the audit's.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property

from tasks.lineage.ancestry import digest_of
from tasks.lineage.statement import DATA, Statement


@dataclass(frozen=True, order=True)
class Artifact:
    """What stood at `path`, a file or a folder; `digest` is DVC's MD5, or SHA-256 where a statement has no other."""

    path: str
    digest: str


@dataclass(frozen=True)
class Reading:
    """An artifact that went into an execution or a registered version; `maker` is None where no statement behind it
    says how it was made (raw data among it)."""

    artifact: Artifact
    maker: Statement | None


class Graph:
    """The graph of `statements`, which are in the order of the chain."""

    def __init__(self, statements: Iterable[Statement]) -> None:
        self.statements = {statement.digest: statement for statement in statements}
        self._made = {digest: made_by(s) for digest, s in self.statements.items()}
        self._readings = {digest: tuple(self._read(s)) for digest, s in self.statements.items()}

    def kind(self, kind: str) -> list[Statement]:
        """The statements of a kind (stage, run, register …), oldest first."""
        return [statement for statement in self.statements.values() if statement.kind == kind]

    @cached_property
    def stages(self) -> dict[str, list[Statement]]:
        """The executions of each stage, oldest first."""
        found: dict[str, list[Statement]] = defaultdict(list)
        for statement in self.kind("stage"):
            found[str(statement.stage)].append(statement)
        return dict(found)

    @cached_property
    def versions(self) -> dict[str, Statement]:
        """NAME@VERSION → its newest registration."""
        return {version_name(statement): statement for statement in self.kind("register") if _is_version(statement)}

    @cached_property
    def executions(self) -> dict[str, Statement]:
        """The stage executions by the journal's id."""
        return {str(statement.execution): statement for statement in self.kind("stage")}

    @cached_property
    def makers(self) -> dict[Artifact, list[Statement]]:
        """The executions that wrote each artifact, oldest first: several if the same bytes were written again."""
        found: dict[Artifact, list[Statement]] = defaultdict(list)
        for statement in self.kind("stage"):
            for artifact in made_by(statement):
                found[artifact].append(statement)
        return dict(found)

    @cached_property
    def readers(self) -> dict[Artifact, list[Statement]]:
        """The executions and registered versions that each artifact went into, oldest first."""
        found: dict[Artifact, list[Statement]] = defaultdict(list)
        earlier = {s.digest for s in self.kind("register")} - {s.digest for s in self.versions.values()}
        for digest, readings in self._readings.items():
            if digest in earlier:
                continue  # the same version, registered again with other aliases
            for artifact in dict.fromkeys(reading.artifact for reading in readings):
                found[artifact].append(self.statements[digest])
        return dict(found)

    def readings(self, statement: Statement) -> tuple[Reading, ...]:
        """The data that went into an execution or a registered version."""
        return self._readings[statement.digest]

    def behind(self, statement: Statement) -> list[Statement]:
        """The statements that `statement` names, as far as they are here."""
        return [self.statements[digest] for digest in statement.statements_behind if digest in self.statements]

    def missing(self, statement: Statement) -> list[str]:
        """The digests of statements that `statement` names and that are not here."""
        return [digest for digest in statement.statements_behind if digest not in self.statements]

    @cached_property
    def executions_behind(self) -> dict[str, frozenset[str]]:
        """Digest of a statement → the ids of all executions behind it, its own among them."""
        found: dict[str, frozenset[str]] = {}
        for digest, statement in self.statements.items():  # those behind a statement come before it in the chain
            own = {str(statement.execution)} if statement.kind == "stage" else set()
            makers = [reading.maker.digest for reading in self._readings[digest] if reading.maker]
            found[digest] = frozenset(own.union(*(found.get(maker, frozenset()) for maker in makers)))
        return found

    def users(self, artifact: Artifact) -> list[Statement]:
        """The executions that had `artifact` among their inputs under this very path: data, code or environment."""
        return [
            statement
            for statement in self.kind("stage")
            if artifact.digest in statement.inputs.get(artifact.path, {}).values()
        ]

    def ancestors(self, starts: Iterable[Statement]) -> list[Statement]:
        """`starts` and the executions behind them, in the order of the chain."""

        def before(statement: Statement) -> list[Statement]:
            return [reading.maker for reading in self.readings(statement) if reading.maker]

        return _closure(starts, before)

    def descendants(self, artifacts: Iterable[Artifact]) -> list[Statement]:
        """The executions and registered versions that `artifacts` went into, directly or not, in that order."""
        starts = [reader for artifact in artifacts for reader in self.readers.get(artifact, ())]
        return _closure(starts, lambda s: [r for artifact in made_by(s) for r in self.readers.get(artifact, ())])

    def judged_by(self, version: Statement) -> list[Statement]:
        """The evaluations that a registered version was chosen by: behind it, and not the maker of its model."""
        makers = {reading.maker.digest for reading in self.readings(version) if reading.maker}
        return [statement for statement in self.behind(version) if statement.digest not in makers]

    def stages_of(self, run: Statement) -> dict[str, Statement]:
        """What stood behind the pipeline run `run` when it had ended: the execution of each stage."""
        return {str(statement.stage): statement for statement in self.behind(run) if statement.stage}

    def _read(self, statement: Statement) -> Iterable[Reading]:
        behind = self.behind(statement)
        if _is_version(statement):
            artifact = model_of(statement)
            yield Reading(artifact, next((s for s in behind if artifact in made_by(s)), None))
        for path, digests in statement.inputs.items() if statement.kind == "stage" else ():
            if digests["kind"] == DATA:
                known = list(self._sources(path, digests, behind))
                yield from known or [Reading(Artifact(path, digests["md5"] or digests["sha256"]), None)]

    def _sources(self, path: str, digests: dict[str, str], behind: list[Statement]) -> Iterable[Reading]:
        """The outputs that an input at `path` is: one, one that it is a part of, or several in a folder."""
        for maker in behind:
            for artifact in self._made[maker.digest]:
                is_it = artifact.path == path and artifact.digest == digests["md5"]
                is_part = path.startswith(artifact.path + "/") and digest_of(maker, path) == digests["sha256"]
                if is_it or is_part or artifact.path.startswith(path + "/"):
                    yield Reading(artifact, maker)


def _closure(starts: Iterable[Statement], following: Callable[[Statement], list[Statement]]) -> list[Statement]:
    found: dict[str, Statement] = {}
    waiting = list(starts)
    while waiting:
        statement = waiting.pop()
        if statement.digest not in found:
            found[statement.digest] = statement
            waiting += following(statement)
    return sorted(found.values(), key=lambda statement: statement.sequence)


def made_by(statement: Statement) -> list[Artifact]:
    """The outputs of an execution."""
    return [Artifact(path, md5) for path, md5 in statement.outputs.items()]


def _is_version(statement: Statement) -> bool:
    return statement.kind == "register" and {"name", "version", "model", "md5"} <= statement.parameters.keys()


def model_of(version: Statement) -> Artifact:
    """The model that a registration names."""
    return Artifact(version.parameters["model"], version.parameters["md5"])


def version_name(version: Statement) -> str:
    """NAME@VERSION of a registration."""
    return f"{version.parameters['name']}@{version.parameters['version']}"


def size_of(statement: Statement, artifact: Artifact) -> tuple[int, int] | None:
    """Bytes and files of an output of `statement`; None if it is none."""
    outputs = statement.body["predicate"]["buildDefinition"]["internalParameters"].get("outputs", {})
    facts = outputs.get(artifact.path)
    return (facts["size"], facts["n_files"]) if facts and facts["md5"] == artifact.digest else None
