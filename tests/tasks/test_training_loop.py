"""`fit`: resumed = uninterrupted, accumulated = whole, and a divergence that is named."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from tasks.errors import UserError
from tasks.training.batches import Batch
from tasks.training.loop import Recipe, fit
from tests.helpers import make_context

RECIPE = Recipe(
    stage="toy",
    n_steps=9,
    learning_rate=0.05,
    warmup_steps=2,
    weight_decay=0.1,
    clip_norm=1.0,
    evaluate_every=4,
    precision="float32",
)


class Killed(BaseException):
    pass


def _batch(k):
    generator = torch.Generator().manual_seed(k)
    x = torch.randn(6, 4, generator=generator)
    weights = torch.tensor([1.0, 0, 0, 1, 1, 1])  # parts have unequal numbers of targets
    return Batch(tensors={"x": x, "weights": weights}, n_targets=int(weights.sum()), n_tokens=6)


def _loss(model, rows):
    return ((model(rows["x"]).squeeze(-1) - rows["x"].sum(-1)).square() * rows["weights"]).sum()


def _net():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 8), nn.SiLU(), nn.Linear(8, 1))


def _fit(root, *, recipe=RECIPE, report=None, every_s=0.0, batch=_batch, loss=_loss):
    net = _net()
    context = make_context(
        root, {"divergence.policy": "stop"}, checkpoint_every_s=every_s, **({"report": report} if report else {})
    )
    fitted = fit(
        net, recipe, batch=batch, loss=loss, evaluate=lambda: {"sum": net[0].weight.sum().item()}, context=context
    )
    return net, fitted


@pytest.mark.parametrize("killed_at", [1, 4, 5, 9])
def test_a_killed_and_resumed_run_equals_an_uninterrupted_one(tmp_path, killed_at):
    whole, fitted = _fit(tmp_path / "whole")
    seen = []

    def kill(step, n_steps, values):
        seen.append(step)
        if step == killed_at:
            raise Killed

    with pytest.raises(Killed):
        _fit(tmp_path / "cut", report=kill)
    seen.clear()
    resumed, again = _fit(tmp_path / "cut", report=lambda step, n, v: seen.append(step) if "loss" in v else None)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))
    assert again.curve.rows == fitted.curve.rows
    assert again.tokens == fitted.tokens == 54
    assert seen[0] == killed_at  # the update that was cut off is done again, none before it


@pytest.mark.parametrize("killed_at", [0, 2])
def test_a_model_that_was_read_for_evaluation_is_trained_in_training_mode_from_the_first_step(tmp_path, killed_at):
    modes = []

    def loss(model, rows):
        modes.append(model.training)
        return _loss(model, rows)

    def run(report):
        context = make_context(tmp_path, checkpoint_every_s=0.0, report=report)
        fit(_net().eval(), RECIPE, batch=_batch, loss=loss, evaluate=lambda: {"none": 0.0}, context=context)

    def kill(step, n_steps, values):
        if killed_at and step == killed_at:
            raise Killed

    if killed_at:
        with pytest.raises(Killed):
            run(kill)
    run(lambda *_: None)
    assert len(modes) == 9 + bool(killed_at)
    assert all(modes)


def test_the_curve_has_a_row_per_step_and_validation_where_it_was_due(tmp_path):
    _, fitted = _fit(tmp_path)
    assert [row["step"] for row in fitted.curve.rows] == list(range(10))
    assert [row["step"] for row in fitted.curve.rows if "validation_sum" in row] == [0, 4, 8, 9]
    fitted.curve.write(tmp_path / "curve.csv")
    lines = (tmp_path / "curve.csv").read_text().splitlines()
    assert lines[0] == "step,tokens,loss,learning_rate,grad_norm,validation_sum"
    assert len(lines) == 11


def test_validation_is_reported_where_it_is_due_and_after_the_step(tmp_path):
    told = []
    _, fitted = _fit(tmp_path, report=lambda step, n_steps, values: told.append((step, n_steps, values)))
    assert [(step, "validation_sum" in values) for step, _, values in told if step in (0, 4, 5, 9)] == [
        (0, True), (4, False), (4, True), (5, False), (9, False), (9, True),
    ]  # fmt: skip
    last = told[-1]
    assert last == (9, 9, {"validation_sum": fitted.curve.last("validation_sum")})


@pytest.mark.parametrize("accumulation", [2, 3, 6])
def test_accumulation_changes_nothing_but_memory(tmp_path, accumulation):
    whole, fitted = _fit(tmp_path / "whole")
    parts, again = _fit(tmp_path / "parts", recipe=dataclasses.replace(RECIPE, accumulation=accumulation))
    for a, b in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    for a, b in zip(fitted.curve.rows[1:], again.curve.rows[1:], strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_is_named(tmp_path, bad):
    def loss(model, rows):
        return _loss(model, rows) * (bad if torch.equal(rows["x"], _batch(3).tensors["x"]) else 1.0)

    with pytest.raises(
        UserError, match=r"toy: the loss is (nan|inf) at step 4; .*toy.learning_rate below \S+ \(or"
    ) as caught:
        _fit(tmp_path, loss=loss)
    assert caught.value.exit_code == 1


def test_a_damaged_last_checkpoint_costs_a_step_not_the_result(tmp_path):
    whole, _ = _fit(tmp_path / "whole")

    def kill(step, n_steps, values):
        if step == 6:
            raise Killed

    with pytest.raises(Killed):
        _fit(tmp_path / "cut", report=kill)
    last = max((tmp_path / "cut" / ".axon" / "checkpoints" / "test").glob("checkpoint-*"))
    (last / "tensors-00001-of-00001.safetensors").write_bytes(b"damaged")
    resumed, _ = _fit(tmp_path / "cut")
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))
