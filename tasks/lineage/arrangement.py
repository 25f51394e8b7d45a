"""How the nodes of an answer are arranged for a drawing: as a tree in which each stands once, or in layers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

from tasks.lineage.questions import UP, Slice


def _following(answer: Slice, side: str) -> dict[str, list[str]]:
    """What comes after each node away from the target; executions nearest in time first."""
    found = {}
    for node, nexts in answer.next_to(side).items():
        found[node] = sorted(nexts, key=lambda other: _place(answer, side, other))
    return found


def _place(answer: Slice, side: str, node: str) -> tuple[int, str]:
    """Executions in the order of the chain, upwards from the newest; then what has no statement."""
    statement = answer.nodes[node].statement
    if statement is None:
        return 1 << 60, node
    return (-statement.sequence if side == UP else statement.sequence), node


def _order(root: str, following: Mapping[str, Sequence[str]]) -> list[str]:
    """All nodes below `root`, each before those that follow it (a circle is cut where it closes)."""
    done: list[str] = []
    seen = {root}
    waiting = [(root, iter(following.get(root, ())))]
    while waiting:
        node, rest = waiting[-1]
        unseen = next((other for other in rest if other not in seen), None)
        if unseen is None:
            done.append(node)
            waiting.pop()
        else:
            seen.add(unseen)
            waiting.append((unseen, iter(following.get(unseen, ()))))
    return done[::-1]


def spanning(answer: Slice, side: str) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """A tree from the target to one side: (the nodes that stand below each, those of which it only says so).

    Every node stands below the last of those before it, so that a chain reads as a chain.
    """
    following = _following(answer, side)
    place = {node: i for i, node in enumerate(_order(answer.root, following))}
    before: dict[str, list[str]] = defaultdict(list)
    for node, nexts in following.items():
        for other in nexts:
            if node in place and place[node] < place[other]:
                before[other].append(node)
    chosen = {node: max(nodes, key=place.__getitem__) for node, nodes in before.items()}
    below = {node: [o for o in nexts if chosen.get(o) == node] for node, nexts in following.items()}
    named = {node: [o for o in nexts if chosen.get(o) != node] for node, nexts in following.items()}
    return below, named


def reduced(answer: Slice) -> list[tuple[str, str]]:
    """The edges without those that follow from others: A → C where there are A → B and B → C."""
    following: dict[str, list[str]] = defaultdict(list)
    for source, target in answer.edges:
        following[source].append(target)
    place = _places(answer, following)
    reached: dict[str, set[str]] = {}
    kept = []
    for node in sorted(place, key=place.__getitem__, reverse=True):
        nexts = sorted({o for o in following[node] if place[o] > place[node]}, key=place.__getitem__)
        beyond: set[str] = set()
        for other in nexts:
            if other not in beyond:
                kept.append((node, other))
            beyond |= {other} | reached[other]
        reached[node] = beyond
    return sorted(kept, key=lambda edge: (place[edge[0]], place[edge[1]]))


def _places(answer: Slice, following: Mapping[str, Sequence[str]]) -> dict[str, int]:
    ends = {target for _, target in answer.edges}
    starts = [node for node in answer.nodes if node not in ends] or list(answer.nodes)
    ordered = _order("", {"": starts, **following})
    return {node: i for i, node in enumerate(ordered) if node}


def layers(answer: Slice) -> list[list[str]]:
    """The nodes in layers from raw data down, each in the one after the last of those that it follows."""
    following: dict[str, list[str]] = defaultdict(list)
    for source, target in answer.edges:
        following[source].append(target)
    place = _places(answer, following)
    layer = dict.fromkeys(place, 0)
    for node in sorted(place, key=place.__getitem__):
        for other in following[node]:
            if place[other] > place[node]:
                layer[other] = max(layer[other], layer[node] + 1)
    rows: list[list[str]] = [[] for _ in range(max(layer.values(), default=0) + 1)]
    for node in place:
        rows[layer[node]].append(node)
    return rows
