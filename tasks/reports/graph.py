"""The stage graph, drawn. A test compares its edges with `dvc.yaml`."""

from __future__ import annotations

from dataclasses import dataclass

WIDTH = 348
NODE_WIDTH, NODE_HEIGHT, ROW = 124, 30, 54
LEFT, CENTRE, RIGHT = 82, 174, 266


@dataclass(frozen=True, kw_only=True)
class Node:
    """One stage: what it does in a few words, the stages it follows, and where it stands in the drawing."""

    name: str
    does: str
    after: tuple[str, ...]
    x: int
    row: int


NODES = (
    Node(name="data", does="reads, cleans, de-duplicates and splits the sources", after=(), x=CENTRE, row=0),
    Node(name="tokenizer", does="learns byte pairs, stores the text as tokens", after=("data",), x=CENTRE, row=1),
    Node(name="pretrain", does="learns to continue text", after=("tokenizer",), x=CENTRE, row=2),
    Node(name="sft", does="learns to answer, from demonstrations", after=("pretrain",), x=CENTRE, row=3),
    Node(name="preferences", does="samples answers and has them ranked", after=("sft",), x=CENTRE, row=4),
    Node(name="reward_model", does="learns to tell better answers", after=("preferences",), x=LEFT, row=5),
    Node(name="dpo", does="learns from the rankings directly", after=("preferences",), x=RIGHT, row=5),
    Node(name="ppo", does="learns from the reward model's marks", after=("reward_model",), x=LEFT, row=6),
    Node(
        name="sft_continued",
        does="the control: more SFT, as many tokens as DPO",
        after=("sft", "dpo"),
        x=RIGHT,
        row=6,
    ),
    Node(
        name="evaluate",
        does="measures all models on held-out prompts and text",
        after=("ppo", "sft_continued"),
        x=CENTRE,
        row=7,
    ),
    Node(name="report", does="writes this page", after=("evaluate",), x=CENTRE, row=8),
)
BY_NAME = {node.name: node for node in NODES}


def _top(node: Node) -> int:
    return 4 + node.row * ROW


def _edge(source: Node, target: Node) -> str:
    x1, y1, x2, y2 = source.x, _top(source) + NODE_HEIGHT, target.x, _top(target) - 4
    if target.row - source.row > 1:  # around the nodes between
        x1, y1 = source.x + NODE_WIDTH // 2, _top(source) + NODE_HEIGHT // 2
        x2, y2 = target.x + NODE_WIDTH // 2 + 4, _top(target) + NODE_HEIGHT // 2
        far = WIDTH - 4
        corner = f"M{x1} {y1}H{far - 8}Q{far} {y1} {far} {y1 + 8}V{y2 - 8}Q{far} {y2} {far - 8} {y2}H{x2}"
        return f'<path d="{corner}" marker-end="url(#graph-arrow)"/>'
    middle = (y1 + y2) // 2
    bend = f"M{x1} {y1}V{y2}" if x1 == x2 else f"M{x1} {y1}C{x1} {middle + 4} {x2} {middle - 4} {x2} {y2}"
    return f'<path d="{bend}" marker-end="url(#graph-arrow)"/>'


def draw() -> str:
    """The graph as SVG, in colours of the page."""
    height = _top(NODES[-1]) + NODE_HEIGHT + 4
    edges = "".join(_edge(BY_NAME[name], node) for node in NODES for name in node.after)
    boxes = "".join(
        f'<rect x="{node.x - NODE_WIDTH // 2}" y="{_top(node)}" width="{NODE_WIDTH}" height="{NODE_HEIGHT}" '
        f'rx="5"/><text x="{node.x}" y="{_top(node) + 19}">{node.name}</text>'
        for node in NODES
    )
    return (
        f'<svg class="graph" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="The stages and what follows what">'
        '<defs><marker id="graph-arrow" viewBox="0 0 6 6" refX="4.5" refY="3" markerWidth="6" markerHeight="6" '
        'orient="auto"><path class="head" d="M0 0L6 3L0 6z"/></marker></defs>'
        f'<g class="edges">{edges}</g><g class="nodes">{boxes}</g></svg>'
    )
