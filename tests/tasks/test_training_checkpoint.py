"""A damaged checkpoint is found by its digest and never used; the one before is."""

from __future__ import annotations

import logging

import pytest
import torch

from tasks.errors import Stopped
from tasks.training.checkpoint import Checkpoints

CPU = torch.device("cpu")


def _save(directory, n):
    checkpoints = Checkpoints(directory, every_s=0)
    for number in range(1, n + 1):
        checkpoints.save(number, {"x": torch.full((3,), float(number))}, {"step": number, "loss": 0.1 + number})
    return checkpoints


def test_the_newest_comes_back_and_two_are_kept(tmp_path):
    checkpoints = _save(tmp_path, 4)
    tensors, state = checkpoints.load(CPU)
    assert tensors["x"].tolist() == [4.0] * 3
    assert state == {"step": 4, "loss": 4.1}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint-00000003", "checkpoint-00000004"]


def test_nothing_saved_is_none(tmp_path):
    assert Checkpoints(tmp_path / "absent", every_s=0).load(CPU) is None


@pytest.mark.parametrize("file", ["tensors-00001-of-00001.safetensors", "state.json"])
@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_a_damaged_checkpoint_falls_back_to_the_one_before_and_says_so(tmp_path, caplog, file, damage):
    checkpoints = _save(tmp_path, 2)
    path = tmp_path / "checkpoint-00000002" / file
    content = path.read_bytes()
    if damage == "flip":
        path.write_bytes(content.replace(b"2", b"3") if file == "state.json" else content[:-1] + b"\x01")
    elif damage == "truncate":
        path.write_bytes(content[: len(content) // 2])
    else:
        path.unlink()
    with caplog.at_level(logging.WARNING):
        _, state = checkpoints.load(CPU)
    assert state["step"] == 1
    assert "checkpoint-00000002 is damaged" in caplog.text


def test_the_cadence_is_in_seconds(tmp_path):
    assert Checkpoints(tmp_path, every_s=0).is_due()
    assert not Checkpoints(tmp_path, every_s=3600).is_due()


def test_asked_to_stop_it_saves_first_and_then_says_so(tmp_path):
    checkpoints = Checkpoints(tmp_path, every_s=3600, asked_to_stop=lambda: True)
    assert checkpoints.is_due()
    with pytest.raises(Stopped, match="checkpoint 7"):
        checkpoints.save(7, {"a": torch.ones(2)}, {"step": 7})
    loaded = Checkpoints(tmp_path, every_s=3600).load(CPU)
    assert loaded is not None
    assert loaded[1] == {"step": 7}
