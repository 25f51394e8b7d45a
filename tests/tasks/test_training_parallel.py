"""Several workers train as one does: same curve, same weights, and checkpoints that any number of them goes on from."""

from __future__ import annotations

import dataclasses
import multiprocessing
import shutil
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file

from axon_models.presets import build, config_of
from tasks.files import read_json, write_json
from tasks.parameter_sections import Lora
from tasks.training.batches import Batch
from tasks.training.checkpoint import Checkpoints, _share
from tasks.training.loop import fit
from tasks.training.lora import Adapters
from tasks.training.losses import stream_loss
from tasks.training.parallel import World, is_part
from tests.helpers import make_context
from tests.tasks.test_training_loop import RECIPE, Killed, _batch, _loss, _net


def _decoder(preset="x_llama"):
    config = config_of(preset, vocab_size=64, d_model=32, n_layers=2, heads=4, d_feed_forward=64, max_positions=32)
    model = build(config)
    model.init_weights(torch.Generator().manual_seed(2))
    return model


def _adapted():
    model = _decoder()
    Adapters(model, Lora(rank=4, alpha=8, targets=["attention", "feed_forward"]), seed=3)
    return model


def _tokens(k):
    both = torch.randint(64, (6, 17), generator=torch.Generator().manual_seed(k))
    return Batch(tensors={"tokens": both[:, :-1], "targets": both[:, 1:]}, n_targets=96, n_tokens=96)


# Forks of a process that has imported this once: seconds less for each worker.
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload([__name__, "torch.distributed.fsdp", "torch.distributed.pipelining"])
KINDS = {
    "toy": (_net, _batch, _loss),
    "decoder": (_decoder, _tokens, stream_loss),
    "adapters": (_adapted, _tokens, stream_loss),
    **{
        preset: (partial(_decoder, preset), _tokens, stream_loss)
        for preset in ("phi", "gpt2", "mixtral", "transformer_xl")
    },
}


def _work(
    rank: int,
    size: int,
    root: str,
    kind: str,
    n_steps: int,
    killed_at: int,
    every_s: float,
    apart: bool,
    partition: str,
    recompute: bool,
) -> None:
    """What one worker does: train a small model, and keep its weights and losses."""
    folder, (make, batch, loss) = Path(root), KINDS[kind]
    dist.init_process_group("gloo", init_method=f"file://{root}/meeting-{size}-{killed_at}", rank=rank, world_size=size)
    net = make()

    def report(step, n, values):
        if step == killed_at:
            raise Killed
        held = [p.to_local() if is_part(p) else p for p in net.parameters() if not p.is_meta]
        write_json(folder / f"{rank}.held.json", sum(p.numel() for p in held))

    context = dataclasses.replace(
        make_context(folder, checkpoint_every_s=every_s, report=report), rank=rank, n_workers=size
    )
    if apart:
        context = dataclasses.replace(context, checkpoints=node(folder, rank), node_rank=0)
    runtime = context.params.runtime.model_copy(update={"activation_checkpointing": recompute})
    params = context.params.model_copy(update={"partition": partition, "runtime": runtime})
    context = dataclasses.replace(context, params=params)
    recipe = dataclasses.replace(RECIPE, n_steps=n_steps, accumulation=2)

    def evaluate():
        return {"loss": loss(net, batch(99).tensors).item()}

    try:
        fitted = fit(net, recipe, batch=batch, loss=loss, evaluate=evaluate, context=context)
    except Killed:
        return
    save_file({name: p.detach() for name, p in net.named_parameters()}, folder / f"{rank}.safetensors")
    write_json(folder / f"{rank}.json", fitted.curve.rows)


def node(root: Path, rank: int) -> Path:
    """The folder of checkpoints of a worker on a node of its own."""
    return root / f"node-{rank}" / "checkpoints"


