"""The limits that are drawn beside what was measured, by hand, and figures that depend on the numbers alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import cost_curves
from benchmarks.cost_curves import KINDS, Measured, curves, draw, floor_mib, key_of, limits, short, smallest, table
from benchmarks.flops import Shape

SHAPE = Shape(
    d_model=8, n_layers=2, heads=4, kv_heads=2, d_feed_forward=12, vocab_size=10, seq_len=16, batch_size=2
)  # fmt: skip
PEAK = {"float32": 9312.0, "bfloat16": 18_624.0, "memory": 1e6}


def _found(speed: float) -> Measured:
    return {kind: {"tokens_per_s": speed * (i + 1), "mib": 10.0 + i} for i, kind in enumerate(KINDS)}


def test_limits_by_hand() -> None:
    # 9,312 operations a token (test_train.py); 1,080 parameters of 28 bytes in 0.03024 s, for 32 tokens.
    found = limits(SHAPE, PEAK)
    assert found["products, float32"] == 1.0
    assert found["products, bfloat16"] == 2.0
    assert found["optimiser"] == pytest.approx(32 / 0.03024)
    assert floor_mib(SHAPE) == pytest.approx(1080 * 16 / 1048576)


def test_each_axis_changes_alone() -> None:
    of_parameters, of_length, of_batch = curves()
    assert {s.tokens_per_step for s in of_parameters.shapes} == {s.tokens_per_step for s in of_length.shapes} == {4096}
    assert len({s.n_parameters for s in of_length.shapes + of_batch.shapes}) == 1
    assert {s.seq_len for s in of_parameters.shapes + of_batch.shapes} == {256}
    for curve in (of_parameters, of_length, of_batch):
        numbers = [curve.at(shape) for shape in curve.shapes]
        assert numbers == sorted(set(numbers))
        assert all(shape.d_model % shape.heads == 0 == shape.heads % shape.kv_heads for shape in curve.shapes)


def test_the_same_numbers_give_the_same_figure(tmp_path: Path) -> None:
    curve = smallest(curves()[0])
    draw(curve, [_found(100.0), _found(50.0)], PEAK, tmp_path / "a.svg")
    draw(curve, [_found(100.0), _found(50.0)], PEAK, tmp_path / "b.svg")
    draw(curve, [_found(100.0), _found(60.0)], PEAK, tmp_path / "c.svg")
    first, same, other = ((tmp_path / f"{name}.svg").read_bytes() for name in "abc")
    assert first == same != other


def test_an_earlier_run_is_drawn_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = [_found(100.0), _found(50.0)]
    every: dict[str, Any] = {"peak": PEAK}
    for curve in map(smallest, curves()):
        draw(curve, found, PEAK, tmp_path / "first" / f"cost_{curve.name}.svg")
        points = zip(curve.shapes, found, strict=True)
        every[curve.name] = [{"at": curve.at(s), **{key_of(k): v for k, v in f.items()}} for s, f in points]
    log = tmp_path / "log"
    log.write_text(f"a table\n{json.dumps(every)}\n")
    command = ["cost_curves", "--again", str(log), "--out", str(tmp_path / "again")]
    monkeypatch.setattr("sys.argv", [*command, "--tiny"])
    cost_curves.main()
    for path in (tmp_path / "first").iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes()
    monkeypatch.setattr("sys.argv", command)
    with pytest.raises(SystemExit, match="parameters were measured at other sizes"):
        cost_curves.main()


def test_short_numbers() -> None:
    assert [short(n) for n in (64, 2048, 1_328_256, 78_700_000)] == ["64", "2,048", "1.33 M", "78.7 M"]


def test_the_table_says_how_much_of_the_limit_is_reached() -> None:
    curve = smallest(curves()[2])
    peak = {p: 400.0 * 9 for p in ("float32", "bfloat16")} | {"memory": 1.0}
    line = table(curve, [_found(100.0), _found(50.0)], peak).splitlines()[2]
    at = limits(curve.shapes[0], peak)["products, float32"]
    assert line.startswith(f"| 2 | 100 ({100 / at:.0%}) | 10 | 200 ({200 / at:.0%}) | 11 | 300 ({300 / at:.0%}) | 12 |")
