"""`axon lineage`: what made a thing, what it went into, which records are in it, and what differs between two."""

from __future__ import annotations

import io
import json
import re
import sys
from pathlib import Path
from typing import Any

from rich.console import Console, RenderableType

from tasks.errors import UserError
from tasks.files import write_text
from tasks.lineage import drawing, questions
from tasks.lineage.graph import Graph, version_name
from tasks.lineage.store import StatementStore
from tasks.lineage.target import Target
from tasks.lineage.targets import Resolver
from tasks.runtime.checkout import Checkout

_UNBROKEN = 10_000


def show(checkout: Checkout, text: str, *, form: str, up: bool, down: bool, output: Path | None) -> None:
    """Answer for the target `text` as `form`: tree, json, mermaid or html."""
    graph = _graph(checkout)
    target = Resolver(graph, checkout).resolve(text)
    if target.kind == "text":
        _matches(target, form, output)
    elif target.kind == "record" and form in ("tree", "json"):
        _holding(checkout, graph, target, form, output)
    else:
        _slice(checkout, graph, target, form=form, up=up or not down, down=down or not up, output=output)


def _graph(checkout: Checkout) -> Graph:
    return Graph(stored.statement for stored in StatementStore.of(checkout).all())


def _slice(
    checkout: Checkout, graph: Graph, target: Target, *, form: str, up: bool, down: bool, output: Path | None
) -> None:
    uses = {}
    if target.record:
        from tasks.lineage import holders

        uses = holders.uses_of(graph, checkout, target.record)
    answer = questions.ask(graph, target, up=up, down=down, uses=uses)
    if form == "json":
        _write_json(drawing.as_json(answer), output)
    elif form == "mermaid":
        _write(drawing.mermaid(answer), output)
    else:
        from tasks.lineage import holders

        counts = holders.counts(checkout.state, graph.executions)
        if form == "tree":
            _print(drawing.tree(answer, counts, up=up, down=down), output)
        else:
            _page(checkout, answer, counts, output)


def _page(checkout: Checkout, answer: questions.Slice, counts: dict[str, str], output: Path | None) -> None:
    """The page into `output`; without, into a pipe, or to a file of its own for a person at a terminal."""
    from tasks.lineage import page

    if output is None and sys.stdout.isatty():
        name = re.sub(r"[^\w.@-]+", "-", answer.target.name).strip("-")[:80]
        output = checkout.state / "lineage" / f"{name}.html"
    _write(page.render(answer, counts), output)


def _matches(target: Target, form: str, output: Path | None) -> None:
    from tasks.lineage import telling

    if form == "json":
        _write_json({"text": target.name, "records": [found._asdict() for found in target.found]}, output)
    elif form == "tree":
        _print(telling.matches(target.name, target.found, target.notes), output)
    else:
        n = len({found.record_id for found in target.found})
        raise UserError(f"{n:,} records have {target.name}; a drawing is of one: name it by its id (--format tree).")


def _holding(checkout: Checkout, graph: Graph, target: Target, form: str, output: Path | None) -> None:
    from tasks.lineage import holders, telling

    found = holders.holding(graph, checkout, str(target.record))
    if form == "json":
        _write_json(telling.holding_as_json(found), output)
    else:
        _print(telling.holding(found, target.notes), output)


def records(checkout: Checkout, text: str, *, form: str, output: Path | None) -> None:
    """The records that shaped a registered version (or anything else that was made), as text, json or csv."""
    from tasks.lineage import holders, telling

    graph = _graph(checkout)
    target = Resolver(graph, checkout).resolve(text)
    if target.kind not in ("version", "artifact", "execution"):
        raise UserError(f"{text} is no model: name a registered version (axon-chat@1) or an output (models/ppo).")
    starts = list(target.statements)
    name = version_name(starts[0]) if target.kind == "version" else target.name
    found = holders.contents(graph, checkout, name, starts)
    if form == "tree":
        _print(telling.contents(name, found), output)
        return
    ids = holders.record_ids(graph, checkout, starts)
    if form == "csv":
        _write("\n".join(["record_id", *ids, ""]), output)
    else:
        _write_json({**telling.contents_as_json(name, found), "records": list(ids)}, output)


def compare(checkout: Checkout, before: str, after: str, *, form: str, output: Path | None) -> bool:
    """Print what differs between two targets; whether anything does."""
    from tasks.lineage import difference, record_changes, telling

    graph = _graph(checkout)
    resolver = Resolver(graph, checkout)
    targets = resolver.resolve(before), resolver.resolve(after)
    sides = [difference.side_of(graph, target) for target in targets]
    found = difference.compare(
        *sides,
        versions=difference.version_change(*targets),
        records=record_changes.compare(checkout, *sides),
    )
    if form == "json":
        _write_json({"before": targets[0].name, "after": targets[1].name, **found.as_json()}, output)
    else:
        _print(telling.difference(targets[0].name, targets[1].name, found), output)
    return not found.is_empty


def _print(answer: RenderableType, output: Path | None) -> None:
    """To a terminal in colours; to a pipe or a file plain and with unbroken lines."""
    console = Console(highlight=False)
    if output is None and console.is_terminal:
        console.print(answer)
        return
    plain = io.StringIO()
    Console(width=_UNBROKEN, highlight=False, color_system=None, file=plain).print(answer)
    _write("".join(f"{line.rstrip()}\n" for line in plain.getvalue().splitlines()), output)


def _write_json(value: dict[str, Any], output: Path | None) -> None:
    _write(json.dumps(value, indent=2, ensure_ascii=False) + "\n", output)


def _write(text: str, output: Path | None) -> None:
    if output is None:
        sys.stdout.write(text)
        return
    if output.is_dir():
        raise UserError(f"--output {output} is a folder; name a file in it.")
    write_text(output, text)
    print(f"wrote {output}")