def _train(
    root: Path,
    size: int,
    *,
    kind: str = "toy",
    n_steps: int = 9,
    killed_at: int = -1,
    every_s: float = 3600.0,
    apart: bool = False,
    partition: str = "none",
    recompute: bool = False,
) -> list[tuple[dict, list]]:
    """Train with `size` workers; weights and curve of each of them. apart: on nodes that share no disk."""
    root.mkdir(parents=True, exist_ok=True)
    same = (size, str(root), kind, n_steps, killed_at, every_s, apart, partition, recompute)
    workers = [SERVER.Process(target=_work, args=(rank, *same)) for rank in range(size)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
    assert [worker.exitcode for worker in workers] == [0] * size
    if killed_at >= 0:
        return []
    return [(load_file(root / f"{rank}.safetensors"), read_json(root / f"{rank}.json")) for rank in range(size)]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., list[tuple[dict, list]]]:
    """Training of some kind by some workers without a break, made once."""

    @cache
    def trained(size: int, kind: str = "toy") -> list[tuple[dict, list]]:
        return _train(tmp_path_factory.mktemp("undisturbed"), size, kind=kind)

    return trained


def test_workers_together_train_as_one_does(undisturbed, tmp_path):
    ((weights, curve),) = undisturbed(1)
    together = _train(tmp_path / "many", 3)
    for own_weights, own_curve in together:
        for name, own in own_weights.items():
            assert torch.equal(own, together[0][0][name])
            torch.testing.assert_close(own, weights[name], rtol=1e-4, atol=1e-6)
        for row, single in zip(own_curve, curve, strict=True):
            assert row == pytest.approx(single, rel=1e-4)


