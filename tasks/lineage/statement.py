"""Statements: in-toto (v1) with a SLSA provenance (v1) as canonical JSON, read from bytes and built for signing."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from importlib import metadata
from typing import Any

from tasks.lineage import shape
from tasks.lineage.hashing import FileDigest
from tasks.lineage.shape import BUILD_TYPE, BUILD_TYPES, BadStatement

__all__ = ["BUILD_TYPE", "BUILD_TYPES", "BadStatement", "Statement", "build", "build_stage", "canonical", "parse"]

DATA, CODE, ENVIRONMENT, CLOSURE, STATEMENT = "data", "code", "environment", "closure", "statement"
Body = dict[str, Any]


@dataclass(frozen=True)
class Statement:
    """A parsed statement and the bytes it was parsed from. Its form is checked; whether it is true is not."""

    payload: bytes
    body: Mapping[str, Any] = field(compare=False)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the payload: what the next statement of the chain and the anchor name it by."""
        return hashlib.sha256(self.payload).hexdigest()

    @property
    def _definition(self) -> Mapping[str, Any]:
        return self.body["predicate"]["buildDefinition"]

    @property
    def _internal(self) -> Mapping[str, Any]:
        return self._definition["internalParameters"]

    @property
    def _details(self) -> Mapping[str, Any]:
        return self.body["predicate"]["runDetails"]

    @property
    def sequence(self) -> int:
        return int(self._internal["chain"]["sequence"])

    @property
    def previous(self) -> str | None:
        """The digest of the statement before it in the chain; None for the first."""
        return self._internal["chain"]["previous"]

    @property
    def kind(self) -> str:
        """stage, run, register, forget, audit or decide."""
        return next(kind for kind, uri in BUILD_TYPES.items() if uri == self._definition["buildType"])

    @property
    def external(self) -> Mapping[str, Any]:
        return self._definition["externalParameters"]

    @property
    def stage(self) -> str | None:
        """The stage's name; None for the other kinds."""
        return self.external["stage"] if self.kind == "stage" else None

    @property
    def execution(self) -> str | None:
        """The journal's id, which MLflow has as the tag `axon.execution`."""
        return self._internal["execution"]

    @property
    def pipeline(self) -> str | None:
        """The id of the pipeline run around it; None under plain `dvc repro`."""
        return self._internal["pipeline"]

    @cached_property
    def subjects(self) -> dict[str, FileDigest]:
        """Every file it speaks for, by path below the root."""
        return {
            entry["name"]: FileDigest(entry["digest"]["sha256"], entry["annotations"]["size"])
            for entry in self.body["subject"]
        }

    @cached_property
    def outputs(self) -> dict[str, str]:
        """DVC's MD5 of every output of the stage; empty for the other kinds."""
        return {out: facts["md5"] for out, facts in self._internal.get("outputs", {}).items()}

    @cached_property
    def inputs(self) -> dict[str, dict[str, str]]:
        """Data, code and environment it was made from: {path: {"md5", "sha256", "kind"}}."""
        return {
            entry["name"]: {
                "md5": entry["digest"].get("md5", ""),
                "sha256": entry["digest"]["sha256"],
                "kind": entry["annotations"]["kind"],
            }
            for entry in self._materials(DATA, CODE, ENVIRONMENT)
        }

    @property
    def parameters(self) -> dict[str, Any]:
        """The parameters it was made with, by dotted key."""
        return self.external.get("parameters", {})

    @cached_property
    def statements_behind(self) -> list[str]:
        """The digests of the statements behind its inputs."""
        return [entry["digest"]["sha256"] for entry in self._materials(STATEMENT)]

    @property
    def started(self) -> str:
        """RFC 3339, UTC."""
        return str(self._details["metadata"]["startedOn"])

    @property
    def finished(self) -> str:
        return str(self._details["metadata"]["finishedOn"])

    @property
    def determines(self) -> dict[str, Any]:
        """seed, threads, precision, device, workers: None where the stage does not depend on it."""
        return self._internal.get("determines", {})

    @property
    def environment(self) -> dict[str, Any]:
        return self._internal.get("environment", {})

    @property
    def who(self) -> dict[str, Any]:
        """user, host, and email where git knows one."""
        return next((entry["annotations"] for entry in self._details["byproducts"] if entry["name"] == "who"), {})

    @property
    def closure(self) -> str | None:
        """SHA-256 over all code the stage depends on; None for the other kinds."""
        return next((entry["digest"]["sha256"] for entry in self._materials(CLOSURE)), None)

    @property
    def commit(self) -> str | None:
        """The commit checked out at the time; None where there was none."""
        return next((entry["digest"].get("gitCommit") for entry in self._materials(CLOSURE)), None)

    @property
    def is_dirty(self) -> bool:
        """Whether the code differed from that commit, as far as known."""
        return any(entry["annotations"].get("dirty", True) for entry in self._materials(CLOSURE))

    def _materials(self, *kinds: str) -> list[Mapping[str, Any]]:
        return [e for e in self._definition["resolvedDependencies"] if e["annotations"]["kind"] in kinds]


