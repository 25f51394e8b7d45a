"""The graph of an answer as SVG: layers from raw data down, lines around the boxes between."""

from __future__ import annotations

import itertools
from collections import defaultdict
from dataclasses import dataclass

from markupsafe import Markup

from tasks.lineage import arrangement
from tasks.lineage.questions import Node, Slice
from tasks.lineage.wording import when

WIDTH, HEIGHT, GAP, ROW = 132, 44, 12, 78
_NARROW = 14  # what a line takes that passes between boxes
_MARGIN = 5
_N_CHARS = 18  # in a box, in its type
_N_SWEEPS = 4


@dataclass
class Place:
    """One box, or a bend of a line (`node` is None) in a row; x is its middle."""

    key: str
    node: Node | None
    row: int
    x: float = 0.0

    @property
    def width(self) -> int:
        return WIDTH if self.node else _NARROW


def draw(answer: Slice, anchors: dict[str, str]) -> Markup:
    """`anchors`: node id → the id of the element that a click on its box leads to."""
    rows, lines = _rows(answer)
    _arrange(rows, lines)
    width = max(max(p.x + p.width / 2 for p in row) for row in rows) + _MARGIN
    height = len(rows) * ROW - (ROW - HEIGHT) + 2 * _MARGIN
    places = {place.key: place for row in rows for place in row}
    paths = Markup("").join(_line([places[key] for key in line]) for line in lines)
    boxes = Markup("").join(
        _box(place, anchors.get(place.key, "")) for place in places.values() if place.node is not None
    )
    return Markup(
        '<svg class="graph" style="--w:{w}" width="{w}" height="{h}" viewBox="0 0 {w} {h}" role="img" '
        'aria-label="What was made from what; the steps below say the same in words">'
        '<defs><marker id="arrow" viewBox="0 0 6 6" refX="4.5" refY="3" markerWidth="7" markerHeight="7" '
        'orient="auto"><path class="head" d="M0 0L6 3L0 6z"/></marker></defs>'
        '<g class="edges">{paths}</g>{boxes}</svg>'
    ).format(w=round(width), h=round(height), paths=paths, boxes=boxes)


def _rows(answer: Slice) -> tuple[list[list[Place]], list[list[str]]]:
    """The places row by row, and each line as the keys of the places it joins; long lines get a bend in every row."""
    rows = [
        [Place(node, answer.nodes[node], i) for node in nodes] for i, nodes in enumerate(arrangement.layers(answer))
    ]
    row_of = {place.key: place.row for row in rows for place in row}
    lines = []
    for source, target in arrangement.reduced(answer):
        line = [source]
        for row in range(row_of[source] + 1, row_of[target]):
            bend = Place(f"bend {row} {source} {target}", None, row)
            rows[row].append(bend)
            line.append(bend.key)
        lines.append([*line, target])
    return rows, lines


def _arrange(rows: list[list[Place]], lines: list[list[str]]) -> None:
    """Order each row by the middle of what its places are joined to, downwards and back (Sugiyama et al. 1981)."""
    near: dict[str, list[str]] = defaultdict(list)
    for line in lines:
        for above, below in itertools.pairwise(line):
            near[above].append(below)
            near[below].append(above)
    places = {place.key: place for row in rows for place in row}
    widest = max(_width(row) for row in rows)
    for row in rows:
        _spread(row, widest)
    for sweep in range(_N_SWEEPS):
        downwards = sweep % 2 == 0
        for row in rows if downwards else rows[::-1]:
            for place in row:
                side = [places[k] for k in near[place.key] if (places[k].row < place.row) == downwards]
                place.x = sum(other.x for other in side) / len(side) if side else place.x
            row.sort(key=lambda place: place.x)
            _spread(row, widest)


def _width(row: list[Place]) -> float:
    return sum(place.width for place in row) + GAP * (len(row) - 1)


def _spread(row: list[Place], widest: float) -> None:
    x = _MARGIN + (widest - _width(row)) / 2
    for place in row:
        place.x = x + place.width / 2
        x += place.width + GAP


def _top(place: Place) -> float:
    return _MARGIN + place.row * ROW


def _line(places: list[Place]) -> Markup:
    """From the lower edge of the first box to the upper edge of the last, straight through the bends."""
    start = places[0]
    path = f"M{start.x:.0f} {_top(start) + HEIGHT:.0f}"
    x, y = start.x, _top(start) + HEIGHT
    for place in places[1:]:
        top = _top(place) - (0 if place.node is None else 3)
        middle = (y + top) / 2
        path += f"C{x:.0f} {middle:.0f} {place.x:.0f} {middle:.0f} {place.x:.0f} {top:.0f}"
        x, y = place.x, top
        if place.node is None:
            y = _top(place) + HEIGHT
            path += f"V{y:.0f}"
    return Markup('<path d="{path}" marker-end="url(#arrow)"/>').format(path=path)


def _box(place: Place, anchor: str) -> Markup:
    node = place.node
    assert node is not None
    left, top = place.x - WIDTH / 2, _top(place)
    if node.statement is not None and node.kind == "execution":
        first, second = str(node.statement.stage), when(node.statement.started).removesuffix(" UTC")
    elif node.statement is not None:
        first, second = node.name, when(node.statement.finished).removesuffix(" UTC")
    else:
        words = node.name.split(" ")
        first, second = words[0], " ".join(words[1:])
    box = Markup(
        '<g class="node {kind} {side}" data-card="{anchor}"><title>{name}</title>'
        '<rect x="{left}" y="{top}" width="{w}" height="{h}" rx="6"/>'
        '<text x="{x}" y="{y1}">{first}</text><text class="when" x="{x}" y="{y2}">{second}</text></g>'
    ).format(
        kind=node.kind,
        side=node.side,
        anchor=anchor,
        name=node.name,
        left=round(left),
        top=round(top),
        w=WIDTH,
        h=HEIGHT,
        x=round(place.x),
        y1=round(top + 19),
        y2=round(top + 35),
        first=_cut(first),
        second=_cut(second),
    )
    return Markup('<a href="#{}">{}</a>').format(anchor, box) if anchor else box


def _cut(text: str) -> str:
    """The end of a long path says more than its beginning."""
    return text if len(text) <= _N_CHARS else "…" + text[-(_N_CHARS - 1) :]
