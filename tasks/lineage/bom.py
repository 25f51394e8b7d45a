"""The CycloneDX ML-BOM (1.6, JSON) of a registered model, made from statements and from files that they vouch for.

Nothing in it is typed in: components, hashes and libraries are those of the statements; figures, licences and
findings are read from files whose SHA-256 a statement holds, and which are hashed as they are read. The serial number
and the time come from the statements too, so that the same statements give the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from cyclonedx.model.bom import Bom, BomMetaData
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.model.tool import ToolRepository
from cyclonedx.output.json import JsonV1Dot6

from tasks.errors import UserError
from tasks.files import write_bytes
from tasks.lineage import ancestry, bom_graph, facts, formulation, model_card
from tasks.lineage.bom_graph import Graph
from tasks.lineage.facts import Facts
from tasks.lineage.model_card import METRICS
from tasks.lineage.statement import Statement
from tasks.lineage.store import StatementStore
from tasks.runtime import stages
from tasks.runtime.checkout import Checkout

NAME = "axon-chat"
FILE = "bom.cdx.json"
LISTING = "SHA-256 over the lines of sha256sum for the files of a directory in the order of their paths"


def folder(checkout: Checkout, version: str, name: str = NAME) -> Path:
    """Where the BOM and the signature of a registered version lie."""
    return checkout.state.parent / "lineage" / "models" / f"{name}-{version}"


def write(checkout: Checkout, version: str, model: str, *, name: str = NAME, found: Facts | None = None) -> Path:
    """Write the BOM of version `version`, which is the output `model` (`models/ppo`) as it stands in the workspace.

    `found`: its facts, if known already. Raises `UserError` where no statement speaks for the model, or a file is not
    what its statement says.
    """
    known = [stored.statement for stored in StatementStore.of(checkout).all()]
    maker = StatementStore.of(checkout).producer_of(model, stages.digest(checkout.root / model))
    if maker is None:
        raise UserError(
            f"no statement says how {model} as it stands was made, and a bill of materials is made from statements "
            "alone. Restore lineage/statements with git, or make the model again with statements switched on.",
            exit_code=1,
        )
    found = found or facts.of_statement(checkout, maker, known, model)
    content = to_bytes(make(checkout.root, known, maker, model, found, name=name, version=version))
    path = folder(checkout, version, name) / FILE
    write_bytes(path, content)
    path.chmod(0o644)
    return path


def make(
    root: Path, known: Sequence[Statement], maker: Statement, model: str, found: Facts, *, name: str, version: str
) -> dict[str, Any]:
    """The BOM as a dictionary that keeps to the schema. `known` must hold all statements behind `maker`."""
    traced = ancestry.trace(maker, known)
    evaluation = _evaluation(known, model, maker.outputs[model])
    used = [*traced.statements, *([evaluation] if evaluation else [])]
    component = _component(maker, model, name, version)
    graph = bom_graph.build(component, model, maker, traced.statements, found)
    bom = _document(component, graph, used, f"{name}@{version}")

    def read(statement: Statement, path: str) -> bytes:
        return attested(root, statement, path)

    top = bom["metadata"]["component"]
    top["modelCard"] = model_card.make(maker, model, evaluation, found, read, graph.sources)
    top["pedigree"] = _pedigree(bom["components"], maker)
    for entry in bom["components"]:
        _add_data(entry, graph, found)
    made = {maker.digest: top["bom-ref"]}
    bom["formulation"] = [{"workflows": [formulation.workflow(s, graph, made.get(s.digest)) for s in used]}]
    problems = validate(to_bytes(bom))
    if problems:
        raise RuntimeError(f"the bill of materials does not keep to CycloneDX 1.6: {problems[0]}")
    return bom


def attested(root: Path, statement: Statement, path: str) -> bytes:
    """The bytes of a file, if they are those that the statement speaks for; a `UserError` otherwise."""
    expected = statement.subjects.get(path)
    file = root / path
    content = file.read_bytes() if file.is_file() else None
    if expected is None or content is None or hashlib.sha256(content).hexdigest() != expected.sha256:
        raise UserError(
            f"{path} is not the file that the statement {statement.sequence:06d} of {statement.stage} speaks for. "
            "Restore it with `dvc checkout`, or run `axon run`.",
            exit_code=1,
        )
    return content


def to_bytes(bom: dict[str, Any]) -> bytes:
    return (json.dumps(bom, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n").encode("utf-8")


def validate(content: bytes) -> list[str]:
    """What in a BOM breaks the published schema of CycloneDX 1.6; empty if nothing does."""
    # Not above: the validator takes seconds to import.
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    found = JsonStrictValidator(SchemaVersion.V1_6).validate_str(content.decode("utf-8"), all_errors=True)
    return [f"{error.data.json_path}: {error.data.message}" for error in found or ()]


def _evaluation(known: Sequence[Statement], model: str, md5: str) -> Statement | None:
    """The newest statement of an evaluation of the model."""
    found = [s for s in known if METRICS in s.subjects and s.inputs.get(model, {}).get("md5") == md5]
    return max(found, key=lambda statement: statement.sequence, default=None)


def _component(maker: Statement, model: str, name: str, version: str) -> Component:
    """The registered model, with its files as components of their own."""
    ref = f"{name}@{version}"
    files = [
        Component(
            name=path,
            type=ComponentType.FILE,
            bom_ref=f"{ref}/{path}",
            hashes=bom_graph.sha256_hash(digest.sha256),
            properties=bom_graph.as_properties({"size": digest.size}),
        )
        for path, digest in ancestry.files_of(maker, model).items()
    ]
    digest = ancestry.digest_of(maker, model)
    return Component(
        name=name,
        version=version,
        type=ComponentType.MACHINE_LEARNING_MODEL,
        bom_ref=ref,
        hashes=bom_graph.sha256_hash(digest or ""),
        components=files,
        properties=bom_graph.as_properties({"made_by": maker.stage, "path": model, "dvc:md5": maker.outputs[model]}),
    )


def _document(component: Component, graph: Graph, used: Sequence[Statement], name: str) -> dict[str, Any]:
    """All that the library has classes for. Serial number and time are functions of the statements."""
    identity = hashlib.sha256("\n".join([name, *sorted(s.digest for s in used)]).encode()).hexdigest()
    versions = sorted({s.body["predicate"]["runDetails"]["builder"]["version"]["axon"] for s in used})
    tools = [Component(name="axon", version=v, type=ComponentType.APPLICATION, bom_ref=f"axon@{v}") for v in versions]
    bom = Bom(
        serial_number=uuid.uuid5(uuid.NAMESPACE_URL, f"https://axon.invalid/bom/v1/{identity}"),
        metadata=BomMetaData(
            component=component,
            tools=ToolRepository(components=tools),
            timestamp=max(datetime.fromisoformat(s.finished) for s in used),
            properties=bom_graph.as_properties({"digest_of_directories": LISTING}),
        ),
        components=[c for c in graph.components.values() if c is not component],
    )
    by_ref = {**graph.components, str(component.bom_ref.value): component}
    for ref, behind in sorted(graph.edges.items()):
        bom.register_dependency(by_ref[ref], [by_ref[other] for other in sorted(behind)])
    document: dict[str, Any] = json.loads(JsonV1Dot6(bom).output_as_string())
    return document


def _pedigree(components: Sequence[dict[str, Any]], maker: Statement) -> dict[str, Any]:
    """The models that this one was made from. A pedigree holds descriptions; `dependencies` refers to components."""
    kept = ("type", "name", "version", "hashes")
    models = [entry for entry in components if entry["type"] == "machine-learning-model"]
    return {
        "ancestors": [{key: entry[key] for key in kept} for entry in models],
        "notes": f"made by stage {maker.stage}, statement sha256:{maker.digest}",
    }


def _add_data(entry: dict[str, Any], graph: Graph, found: Facts) -> None:
    """`data`, which says what a data component holds and what sensitive kinds were found in it."""
    if entry["type"] != "data":
        return
    described: dict[str, Any] = {"type": "dataset", "name": entry["name"]}
    if entry["bom-ref"] in graph.sources:
        count = found.licenses[graph.sources.index(entry["bom-ref"])]
        described["sensitiveData"] = bom_graph.sensitive(count, found)
    entry["data"] = [described]
