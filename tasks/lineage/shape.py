"""What a statement must look like: an in-toto statement (v1) with a SLSA provenance (v1), and what Axon adds to it.

in-toto: https://github.com/in-toto/attestation/blob/main/spec/v1/statement.md
SLSA: https://slsa.dev/spec/v1.0/provenance
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://slsa.dev/provenance/v1"
BUILDER = "https://axon.invalid/builder/v1"
KINDS = ("stage", "run", "register", "forget", "audit", "decide")
BUILD_TYPES = {kind: f"https://axon.invalid/{kind}/v1" for kind in KINDS}
BUILD_TYPE = BUILD_TYPES["stage"]

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Md5 = Annotated[str, Field(pattern=r"^[0-9a-f]{32}(\.dir)?$")]
Commit = Annotated[str, Field(pattern=r"^([0-9a-f]{40}|[0-9a-f]{64})$")]
Time = Annotated[str, Field(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z$")]
Text = Annotated[str, Field(min_length=1)]
Whole = Annotated[int, Field(ge=0)]


def _inside(path: str) -> str:
    parts = path.split("/")
    if path.startswith("/") or any(part in ("", ".", "..") for part in parts):
        raise ValueError("a subject must be a path below the root, without . and ..")
    return path


Path = Annotated[str, Field(min_length=1), AfterValidator(_inside)]


Model = TypeVar("Model", bound=BaseModel)


class BadStatement(ValueError):
    """A payload that is not a statement; `reason` says where and why."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Exact(BaseModel):
    """A part with these fields and no other."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Open(BaseModel):
    """A part that may have further fields."""

    model_config = ConfigDict(extra="allow", strict=True)


class SubjectDigest(Exact):
    sha256: Sha256


class SubjectNotes(Open):
    size: Whole


class Subject(Exact):
    name: Path
    digest: SubjectDigest
    annotations: SubjectNotes


class MaterialDigest(Exact):
    sha256: Sha256
    md5: Md5 = ""
    gitCommit: Commit = ""


class MaterialNotes(Open):
    kind: Literal["data", "code", "environment", "closure", "statement"]


class Material(Exact):
    name: Text
    digest: MaterialDigest
    annotations: MaterialNotes


class Chain(Exact):
    sequence: Annotated[int, Field(ge=1)]
    previous: Sha256 | None


class Internal(Open):
    execution: str | None
    pipeline: str | None
    chain: Chain


class BuildDefinition(Exact):
    buildType: Literal[tuple(BUILD_TYPES.values())]  # type: ignore[valid-type]
    externalParameters: dict[str, Any]
    internalParameters: Internal
    resolvedDependencies: list[Material]


class Builder(Exact):
    id: Literal["https://axon.invalid/builder/v1"]
    version: dict[str, str]


class Metadata(Exact):
    invocationId: str | None = None
    startedOn: Time
    finishedOn: Time


class Byproduct(Exact):
    name: Text
    annotations: dict[str, Any]


class RunDetails(Exact):
    builder: Builder
    metadata: Metadata
    byproducts: list[Byproduct]


class Predicate(Exact):
    buildDefinition: BuildDefinition
    runDetails: RunDetails


class Body(Exact):
    type_: Annotated[Literal["https://in-toto.io/Statement/v1"], Field(alias="_type")]
    subject: Annotated[list[Subject], Field(min_length=1)]
    predicateType: Literal["https://slsa.dev/provenance/v1"]
    predicate: Predicate


class StageParameters(Exact):
    stage: Text
    command: Text
    parameters: dict[str, Any]


class Output(Exact):
    md5: Md5
    size: Whole
    n_files: Whole


class Environment(Exact):
    python: Text
    libraries: dict[str, str]
    machine: str
    processor: str
    flags: list[str]
    accelerator: str | None
    system: Text


class StageInternal(Open):
    outputs: Annotated[dict[str, Output], Field(min_length=1)]
    determines: dict[str, Any]
    environment: Environment


def check(body: Any) -> None:
    """Raise `BadStatement` with the place of the first fault in a parsed payload."""
    checked = _validate(Body, body, "")
    names = [subject.name for subject in checked.subject]
    if len(set(names)) < len(names):
        doubled = next(name for name in names if names.count(name) > 1)
        raise BadStatement(f"subject: {doubled} is there twice")
    materials = [material.name for material in checked.predicate.buildDefinition.resolvedDependencies]
    if len(set(materials)) < len(materials):
        doubled = next(name for name in materials if materials.count(name) > 1)
        raise BadStatement(f"predicate.buildDefinition.resolvedDependencies: {doubled} is there twice")
    chain = checked.predicate.buildDefinition.internalParameters.chain
    if (chain.sequence == 1) != (chain.previous is None):
        raise BadStatement(
            "predicate.buildDefinition.internalParameters.chain: only the statement with sequence 1 has no previous"
        )
    definition = body["predicate"]["buildDefinition"]
    if definition["buildType"] == BUILD_TYPE:
        _validate(StageParameters, definition["externalParameters"], "predicate.buildDefinition.externalParameters.")
        _validate(StageInternal, definition["internalParameters"], "predicate.buildDefinition.internalParameters.")


def _validate(model: type[Model], value: Any, where: str) -> Model:
    try:
        return model.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        place = where + ".".join(str(part) for part in first["loc"])
        given = "" if first["type"] == "missing" else f" (it is {repr(first['input'])[:100]})"
        raise BadStatement(f"{place or 'the statement'}: {first['msg']}{given}") from None
