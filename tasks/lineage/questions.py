"""What made a target (up) and what it went into (down), cut out of the graph for drawing."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from tasks.lineage.graph import Artifact, Graph, made_by, version_name
from tasks.lineage.statement import Statement
from tasks.lineage.target import Target
from tasks.lineage.wording import short

UP, TARGET, DOWN = "up", "target", "down"


@dataclass(frozen=True, kw_only=True)
class Node:
    """`kind`: execution, version, run, artifact, input or record; or data, which went in and which nothing made.
    `side`: up, target or down."""

    id: str
    kind: str
    side: str
    name: str
    statement: Statement | None = None
    artifact: Artifact | None = None


@dataclass(frozen=True, kw_only=True)
class Edge:
    """`what` passed from the node `source` to the node `target`: artifacts, or the role a record had."""

    source: str
    target: str
    artifacts: tuple[Artifact, ...] = ()
    role: str = ""


@dataclass(frozen=True)
class Use:
    """What a record was to an execution, in words, and whether it is in all that was made from there."""

    role: str
    is_handed_down: bool


@dataclass
class Slice:
    """The part of the graph that answers for `target`; its node has the id `root`."""

    target: Target
    root: str
    nodes: dict[str, Node] = field(default_factory=dict)
    edges: dict[tuple[str, str], Edge] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def add(self, node: Node) -> str:
        self.nodes.setdefault(node.id, node)
        return node.id

    def link(self, source: str, target: str, artifacts: Iterable[Artifact] = (), role: str = "") -> None:
        """An edge, added to one that is there already."""
        known = self.edges.get((source, target), Edge(source=source, target=target))
        self.edges[source, target] = Edge(
            source=source,
            target=target,
            artifacts=tuple(dict.fromkeys((*known.artifacts, *artifacts))),
            role=", ".join(text for text in (known.role, role) if text),
        )

    def statements(self) -> list[Statement]:
        """Those of its nodes, in the order of the chain."""
        found = {node.statement.digest: node.statement for node in self.nodes.values() if node.statement}
        return sorted(found.values(), key=lambda statement: statement.sequence)

    def next_to(self, side: str) -> dict[str, list[str]]:
        """Node → the nodes before it (up) or after it (down), as far as they are on that side of the target."""
        found: dict[str, list[str]] = defaultdict(list)
        for source, target in self.edges:
            here, there = (target, source) if side == UP else (source, target)
            if self.nodes[there].side == side and self.nodes[here].side in (side, TARGET):
                found[here].append(there)
        return dict(found)


def ask(
    graph: Graph, target: Target, *, up: bool = True, down: bool = True, uses: Mapping[str, Use] | None = None
) -> Slice:
    """The answer for `target`. `uses`, of a record: execution id → what it was there."""
    root = _root(target)
    answer = Slice(target, root.id, notes=list(target.notes))
    answer.add(root)
    if up:
        _up(graph, target, answer)
    if down:
        _down(graph, target, answer, uses or {})
    return answer


def _root(target: Target) -> Node:
    statement = target.statements[0] if len(target.statements) == 1 else None
    if target.kind == "artifact" or (target.kind == "run" and statement and statement.kind == "stage"):
        statement = None  # which made it, or is a part of it
    artifact = target.artifacts[0] if target.kind in ("artifact", "input") else None
    return Node(
        id=_id(statement) if statement else f"{target.kind} {target.name}",
        kind=target.kind,
        side=TARGET,
        name=target.name,
        statement=statement,
        artifact=artifact,
    )


def _id(statement: Statement) -> str:
    return f"statement {statement.digest}"


def _node(statement: Statement, side: str) -> Node:
    kind = "version" if statement.kind == "register" else "execution"
    name = version_name(statement) if kind == "version" else f"{statement.stage} {short(str(statement.execution))}"
    return Node(id=_id(statement), kind=kind, side=side, name=name, statement=statement)


def _up(graph: Graph, target: Target, answer: Slice) -> None:
    """Everything behind the target."""
    starts = _standing_on(graph, target)
    for statement in starts:
        if target.kind == "artifact":
            _link_up(answer, statement, answer.root, target.artifacts)
        if target.kind == "run":
            _link_up(answer, statement, answer.root, made_by(statement))
    for statement in graph.ancestors(starts):
        reader = _id(statement)
        for reading in graph.readings(statement):
            if reading.maker:
                _link_up(answer, reading.maker, reader, [reading.artifact])
            else:
                name = f"{reading.artifact.path} {short(reading.artifact.digest)}"
                node = Node(
                    id=f"data {reading.artifact.path} {reading.artifact.digest}",
                    kind="data",
                    side=UP,
                    name=name,
                    artifact=reading.artifact,
                )
                answer.link(answer.add(node), reader, [reading.artifact])
        for digest in graph.missing(statement):
            answer.notes.append(
                f"{statement.stage or statement.kind} {short(statement.digest)} names a statement that is not here: "
                f"{digest}; `axon audit` says more"
            )
    if target.kind == "version" and (judges := graph.judged_by(target.statements[0])):
        named = ", ".join(f"{judge.stage} {short(str(judge.execution))}" for judge in judges)
        answer.notes.append(f"it was chosen by the figures of {named}, which is no part of what made it")


def _standing_on(graph: Graph, target: Target) -> list[Statement]:
    """What made the target, or the target itself; of a pipeline run, the executions it ended with."""
    if len(target.statements) == 1 and target.statements[0].kind == "run":
        return list(graph.stages_of(target.statements[0]).values())
    return list(target.statements)


def _link_up(answer: Slice, maker: Statement, reader: str, artifacts: Iterable[Artifact]) -> None:
    answer.link(answer.add(_node(maker, UP)), reader, artifacts)


def _down(graph: Graph, target: Target, answer: Slice, uses: Mapping[str, Use]) -> None:
    """Everything the target went into."""
    behind = {statement.digest for statement in graph.ancestors(_standing_on(graph, target))}
    waiting: list[Statement] = []

    def follow(source: str, reader: Statement, artifacts: Iterable[Artifact] = (), role: str = "") -> None:
        if reader.digest not in behind:
            answer.link(source, answer.add(_node(reader, DOWN)), artifacts, role)
            waiting.append(reader)

    for execution, use in uses.items():
        user = graph.executions[execution]
        if use.is_handed_down:
            follow(answer.root, user, role=use.role)
        else:
            answer.link(answer.root, answer.add(_node(user, DOWN)), role=use.role)
    for artifact in target.artifacts:
        for reader in graph.users(artifact) if target.kind == "input" else graph.readers.get(artifact, ()):
            follow(answer.root, reader, [artifact])
    seen: set[str] = set()
    while waiting:
        statement = waiting.pop()
        if statement.digest not in seen:
            seen.add(statement.digest)
            for artifact in made_by(statement):
                for reader in graph.readers.get(artifact, ()):
                    follow(_id(statement), reader, [artifact])
