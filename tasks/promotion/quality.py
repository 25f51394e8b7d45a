"""How good the models were over time: what each decision of the gate measured, in the order of the decisions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tasks.lineage.statement import Statement
from tasks.promotion import decisions
from tasks.promotion.gate import BETTER
from tasks.registry import CHALLENGER, CHAMPION

_BARS = "▁▂▃▄▅▆▇█"


@dataclass(frozen=True, kw_only=True)
class Point:
    """One decision. figures: metric → {"challenger": …, "champion": …}, the gate's metric first. items: the digest of
    the list of items that they were measured on; figures on other items do not compare."""

    when: str
    action: str
    version: str
    champion: str
    figures: Mapping[str, Mapping[str, float]]
    items: str

    @property
    def promotes(self) -> bool:
        return self.action == decisions.PROMOTED

    def of_champion(self, metric: str) -> float | None:
        """The figure of the model that had the place after the decision; None where it was not measured."""
        figures = self.figures.get(metric)
        return None if figures is None else figures[CHALLENGER if self.promotes else CHAMPION]


def points(statements: Sequence[Statement]) -> list[Point]:
    """The decisions that the gate measured for, oldest first."""
    found = []
    for statement in decisions.history(list(statements)):
        facts = statement.parameters
        if not facts.get("figures"):
            continue  # a person decided, or nothing was trained
        chosen = str(facts["gate"]["metric"])
        names = dict.fromkeys([chosen, *sorted(facts["figures"])])
        found.append(
            Point(
                when=statement.finished,
                action=str(facts["action"]),
                version=str(facts["version"]),
                champion=str(facts["champion"]),
                figures={name: facts["figures"][name] for name in names if name in facts["figures"]},
                items=str(facts["evaluation_set"]),
            )
        )
    return found


def metrics(measured: Sequence[Point]) -> list[str]:
    """Every metric of the decisions, those of the newest first."""
    return list(dict.fromkeys(name for point in reversed(measured) for name in point.figures))


def comparable(measured: Sequence[Point]) -> list[bool]:
    """Whether each decision was made on the items of the one before; True for the first."""
    before = [None, *measured[:-1]]
    return [other is None or other.items == point.items for other, point in zip(before, measured, strict=True)]


def better(metric: str) -> str:
    """In words, which way is good."""
    return {True: "more is better", False: "less is better", None: "no better side"}[BETTER.get(metric)]


def sparkline(values: Sequence[float]) -> str:
    """One bar a value, the lowest to the highest of them; bars of middle height where all are alike."""
    low, high = min(values), max(values)
    if high == low:
        return _BARS[3] * len(values)
    return "".join(_BARS[round((value - low) / (high - low) * (len(_BARS) - 1))] for value in values)
