"""The components of an ML-BOM and what depends on what: model, models and data behind it, sources, libraries."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from cyclonedx.contrib.license.factories import LicenseFactory
from cyclonedx.model import HashAlgorithm, HashType, Property
from cyclonedx.model.component import Component, ComponentType
from packageurl import PackageURL

from tasks.lineage.ancestry import digest_of
from tasks.lineage.data_versions import TABLES
from tasks.lineage.facts import Facts, LicenseCount
from tasks.lineage.model_card import properties
from tasks.lineage.statement import DATA, Statement, canonical

MODELS = "models/"


@dataclass
class Graph:
    """Components by reference, and the references that each depends on; `sources` are those of records."""

    components: dict[str, Component] = field(default_factory=dict)
    edges: dict[str, set[str]] = field(default_factory=dict)
    sources: list[str] = field(default_factory=list)

    def add(self, component: Component, depends_on: Iterable[str] = ()) -> str:
        """Add a component once; its reference."""
        ref = str(component.bom_ref.value)
        self.components.setdefault(ref, component)
        self.edges.setdefault(ref, set()).update(depends_on)
        return ref


def as_properties(values: Mapping[str, Any]) -> list[Property]:
    return [Property(name=entry["name"], value=entry["value"]) for entry in properties(values)]


def sha256_hash(digest: str) -> list[HashType]:
    return [HashType(alg=HashAlgorithm.SHA_256, content=digest)]


def reference(path: str, sha256: str) -> str:
    return f"{path}@{sha256[:16]}"


def build(root: Component, model: str, maker: Statement, ancestors: Sequence[Statement], found: Facts) -> Graph:
    """The graph below the component `root`, which is the output `model` of the statement `maker`."""
    graph = Graph()
    for count in found.licenses:
        graph.sources.append(graph.add(_source(count)))
    platforms = {statement.digest: _platform(graph, statement) for statement in ancestors}
    for count, ref in zip(found.licenses, graph.sources, strict=True):
        graph.edges[ref].update(_packages(graph, count))
    for statement in ancestors:
        for path, sha256 in _read(statement):
            graph.add(_artifact(path, sha256), _sources_of(path, graph, found))
    for statement in ancestors:
        behind = {platforms[statement.digest], *(reference(*read) for read in _read(statement))}
        for path, sha256 in {read for other in ancestors for read in _read(other)}:
            if digest_of(statement, path) == sha256:
                graph.edges[reference(path, sha256)] |= behind
        if statement is maker:
            graph.add(root, behind)
    return graph


def _read(statement: Statement) -> list[tuple[str, str]]:
    """Path and SHA-256 of the data that went into a statement."""
    return [(path, digests["sha256"]) for path, digests in statement.inputs.items() if digests["kind"] == DATA]


def _artifact(path: str, sha256: str) -> Component:
    kind = ComponentType.MACHINE_LEARNING_MODEL if path.startswith(MODELS) else ComponentType.DATA
    return Component(
        name=path, version=sha256[:16], type=kind, bom_ref=reference(path, sha256), hashes=sha256_hash(sha256)
    )


def _sources_of(path: str, graph: Graph, found: Facts) -> list[str]:
    """The sources whose records are in a table; none for anything else."""
    table = PurePosixPath(path).stem
    pairs = zip(found.licenses, graph.sources, strict=True)
    return [ref for count, ref in pairs if path in TABLES and table in count.n_records]


def _source(count: LicenseCount) -> Component:
    """The records of one source under one licence; the hash is that of their ids, which are hashes of their content."""
    return Component(
        name=count.origin,
        version=count.version or count.digest[:16],
        type=ComponentType.DATA,
        bom_ref=reference(f"records/{count.origin}", count.digest),
        hashes=sha256_hash(count.digest),
        licenses=[LicenseFactory().make_from_string(count.license)],
        properties=as_properties(
            {
                "records": count.total,
                **{
                    f"records:{table}:{split}": n
                    for table, by_split in count.n_records.items()
                    for split, n in by_split.items()
                },
            }
        ),
    )


def _packages(graph: Graph, count: LicenseCount) -> list[str]:
    """The library whose texts these records are; +cpu and the like name a build of the same version."""
    return [
        ref
        for ref, component in graph.components.items()
        if component.type is ComponentType.LIBRARY
        and (component.name, str(component.version).split("+")[0]) == (count.package, count.version)
    ]


def sensitive(count: LicenseCount, found: Facts) -> list[str]:
    """How many findings of which kind are in the records of a source."""
    origin = (count.source, count.package)
    kinds = Counter(finding.kind for finding in found.findings if (finding.source, finding.package) == origin)
    return [f"{kind}: {n} found" for kind, n in sorted(kinds.items())]


def _platform(graph: Graph, statement: Statement) -> str:
    """Python with the pinned libraries that a stage ran with; stages that ran with the same ones share it."""
    environment = statement.environment
    libraries = environment.get("libraries", {})
    python = environment.get("python", "")
    refs = [graph.add(_library(name, version)) for name, version in sorted(libraries.items())]
    digest = hashlib.sha256(canonical({"python": python, "libraries": libraries})).hexdigest()
    return graph.add(
        Component(name="python", version=python, type=ComponentType.PLATFORM, bom_ref=reference("python", digest)),
        refs,
    )


def _library(name: str, version: str) -> Component:
    purl = PackageURL(type="pypi", name=name, version=version)
    return Component(name=name, version=version, type=ComponentType.LIBRARY, bom_ref=purl.to_string(), purl=purl)
