"""Quality over time, from decisions written by hand."""

from __future__ import annotations

from typing import Any

import pytest

from flows import live, promotion
from tasks.promotion import quality
from tests.tasks.lineage.chain_by_hand import Chain, small


def measured(*, items: str = "a" * 64, metric: str = "score", **pairs: tuple[float, float]) -> dict[str, Any]:
    """What the gate says of (challenger, champion) for each metric."""
    figures = {name: {"challenger": new, "champion": old} for name, (new, old) in pairs.items()}
    return {"gate": {"metric": metric}, "figures": figures, "evaluation_set": items}


@pytest.fixture
def chain() -> Chain:
    """Promoted, kept, nothing new, promoted by a person, promoted on other items."""
    chain = small()
    chain.decide("promoted", "2", "1", **measured(score=(0.50, 0.25), bits_per_byte=(2.0, 2.5)))
    chain.decide("kept", "3", "2", **measured(score=(0.30, 0.50), bits_per_byte=(3.0, 2.0)))
    chain.decide("not retrained", "2", "2", new={"n_new": 0})
    chain.decide("promoted", "3", "2", forced=True)
    chain.decide("promoted", "4", "3", **measured(items="b" * 64, score=(0.75, 0.30), bits_per_byte=(1.0, 3.0)))
    return chain


def test_a_point_for_each_decision_that_measured_and_the_champion_is_who_has_the_place_then(chain: Chain):
    found = quality.points(chain.statements)
    assert [(p.action, p.version, p.champion) for p in found] == [
        ("promoted", "2", "1"),
        ("kept", "3", "2"),
        ("promoted", "4", "3"),
    ]
    assert [p.of_champion("score") for p in found] == [0.50, 0.50, 0.75]
    assert [p.of_champion("bits_per_byte") for p in found] == [2.0, 2.0, 1.0]
    assert [p.of_champion("length") for p in found] == [None, None, None]
    assert quality.comparable(found) == [True, True, False]


def test_the_metric_of_the_gate_comes_first(chain: Chain):
    assert quality.metrics(quality.points(chain.statements)) == ["score", "bits_per_byte"]
    chain.decide("kept", "5", "4", **measured(metric="win_rate", bits_per_byte=(1.0, 1.0), win_rate=(0.4, 0.6)))
    assert quality.metrics(quality.points(chain.statements)) == ["win_rate", "bits_per_byte", "score"]


@pytest.mark.parametrize(
    ("values", "bars"), [([0.0, 0.5, 1.0], "▁▅█"), ([3.0, 3.0], "▄▄"), ([2.0, 1.0], "█▁"), ([7.0], "▄")]
)
def test_bars_go_from_the_lowest_to_the_highest(values: list[float], bars: str):
    assert quality.sparkline(values) == bars


def rows(told: str, title: str) -> list[list[str]]:
    """The words of the rows below a title."""
    lines = told[told.index(title) :].splitlines()
    return [line.split() for line in lines[1:]]


@pytest.mark.parametrize("shown_by", ["history", "live"])
def test_history_and_the_live_report_show_it(chain: Chain, tmp_path, capsys, monkeypatch, shown_by: str):
    monkeypatch.setenv("COLUMNS", "140")
    checkout = chain.write(tmp_path)
    promotion.history(checkout, form="text") if shown_by == "history" else live.show(checkout)
    told = capsys.readouterr().out
    found = rows(told, "Quality over time")
    assert ["when", "(UTC)", "version", "decision", "score", "bits_per_byte"] in found
    by_version = {row[2]: row[2:] for row in found if len(row) > 2 and row[0].startswith("2026-")}
    assert by_version == {
        "2": ["2", "(1)", "promoted", "0.5", "(0.25)", "2", "(2.5)"],
        "3": ["3", "(2)", "kept", "0.3", "(0.5)", "3", "(2)"],
        "4": ["4", "(3)", "promoted", "*", "0.75", "(0.3)", "1", "(3)"],
    }
    assert "* measured on other items" in told
    assert "score of the champion (more is better): ▁▁█  0.5 → 0.75 over 3 decisions, 0.5 to 0.75" in told
    assert "bits_per_byte of the champion (less is better): ██▁  2 → 1 over 3 decisions, 1 to 2" in told


def test_without_a_measured_decision_there_is_no_table(tmp_path, capsys):
    chain = small()
    chain.decide("promoted", "2", "1", forced=True)
    promotion.history(chain.write(tmp_path), form="text")
    told = capsys.readouterr().out
    assert "promoted, forced" in told
    assert "Quality" not in told