def test_two_workers_with_half_the_batch_have_the_curve_of_one_for_fifty_steps(tmp_path):
    ((_, alone),) = _train(tmp_path / "one", 1, kind="decoder", n_steps=50)
    together = _train(tmp_path / "two", 2, kind="decoder", n_steps=50)[0][1]
    losses = [(row["loss"], single["loss"]) for row, single in zip(together, alone, strict=True) if row["step"]]
    assert len(losses) == 50
    assert max(abs(own - single) for own, single in losses) < 1e-3
    assert losses[0][0] - losses[-1][0] > 0.01, "nothing was learnt"


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_another_number_of_workers_goes_on_from_a_checkpoint(undisturbed, tmp_path, before, after):
    whole = undisturbed(after)
    _train(tmp_path / "cut", before, killed_at=5, every_s=0.0)
    folder = tmp_path / "cut" / ".axon" / "checkpoints" / "test" / "checkpoint-00000004"
    assert len(list(folder.glob("tensors-*.safetensors"))) == before
    resumed = _train(tmp_path / "cut", after)
    for name, own in resumed[0][0].items():
        torch.testing.assert_close(own, whole[0][0][name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("partition", ["shard", "pipeline"])
def test_a_model_in_parts_trains_as_a_whole_one_and_one_worker_goes_on(undisturbed, tmp_path, partition):
    ((weights, curve),) = undisturbed(1, "decoder")
    together = _train(tmp_path / "parts", 2, kind="decoder", partition=partition)
    in_blocks = sum(tensor.numel() for name, tensor in weights.items() if name.startswith("blocks."))
    outside = sum(tensor.numel() for tensor in weights.values()) - in_blocks
    held = [read_json(tmp_path / "parts" / f"{rank}.held.json") for rank in range(2)]
    assert sum(held) == in_blocks + 2 * outside, "each worker holds a part of the blocks"
    for own_weights, own_curve in together:
        assert own_weights.keys() == weights.keys()
        for name, own in own_weights.items():
            assert torch.equal(own, together[0][0][name])
            torch.testing.assert_close(own, weights[name], rtol=1e-3, atol=1e-5)
        assert [row["step"] for row in own_curve] == [row["step"] for row in curve]
        for row, single in zip(own_curve, curve, strict=True):
            assert row == pytest.approx(single, rel=1e-3)
    _train(tmp_path / "cut", 2, kind="decoder", partition=partition, killed_at=5, every_s=0.0)
    resumed = _train(tmp_path / "cut", 1, kind="decoder", partition=partition)
    for name, own in resumed[0][0].items():
        torch.testing.assert_close(own, weights[name], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("preset", "partition"),
    [
        ("phi", "pipeline"),
        ("gpt2", "pipeline"),
        ("mixtral", "shard"),
        ("mixtral", "none"),
        ("adapters", "none"),
        ("transformer_xl", "none"),
        ("transformer_xl", "shard"),
        ("transformer_xl", "pipeline"),
    ],
)
def test_other_presets_train_with_two_workers_as_with_one(tmp_path, preset, partition):
    """An output with a bias and learned positions through a pipeline, experts and their penalty, adapters, memory."""
    ((weights, curve),) = _train(tmp_path / "one", 1, kind=preset, n_steps=3)
    for own_weights, own_curve in _train(tmp_path / "two", 2, kind=preset, n_steps=3, partition=partition):
        for name, own in own_weights.items():
            # A bias of all keys alike changes no softmax: its gradient is rounding alone, which Adam makes a step of.
            compared = [*range(32), *range(64, 96)] if name.endswith("qkv.bias") else slice(None)
            if name.endswith("position.weight"):  # nor do cosines that are the same at every distance of such rows
                compared = (slice(None), slice(24))
            torch.testing.assert_close(own[compared], weights[name][compared], rtol=1e-3, atol=1e-5)
        for row, single in zip(own_curve, curve, strict=True):
            assert row == pytest.approx(single, rel=1e-3)


@pytest.mark.parametrize("partition", ["none", "shard", "pipeline"])
def test_activation_checkpointing_changes_no_bit_for_several_workers(tmp_path, partition):
    plain = _train(tmp_path / "plain", 2, kind="decoder", n_steps=4, partition=partition)
    again = _train(tmp_path / "again", 2, kind="decoder", n_steps=4, partition=partition, recompute=True)
    for (weights, curve), (own_weights, own_curve) in zip(plain, again, strict=True):
        assert own_curve == curve
        assert all(torch.equal(own_weights[name], weights[name]) for name in weights)


def test_workers_without_a_shared_disk_go_on_when_each_has_the_shares_of_all(undisturbed, tmp_path):
    whole = undisturbed(2)
    root = tmp_path / "cut"
    _train(root, 2, killed_at=5, every_s=0.0, apart=True)
    shares = [{p.name for p in (node(root, rank) / "checkpoint-00000004").iterdir()} for rank in range(2)]
    assert shares[0] ^ shares[1] == {"tensors-00001-of-00002.safetensors", "tensors-00002-of-00002.safetensors"}
    for here, there in ((0, 1), (1, 0)):  # as a store does
        for path in node(root, here).rglob("tensors-*"):
            shutil.copy(path, node(root, there) / path.relative_to(node(root, here)))
    resumed = _train(root, 2, apart=True)
    assert [row["step"] for row in resumed[0][1]] == [row["step"] for row in whole[0][1]]
    for name, own in resumed[0][0].items():
        assert torch.equal(own, whole[0][0][name])


def test_the_parts_of_all_workers_are_the_rows_of_the_step():
    rows = Batch(tensors={"x": torch.arange(7)}, n_targets=7, n_tokens=7)
    for size in (1, 2, 3, 5, 9):
        for accumulation in (1, 2, 4):
            parts = [part for rank in range(size) for part in World(rank, size).part(rows, accumulation)]
            assert all(World(rank, size).part(rows, accumulation) for rank in range(size))
            counted = torch.cat([part["x"] for part, weight in parts if weight])
            assert counted.tolist() == list(range(7))


def test_shares_are_balanced_and_complete(tmp_path):
    tensors = {f"t{i}": torch.zeros(n) for i, n in enumerate([100, 60, 40, 30, 30, 20, 10, 1])}
    shares = [_share(tensors, [set(tensors)] * 3, rank) for rank in range(3)]
    assert sorted(name for share in shares for name in share) == sorted(tensors)
    sizes = [sum(tensors[name].numel() for name in share) for share in shares]
    assert max(sizes) - min(sizes) <= 20
    assert Checkpoints(tmp_path, every_s=0).load(torch.device("cpu")) is None
