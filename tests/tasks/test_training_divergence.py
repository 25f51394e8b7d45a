"""A step that diverges: stop, left out, or gone back behind; the same after a kill as without one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tasks.errors import Stopped, UserError
from tasks.training.batches import Batch
from tasks.training.loop import Fitted, Recipe, fit
from tests.helpers import make_context

N_STEPS, EVERY = 12, 4


class Line(nn.Module):
    """y = w·x, whose only weight shows which steps counted."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(1, 1))


def train(
    tmp_path,
    bad: dict[int, float],
    *,
    stop_at: int | None = None,
    kill_at: tuple[int, type[Exception]] | None = None,
    **overrides: Any,
) -> tuple[Line, Fitted]:
    """Fit a line; `bad` replaces the input of these steps. Asked to stop behind step `stop_at`, killed in `kill_at`."""
    model, done = Line(), [0]

    def batch(k: int) -> Batch:
        done[0] = k
        if kill_at is not None and k == kill_at[0]:
            raise kill_at[1]
        x = torch.full((1, 1), bad.get(k, 1.0 + k / 10))
        return Batch(tensors={"x": x}, n_targets=1, n_tokens=1)

    def loss(line: nn.Module, rows: dict[str, Tensor]) -> Tensor:
        return ((rows["x"] * line.w - 1.0) ** 2).sum() + 1.0

    recipe = Recipe(
        stage="pretrain", n_steps=N_STEPS, learning_rate=0.1, warmup_steps=1, weight_decay=0.0, clip_norm=1e9,
        evaluate_every=EVERY, precision="float32",
    )  # fmt: skip
    context = make_context(tmp_path, {f"divergence.{k}": v for k, v in overrides.items()})
    context = replace(context, asked_to_stop=lambda: stop_at is not None and done[0] >= stop_at)
    return model, fit(model, recipe, batch=batch, loss=loss, evaluate=dict, context=context)


def test_skip_is_as_if_the_step_had_not_been(tmp_path):
    bad, fitted = train(tmp_path / "bad", {6: float("nan")}, policy="skip")
    assert fitted.left_out == [[6, 6]]
    assert fitted.recorded() == {"left_out_steps": [[6, 6]]}
    assert fitted.tokens == N_STEPS - 1
    assert torch.isfinite(bad.w).all()
    assert [row["step"] for row in fitted.curve.rows if "loss" in row] == [1, 2, 3, 4, 5, 6, 8, 9, 10, 11, 12]


def test_rollback_goes_on_from_the_last_evaluation(tmp_path):
    """Left out are the steps 4 to 6: the weight is that of a run that skips just these three."""
    model, fitted = train(tmp_path / "one", {6: float("inf")}, policy="rollback")
    nan = float("nan")
    skipping, _ = train(tmp_path / "two", {4: nan, 5: nan, 6: nan}, policy="skip")
    assert fitted.left_out == [[4, 6]]
    assert fitted.tokens == N_STEPS - 3
    assert torch.equal(model.w, skipping.w)


def test_an_exploding_loss_is_noticed_behind_fifty_steps(tmp_path, monkeypatch):
    monkeypatch.setattr("tasks.training.divergence.WINDOW", 5)
    monkeypatch.setattr("tasks.training.loop.WINDOW", 5)
    _, fitted = train(tmp_path / "early", {3: 1e3}, policy="skip", explodes_at=10.0)
    assert fitted.left_out == []
    _, fitted = train(tmp_path / "late", {8: 1e3}, policy="skip", explodes_at=10.0)
    assert fitted.left_out == [[8, 8]]
    _, fitted = train(tmp_path / "never", {8: 1e3}, policy="skip", explodes_at=0.0)
    assert fitted.left_out == []


def test_stop_and_too_often_say_where_and_what_to_change(tmp_path):
    with pytest.raises(UserError, match=r"the loss is nan at step 7; training diverged.*pretrain.learning_rate"):
        train(tmp_path / "stop", {6: float("nan")}, policy="stop")
    bad = dict.fromkeys((2, 5, 7), float("nan"))
    with pytest.raises(UserError, match=r"at step 8, with 2 left out before"):
        train(tmp_path / "often", bad, policy="skip", max_times=2)


@pytest.mark.parametrize("killed_at", [7, 9, 11])
def test_a_run_killed_without_a_checkpoint_goes_back_to_the_same_states(tmp_path, killed_at):
    """It starts anew, beside states of later steps that the killed one has left."""
    bad = {6: float("nan"), 9: float("inf")}
    whole, fitted = train(tmp_path / "whole", bad, policy="rollback")

    class Killed(Exception):
        pass

    with pytest.raises(Killed):
        train(tmp_path / "cut", bad, policy="rollback", kill_at=(killed_at, Killed))
    resumed, again = train(tmp_path / "cut", bad, policy="rollback")
    assert torch.equal(whole.w, resumed.w)
    assert (fitted.left_out, fitted.curve.rows) == (again.left_out, again.curve.rows)


@pytest.mark.parametrize("policy", ["skip", "rollback"])
@pytest.mark.parametrize("stop_at", [2, 5, 7, 9])
def test_a_resumed_run_does_the_same(tmp_path, policy, stop_at):
    bad = {6: float("nan"), 9: float("inf")}
    whole, fitted = train(tmp_path / "whole", bad, policy=policy)
    with pytest.raises(Stopped):
        train(tmp_path / "cut", bad, policy=policy, stop_at=stop_at)
    resumed, again = train(tmp_path / "cut", bad, policy=policy)
    assert torch.equal(whole.w, resumed.w)
    assert (fitted.left_out, fitted.tokens, fitted.curve.rows) == (again.left_out, again.tokens, again.curve.rows)
