"""An answer as a tree for the terminal, as JSON, or as a Mermaid flowchart."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text
from rich.tree import Tree

from tasks.lineage import arrangement, wording
from tasks.lineage.graph import Artifact, size_of
from tasks.lineage.questions import DOWN, TARGET, UP, Edge, Node, Slice
from tasks.lineage.statement import Statement
from tasks.lineage.wording import short

_N_OUTPUTS, _N_READ, _N_BRANCHES = 3, 6, 12
_LIBRARIES = ("torch", "numpy", "tokenizers", "datasets", "transformers")


def tree(answer: Slice, counts: Mapping[str, str], *, up: bool = True, down: bool = True) -> RenderableType:
    """The answer for a terminal. `counts`: execution id → what records it had, in words."""
    parts: list[RenderableType] = [_heading(answer, counts)]
    parts += [Text(f"Note: {note}", style="yellow") for note in answer.notes]
    for side, wanted, title in ((UP, up, "Made from"), (DOWN, down, "Went into")):
        if wanted:
            parts += [Text(), _side(answer, side, title, counts)]
    if up and (made := _circumstances(answer)):
        parts += [Text(), made]
    return Group(*parts)


def _heading(answer: Slice, counts: Mapping[str, str]) -> Text:
    root = answer.nodes[answer.root]
    text = Text(root.name, style="bold")
    statement = root.statement
    if statement is None:
        return text
    if root.kind == "execution":
        return Text("\n").join([text, *_details(statement, counts)])
    if root.kind == "version":
        aliases = ", ".join(statement.parameters.get("aliases", ())) or "no alias"
        text.append(f"\nregistered {wording.when(statement.finished)} as {aliases}, {_by(statement)}", style="dim")
    else:
        targets = ", ".join(statement.external.get("targets", ()))
        asked = f", asked for {targets}" if targets else ""
        text.append(f"\nended {wording.when(statement.finished)}{asked}, {_by(statement)}", style="dim")
    return text


def _by(statement: Statement) -> str:
    who = statement.who
    return f"by {who.get('user', 'somebody')} on {who.get('host', 'some machine')}"


def _side(answer: Slice, side: str, title: str, counts: Mapping[str, str]) -> RenderableType:
    below, named = arrangement.spanning(answer, side)
    drawn = Tree(Text(title, style="bold underline"), guide_style="dim")
    if not below.get(answer.root):
        nothing = "nothing that a statement names" if side == UP else "nothing so far"
        drawn.add(Text(nothing, style="dim"))
        return drawn
    branches = [(drawn, answer.root)]
    while branches:
        branch, node = branches.pop()
        shown = below.get(node, [])
        for other in shown[:_N_BRANCHES]:
            label = _label(answer, side, node, other, named.get(other, []), counts)
            branches.append((branch.add(label), other))
        if len(shown) > _N_BRANCHES:
            rest = f"… and {len(shown) - _N_BRANCHES} more, which --format json lists"
            branch.add(Text(rest, style="dim"))
    return drawn


def _label(answer: Slice, side: str, parent: str, node: str, named: list[str], counts: Mapping[str, str]) -> Text:
    """One node: what it is and what passed, when, its settings; and what it has to do with nodes shown elsewhere."""
    this = answer.nodes[node]
    edge = answer.edges[(node, parent) if side == UP else (parent, node)]
    lines = [_first_line(this, edge, side)]
    if this.statement and this.kind == "execution":
        lines += _details(this.statement, counts)
    if side == UP and named:
        others = [a for other in named for a in answer.edges[other, node].artifacts]
        lines.append(Text(f"also reads {_listed(others)}", style="dim"))
    if side == DOWN and this.kind == "execution":
        via = f"through {_listed(edge.artifacts)}" if edge.artifacts else f"has it as {edge.role}"
        others = [
            a
            for (source, target), other in answer.edges.items()
            if target == node and source != parent
            for a in other.artifacts
        ]
        also = f", and through {_listed(others)}" if others else ""
        lines.insert(1, Text(via + also, style="dim"))
    return Text("\n").join(lines)


def _first_line(node: Node, edge: Edge, side: str) -> Text:
    if node.kind == "data":
        return Text.assemble(*_artifacts(edge.artifacts, None), ("  no stage makes it", "dim"))
    statement = node.statement
    if statement is None or node.kind == "version":
        line = Text(node.name, style="bold magenta")
        if statement:
            line.append(f"  registered {wording.when(statement.finished)}", style="dim")
        return line
    stage = [(str(statement.stage), "bold green"), (f" {short(str(statement.execution))}", "green")]
    if side == UP:
        return Text.assemble(*_artifacts(edge.artifacts, statement), ("  made by ", "dim"), *stage)
    made = [Artifact(path, md5) for path, md5 in statement.outputs.items()]
    return Text.assemble(*stage, ("  makes ", "dim"), *_artifacts(made, statement))


def _artifacts(artifacts: Iterable[Artifact], maker: Statement | None) -> list[tuple[str, str]]:
    """Names with short digests and sizes: the first few, and figures only where there is nothing else."""
    everything = sorted(artifacts)
    shown = [a for a in everything if not a.path.startswith("metrics/")] or everything
    parts: list[tuple[str, str]] = []
    for artifact in shown[:_N_OUTPUTS]:
        facts = size_of(maker, artifact) if maker else None
        parts += [(", ", "dim")] if parts else []
        parts += [(artifact.path, "bold"), (f" {short(artifact.digest)}", "cyan")]
        parts += [(f" {wording.size(facts[0])}", "dim")] if facts else []
    n_more = len(everything) - min(len(shown), _N_OUTPUTS)
    if n_more:
        parts.append((f" and {n_more} more", "dim"))
    return parts


def _listed(artifacts: Iterable[Artifact]) -> str:
    """Paths alone: the digest stands where the artifact is made."""
    paths = list(dict.fromkeys(artifact.path for artifact in artifacts))
    shown = ([path for path in paths if not path.startswith("metrics/")] or paths)[:_N_READ]
    rest = f" and {len(paths) - len(shown)} more" if len(paths) > len(shown) else ""
    return ", ".join(shown) + rest


def _details(statement: Statement, counts: Mapping[str, str]) -> list[Text]:
    """When and for how long; what it had of records; its settings and its code."""
    lines = [f"{wording.when(statement.started)}, took {wording.duration(wording.seconds(statement))}"]
    if counted := counts.get(str(statement.execution)):
        lines.append(f"records: {counted}")
    settings = [f"{key} {value}" for key, value in wording.key_settings(statement)]
    n_more = len(wording.flat(statement.parameters)) - len(settings)
    seed = statement.parameters.get("seed")
    if seed is not None:
        settings, n_more = [*settings, f"seed {seed}"], n_more - 1
    more = [f"{n_more} more"] if n_more else []
    if settings or more:
        lines.append(f"settings: {', '.join(settings + more)}")
    return [Text(line, style="dim") for line in lines]


def _circumstances(answer: Slice) -> Text | None:
    """Code and environment of the executions above the target: once where they are the same."""
    made = [s for s in answer.statements() if s.kind == "stage" and answer.nodes[f"statement {s.digest}"].side != DOWN]
    if not made:
        return None
    lines = [Text("Code and environment", style="bold underline")]
    by_code: dict[str, list[str]] = defaultdict(list)
    by_environment: dict[str, list[str]] = defaultdict(list)
    for statement in made:
        by_code[_code(statement)].append(str(statement.stage))
        by_environment[_environment(statement)].append(str(statement.stage))
    for facts, stages in (*by_code.items(), *by_environment.items()):
        of = "" if len(stages) == len(made) and len(made) > 1 else f"  [{', '.join(dict.fromkeys(stages))}]"
        lines.append(Text(facts + of, style="dim"))
    return Text("\n").join(lines)


def _code(statement: Statement) -> str:
    if statement.commit is None:
        return "code of no known commit"
    return f"code of commit {short(statement.commit)}" + (", with changes" if statement.is_dirty else "")


def _environment(statement: Statement) -> str:
    environment = statement.environment
    libraries = environment.get("libraries", {})
    named = [f"{name} {libraries[name]}" for name in _LIBRARIES if name in libraries]
    parts = [f"Python {environment.get('python')}", *named, f"{len(libraries)} libraries in all"]
    where = environment.get("accelerator") or environment.get("processor") or environment.get("machine")
    return f"{', '.join(parts)}; {where}, {environment.get('system')}"


def as_json(answer: Slice) -> dict[str, Any]:
    """Everything in the answer, in full, for a program."""
    return {
        "target": {"kind": answer.target.kind, "name": answer.target.name, "node": answer.root},
        "notes": answer.notes,
        "nodes": [_node_as_json(node) for node in answer.nodes.values()],
        "edges": [
            {
                "source": edge.source,
                "target": edge.target,
                "artifacts": [{"path": a.path, "digest": a.digest} for a in edge.artifacts],
                **({"role": edge.role} if edge.role else {}),
            }
            for edge in answer.edges.values()
        ],
    }


def _node_as_json(node: Node) -> dict[str, Any]:
    found: dict[str, Any] = {"id": node.id, "kind": node.kind, "side": node.side, "name": node.name}
    if node.artifact:
        found["artifact"] = {"path": node.artifact.path, "digest": node.artifact.digest}
    if node.statement:
        found["statement"] = statement_as_json(node.statement)
    return found


def statement_as_json(statement: Statement) -> dict[str, Any]:
    """What a statement says, flattened, without the envelope around it."""
    outputs = {path: Artifact(path, md5) for path, md5 in statement.outputs.items()}
    sizes = {path: size_of(statement, artifact) or (0, 0) for path, artifact in outputs.items()}
    return {
        "digest": statement.digest,
        "sequence": statement.sequence,
        "kind": statement.kind,
        "stage": statement.stage,
        "execution": statement.execution,
        "pipeline": statement.pipeline,
        "started": statement.started,
        "finished": statement.finished,
        "who": statement.who,
        "command": statement.external.get("command"),
        "parameters": wording.flat(statement.parameters),
        "inputs": statement.inputs,
        "outputs": {
            path: {"md5": artifact.digest, "size": sizes[path][0], "n_files": sizes[path][1]}
            for path, artifact in outputs.items()
        },
        "files": {name: {"sha256": d.sha256, "size": d.size} for name, d in statement.subjects.items()},
        "code": {"closure": statement.closure, "commit": statement.commit, "dirty": statement.is_dirty},
        "determines": statement.determines,
        "environment": statement.environment,
        "statements_behind": statement.statements_behind,
    }


def mermaid(answer: Slice) -> str:
    """A flowchart from raw data down, without the edges that follow from others."""
    names = {node: f"n{i}" for i, node in enumerate(answer.nodes)}
    lines = ["flowchart TD"]
    for node in answer.nodes.values():
        lines.append(f"  {names[node.id]}{_mermaid_box(node)}:::{node.side if node.side == TARGET else node.kind}")
    for source, target in arrangement.reduced(answer):
        edge = answer.edges[source, target]
        passed = [artifact.path for artifact in edge.artifacts] or [edge.role]
        label = passed[0] if len(passed) == 1 else f"{passed[0]} and {len(passed) - 1} more"
        text = f'|"{_mermaid_text(label)}"|' if label else ""
        lines.append(f"  {names[source]} -->{text} {names[target]}")
    lines.append("  classDef target stroke-width:3px")
    lines.append("  classDef data stroke-dasharray:4 3")
    return "\n".join(lines) + "\n"


def _mermaid_box(node: Node) -> str:
    text = _mermaid_text(node.name)
    if node.statement:
        text += f"<br/>{wording.when(node.statement.finished)}"
    left, right = {"execution": ("[", "]"), "version": ("([", "])")}.get(node.kind, ("(", ")"))
    return f'{left}"{text}"{right}'


def _mermaid_text(text: str) -> str:
    """Text inside quotes: what Mermaid or HTML would take as a sign is written as an entity."""
    return "".join(c if c.isalnum() or c in " /._-~:@×,()" else f"#{ord(c)};" for c in text)
