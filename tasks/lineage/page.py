"""An answer as one HTML page: a drawing, a card for every step, and a search over all of it; nothing is fetched."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Mapping
from functools import lru_cache
from importlib import resources
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from tasks.lineage import layout, wording
from tasks.lineage.graph import Artifact, size_of
from tasks.lineage.questions import DOWN, TARGET, UP, Edge, Node, Slice
from tasks.lineage.statement import CODE, DATA, ENVIRONMENT, Statement
from tasks.lineage.wording import short
from tasks.reports.text import visible

_SIDES = {UP: "behind it", TARGET: "asked about", DOWN: "made with it"}


def render(answer: Slice, counts: Mapping[str, str]) -> str:
    """The page. `counts`: execution id → what records it had, in words."""
    nodes = _ordered(answer)
    anchors = {node.id: f"step-{i}" for i, node in enumerate(nodes, start=1)}
    environments, numbers = _environments(nodes)
    script = _source("lineage.js")
    return (
        _templates()
        .get_template("lineage.html.j2")
        .render(
            title=answer.target.name,
            kind=answer.target.kind,
            notes=answer.notes,
            drawing=layout.draw(answer, anchors),
            cards=[_card(answer, node, anchors, numbers, counts) for node in nodes],
            environments=environments,
            script=Markup(script),
            script_digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
            style=Markup(_source("lineage.css")),
            sides=_SIDES,
        )
    )


def _source(name: str) -> str:
    return resources.files("tasks.lineage").joinpath("templates", name).read_text(encoding="utf-8")


@lru_cache(maxsize=1)
def _templates() -> Environment:
    environment = Environment(
        loader=PackageLoader("tasks.lineage"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value,
    )
    environment.filters["breakable"] = _breakable
    return environment


def _breakable(path: str) -> Markup:
    """A path that may break after its slashes on a narrow screen."""
    return Markup("/<wbr>").join(escape(visible(part)) for part in path.split("/"))


def _ordered(answer: Slice) -> list[Node]:
    """The target first, then what is behind it from the newest back, then what was made with it; what has no
    statement last."""
    sides = {TARGET: 0, UP: 1, DOWN: 2}

    def place(node: Node) -> tuple[int, int, int, str]:
        sequence = node.statement.sequence if node.statement else 0
        return sides[node.side], not node.statement, -sequence if node.side == UP else sequence, node.name

    return sorted(answer.nodes.values(), key=place)


def _environments(nodes: Iterable[Node]) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """Each environment once, with its number, facts, libraries and stages; digest of a statement → number."""
    found: dict[str, dict[str, Any]] = {}
    numbers: dict[str, int] = {}
    statements = [node.statement for node in nodes if node.kind == "execution" and node.statement]
    for statement in sorted(statements, key=lambda statement: statement.sequence):
        facts = dict(statement.environment)
        libraries = facts.pop("libraries", {})
        flags = " ".join(facts.pop("flags", []))
        known = {key: str(value) for key, value in facts.items() if value} | ({"flags": flags} if flags else {})
        first = {"number": len(found) + 1, "facts": known, "libraries": libraries, "stages": []}
        environment = found.setdefault(repr((known, libraries)), first)
        environment["stages"].append(statement.stage)
        numbers[statement.digest] = environment["number"]
    return list(found.values()), numbers


def _card(
    answer: Slice,
    node: Node,
    anchors: Mapping[str, str],
    numbers: Mapping[str, int],
    counts: Mapping[str, str],
) -> dict[str, Any]:
    """What a card shows; for what has no statement, the joints with other cards alone."""
    before = [edge for edge in answer.edges.values() if edge.target == node.id]
    after = [edge for edge in answer.edges.values() if edge.source == node.id]
    card: dict[str, Any] = {
        "anchor": anchors[node.id],
        "name": node.name,
        "kind": node.kind,
        "side": node.side,
        "digest": node.artifact.digest if node.artifact else "",
        "reads": [_joint(node, answer.nodes[edge.source], edge, anchors) for edge in before],
        "goes": [_joint(node, answer.nodes[edge.target], edge, anchors) for edge in after],
        "statement": None,
    }
    statement = node.statement
    if statement is None:
        return card
    card["statement"] = _said(statement)
    if node.kind == "execution":
        card |= {
            "execution": statement.execution,
            "pipeline": statement.pipeline,
            "counts": counts.get(str(statement.execution), ""),
            "outputs": [
                _output(statement, path)
                for path in sorted(statement.outputs, key=lambda p: (p.startswith("metrics/"), p))
            ],
            "inputs": _by_kind(statement),
            "unlinked": _unlinked(statement, before),
            "environment": numbers[statement.digest],
            "code": {"closure": statement.closure, "commit": statement.commit, "dirty": statement.is_dirty},
        }
    return card


def _joint(node: Node, other: Node, edge: Edge, anchors: Mapping[str, str]) -> dict[str, Any]:
    """A line of "reads" or "goes into" on the card of `node`: a link to that of `other`, and what passed."""
    paths = [artifact.path for artifact in edge.artifacts if artifact not in (node.artifact, other.artifact)]
    return {"name": other.name, "anchor": anchors[other.id], "paths": paths, "role": edge.role}


def _unlinked(statement: Statement, before: Iterable[Edge]) -> list[str]:
    """The data that an execution read besides what the other cards made."""
    linked = {artifact.path for edge in before for artifact in edge.artifacts}
    return [path for path, d in statement.inputs.items() if d["kind"] == DATA and path not in linked]


def _said(statement: Statement) -> dict[str, Any]:
    """What every statement says."""
    who = statement.who
    aliases = ", ".join(statement.parameters.get("aliases", ())) if statement.kind == "register" else ""
    return {
        "digest": statement.digest,
        "sequence": f"{statement.sequence:06d}",
        "when": wording.when(statement.started),
        "started": statement.started,
        "took": wording.duration(wording.seconds(statement)),
        "who": f"{who.get('user', '–')} on {who.get('host', '–')}",
        "settings": {key: wording.value(value) for key, value in wording.flat(statement.parameters).items()},
        "key_settings": wording.key_settings(statement),
        "aliases": aliases,
        "command": statement.external.get("command", ""),
        "files": [(name, d.sha256, wording.size(d.size)) for name, d in sorted(statement.subjects.items())],
    }


def _output(statement: Statement, path: str) -> dict[str, str]:
    artifact = Artifact(path, statement.outputs[path])
    facts = size_of(statement, artifact) or (0, 0)
    files = wording.many(facts[1], "file") + ", " if facts[1] != 1 else ""
    return {
        "path": path,
        "digest": artifact.digest,
        "short": short(artifact.digest),
        "size": files + wording.size(facts[0]),
    }


def _by_kind(statement: Statement) -> dict[str, list[tuple[str, str]]]:
    """Code and environment that went in: path and SHA-256."""
    found: dict[str, list[tuple[str, str]]] = {CODE: [], ENVIRONMENT: []}
    for path, digests in statement.inputs.items():
        if digests["kind"] in found:
            found[digests["kind"]].append((path, digests["sha256"]))
    return found
