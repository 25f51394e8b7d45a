"""Several workers train as one does: same curve, same weights, and checkpoints that any number of them goes on from."""

from __future__ import annotations

import dataclasses
import multiprocessing
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from tasks.training.batches import Batch
from tasks.training.checkpoint import Checkpoints
from tasks.training.loop import fit
from tasks.training.parallel import World
from tests.helpers import make_context
from tests.tasks.test_training_loop import RECIPE, Killed, _batch, _loss, _net


def _work(rank: int, size: int, root: str, n_steps: int, killed_at: int, every_s: float) -> None:
    """What one worker does: train the toy model, and keep its weights and losses."""
    folder = Path(root)
    dist.init_process_group("gloo", init_method=f"file://{root}/meeting-{size}-{killed_at}", rank=rank, world_size=size)
    net = _net()

    def report(step, n, values):
        if step == killed_at:
            raise Killed

    context = dataclasses.replace(
        make_context(folder, checkpoint_every_s=every_s, report=report), rank=rank, n_workers=size
    )
    recipe = dataclasses.replace(RECIPE, n_steps=n_steps, accumulation=2)
    try:
        fitted = fit(net, recipe, batch=_batch, loss=_loss, evaluate=lambda: {}, context=context)
    except Killed:
        return
    torch.save({"weights": [p.detach() for p in net.parameters()], "rows": fitted.curve.rows}, folder / f"{rank}.pt")


def _train(root: Path, size: int, *, n_steps: int = 9, killed_at: int = -1, every_s: float = 3600.0) -> list[dict]:
    """Train with `size` workers; what each of them found."""
    root.mkdir(parents=True, exist_ok=True)
    spawn = multiprocessing.get_context("spawn")
    arguments = [(rank, size, str(root), n_steps, killed_at, every_s) for rank in range(size)]
    workers = [spawn.Process(target=_work, args=a) for a in arguments]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
    assert [worker.exitcode for worker in workers] == [0] * size
    if killed_at >= 0:
        return []
    return [torch.load(root / f"{rank}.pt", weights_only=True) for rank in range(size)]


@pytest.mark.parametrize("size", [2, 3])
def test_workers_together_train_as_one_does(tmp_path, size):
    (alone,) = _train(tmp_path / "one", 1)
    together = _train(tmp_path / "many", size)
    for found in together:
        for own, first in zip(found["weights"], together[0]["weights"], strict=True):
            assert torch.equal(own, first)
        for own, single in zip(found["weights"], alone["weights"], strict=True):
            torch.testing.assert_close(own, single, rtol=1e-4, atol=1e-6)
        for row, single in zip(found["rows"], alone["rows"], strict=True):
            assert row == pytest.approx(single, rel=1e-4)


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2), (3, 2)])
def test_another_number_of_workers_goes_on_from_a_checkpoint(tmp_path, before, after):
    whole = _train(tmp_path / "whole", after)
    _train(tmp_path / "cut", before, killed_at=5, every_s=0.0)
    folder = tmp_path / "cut" / ".axon" / "checkpoints" / "test" / "checkpoint-00000004"
    assert len(list(folder.glob("tensors-*.safetensors"))) == before
    resumed = _train(tmp_path / "cut", after)
    for own, single in zip(resumed[0]["weights"], whole[0]["weights"], strict=True):
        torch.testing.assert_close(own, single, rtol=1e-4, atol=1e-6)


def test_the_parts_of_all_workers_are_the_rows_of_the_step():
    rows = Batch(tensors={"x": torch.arange(7)}, n_targets=7, n_tokens=7)
    for size in (1, 2, 3, 5, 9):
        for accumulation in (1, 2, 4):
            parts = [part for rank in range(size) for part in World(rank, size).part(rows, accumulation)]
            assert all(World(rank, size).part(rows, accumulation) for rank in range(size))
            counted = torch.cat([part["x"] for part, weight in parts if weight])
            assert counted.tolist() == list(range(7))


def test_shares_are_balanced_and_complete(tmp_path):
    from tasks.training.checkpoint import _share

    tensors = {f"t{i}": torch.zeros(n) for i, n in enumerate([100, 60, 40, 30, 30, 20, 10, 1])}
    shares = [_share(tensors, World(rank, 3)) for rank in range(3)]
    assert sorted(name for share in shares for name in share) == sorted(tensors)
    sizes = [sum(tensors[name].numel() for name in share) for share in shares]
    assert max(sizes) - min(sizes) <= 20
    assert Checkpoints(tmp_path, every_s=0).load(torch.device("cpu")) is None