def canonical(body: Mapping[str, Any]) -> bytes:
    """The one form of a statement: JSON in UTF-8 with sorted keys and no spaces; NaN is a ValueError."""
    text = json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8")


def parse(payload: bytes) -> Statement:
    """A statement from its bytes; raises `BadStatement` with the place and the reason."""
    try:
        body = json.loads(payload.decode("utf-8"))
        is_canonical = canonical(body) == payload
    except (ValueError, RecursionError) as error:
        raise BadStatement(f"it is not JSON in UTF-8 ({error})") from None
    if not is_canonical:
        raise BadStatement("it is not in canonical form (sorted keys, no spaces, no key twice)")
    shape.check(body)
    return Statement(payload, body)


def utc(seconds: float) -> str:
    """A time in seconds since 1970 as RFC 3339 in UTC, to the microsecond."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def _version() -> str:
    try:
        return metadata.version("axon")
    except metadata.PackageNotFoundError:  # run from a folder of code that is not installed
        return "unknown"


def subject_entries(files: Mapping[str, FileDigest]) -> list[Body]:
    return [
        {"name": name, "digest": {"sha256": files[name].sha256}, "annotations": {"size": files[name].size}}
        for name in sorted(files)
    ]


def material(
    name: str, kind: str, *, sha256: str, md5: str | None = None, commit: str | None = None, **notes: Any
) -> Body:
    """One entry of `resolvedDependencies`."""
    digest = {"sha256": sha256, **({"md5": md5} if md5 else {}), **({"gitCommit": commit} if commit else {})}
    return {"name": name, "digest": digest, "annotations": {"kind": kind, **notes}}


def behind(statements: Sequence[Statement]) -> list[Body]:
    """Other statements as materials, in their order in the chain."""
    ordered = sorted({s.digest: s for s in statements}.values(), key=lambda s: s.sequence)
    return [material(f"statement/{s.sequence:06d}-{s.stage or s.kind}", STATEMENT, sha256=s.digest) for s in ordered]


def build(
    kind: str,
    *,
    subjects: Mapping[str, FileDigest],
    external: Mapping[str, Any],
    internal: Mapping[str, Any],
    materials: Sequence[Body],
    execution: str | None,
    pipeline: str | None,
    started: float,
    finished: float,
    who: Mapping[str, str],
) -> Body:
    """A statement of any kind without its place in the chain, which `StatementStore.append` gives it.

    `started` and `finished` are in seconds since 1970.
    """
    times = {"startedOn": utc(started), "finishedOn": utc(finished)}
    return {
        "_type": shape.STATEMENT_TYPE,
        "subject": subject_entries(subjects),
        "predicateType": shape.PREDICATE_TYPE,
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPES[kind],
                "externalParameters": dict(external),
                "internalParameters": {**internal, "execution": execution, "pipeline": pipeline},
                "resolvedDependencies": list(materials),
            },
            "runDetails": {
                "builder": {"id": shape.BUILDER, "version": {"axon": _version()}},
                "metadata": {**({"invocationId": execution} if execution else {}), **times},
                "byproducts": [{"name": "who", "annotations": dict(who)}],
            },
        },
    }


def build_stage(
    *,
    stage: str,
    command: str,
    parameters: Mapping[str, Any],
    subjects: Mapping[str, FileDigest],
    outputs: Mapping[str, Mapping[str, Any]],
    determines: Mapping[str, Any],
    environment: Mapping[str, Any],
    materials: Sequence[Body],
    execution: str,
    pipeline: str | None,
    started: float,
    finished: float,
    who: Mapping[str, str],
) -> Body:
    """The statement of one execution of a stage, without its place in the chain.

    `outputs`: {out: {"md5", "size" in bytes, "n_files"}}.
    """
    return build(
        "stage",
        subjects=subjects,
        external={"stage": stage, "command": command, "parameters": dict(parameters)},
        internal={
            "outputs": {out: dict(facts) for out, facts in outputs.items()},
            "determines": dict(determines),
            "environment": dict(environment),
        },
        materials=materials,
        execution=execution,
        pipeline=pipeline,
        started=started,
        finished=finished,
        who=who,
    )


def chained(body: Mapping[str, Any], sequence: int, previous: str | None) -> Body:
    """`body` with its place in the chain."""
    predicate = body["predicate"]
    definition = predicate["buildDefinition"]
    internal = {**definition["internalParameters"], "chain": {"sequence": sequence, "previous": previous}}
    return {**body, "predicate": {**predicate, "buildDefinition": {**definition, "internalParameters": internal}}}
