"""PPO by several workers is PPO by one, and their checkpoint is one that any number of workers goes on from."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor

from tasks.files import read_json, write_json
from tasks.steps.ppo import Trainer
from tests.helpers import make_context
from tests.tasks.test_steps_training import _easy_judge, trained  # noqa: F401 fixtures
from tests.tasks.test_training_parallel import SERVER
from tests.tasks.tiny_root import OVERRIDES

N_WORKERS = 3  # minibatches have two rows: for one worker no row is left
N_SAVED = 4  # checkpoints until one is kept: within an iteration, so that its rollouts are resumed too
LORA = {"rank": 4, "alpha": 8, "targets": ["attention", "feed_forward"]}
SETTINGS = OVERRIDES | {"ppo.pretraining_coef": 1.0, "ppo.learning_rate": 1e-3, "ppo.value_learning_rate": 1e-3}


def _trainer(root: Path, lora: dict | None, *, rank: int = 0, size: int = 1) -> Trainer:
    checkpoints = root / ".axon" / "checkpoints" / "ppo"
    context = make_context(root, SETTINGS | {"lora": lora}, checkpoints=checkpoints, checkpoint_every_s=0.0)
    return Trainer(dataclasses.replace(context, rank=rank, n_workers=size))


def _weights(trainer: Trainer) -> dict[str, Tensor]:
    named = {f"{name}.{key}": p for name, model in trainer.models.items() for key, p in model.named_parameters()}
    return {key: p.detach().clone() for key, p in named.items()}


def _work(rank: int, folder: str, lora: dict | None) -> None:
    """What one worker does; the first keeps the checkpoints as they were behind the fourth save."""
    root = Path(folder)
    dist.init_process_group("gloo", init_method=f"file://{root}/meeting", rank=rank, world_size=N_WORKERS)
    trainer = _trainer(root, lora, rank=rank, size=N_WORKERS)
    save, numbers = trainer.checkpoints.save, []

    def save_and_copy(number, *others):
        save(number, *others)
        numbers.append(number)
        if rank == 0 and len(numbers) == N_SAVED:
            shutil.copytree(root / ".axon" / "checkpoints", root / "kept")
        dist.barrier()

    trainer.checkpoints.save = save_and_copy  # type: ignore[method-assign]
    trainer.train()
    save_file(_weights(trainer), root / f"{rank}.safetensors")
    write_json(root / f"{rank}.json", trainer.at.curve.rows)


@pytest.mark.parametrize("lora", [None, LORA])
def test_several_workers_do_what_one_does_and_one_goes_on_from_their_checkpoint(trained, tmp_path, lora):  # noqa: F811
    root = Path(shutil.copytree(trained, tmp_path / "together"))
    workers = [SERVER.Process(target=_work, args=(rank, str(root), lora)) for rank in range(N_WORKERS)]
    for worker in workers:
        worker.start()
    alone = _trainer(Path(shutil.copytree(trained, tmp_path / "alone")), lora)
    before = _weights(alone)
    alone.train()
    for worker in workers:
        worker.join(120)
    assert [worker.exitcode for worker in workers] == [0] * N_WORKERS
    cut = Path(shutil.copytree(trained, tmp_path / "cut"))
    shutil.rmtree(cut / ".axon" / "checkpoints", ignore_errors=True)
    shutil.copytree(root / "kept", cut / ".axon" / "checkpoints")
    resumed = _trainer(cut, lora)
    resumed.resume()
    assert (resumed.at.iteration, resumed.at.n_updates) == (0, N_SAVED - 1)
    assert resumed.at.buffer is not None
    resumed.train()

    weights, curve = _weights(alone), alone.at.curve.rows
    assert max((weights[name] - old).abs().max() for name, old in before.items()) > 1e-3, "nothing was learnt"
    several = [(load_file(root / f"{rank}.safetensors"), read_json(root / f"{rank}.json")) for rank in range(N_WORKERS)]
    for own_weights, own_curve in (*several, (_weights(resumed), resumed.at.curve.rows)):
        for name, own in own_weights.items():
            torch.testing.assert_close(own, weights[name], rtol=1e-3, atol=1e-5)
        for row, single in zip(own_curve, curve, strict=True):
            assert row == pytest.approx(single, rel=1e-3, abs=1e-5)
    for own_weights, _ in several[1:]:
        assert all(torch.equal(own, several[0][0][name]) for name, own in own_weights.items())
