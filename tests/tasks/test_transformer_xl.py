"""The memory model through the pipeline's stages: what each learns, exact resumption, adapters, and what is refused."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest
import torch

from axon_models import checkpoint
from axon_models.generation.engine import generate
from axon_models.layers.language_model import scalar_head
from axon_models.memory.config import TransformerXLConfig
from axon_models.memory.model import TransformerXL
from axon_models.presets import PRESETS, build
from axon_models.vocabulary import NEW, renumbered
from tasks.alignment.rewards import read, score_sequences
from tasks.data import records
from tasks.errors import UserError
from tasks.files import read_json
from tasks.model_configs import max_positions
from tasks.parameters import Lora
from tasks.steps import uptrain
from tasks.tokenizers import adopted
from tasks.training.lora import Adapters
from tasks.training.losses import bits_per_byte
from tasks.training.optimizer import adamw
from tests.axon_models.memory.small import small_model, some_tokens
from tests.helpers import make_context
from tests.tasks.test_steps_training import STAGES, Killed, _easy_judge, _run  # noqa: F401 a fixture
from tests.tasks.tiny_root import OVERRIDES, byte_tokenizer, digests, make_root

XL = {
    "model.preset": "transformer_xl",
    "model.kv_heads": None,
    "model.segment_length": 12,
    "model.memory_length": 20,
    "pretrain.n_steps": 30,
    "pretrain.evaluate_every": 15,
    "sft.n_steps": 30,
    "sft.evaluate_every": 15,
    "reward_model.n_epochs": 10,
    "reward_model.learning_rate": 3.0e-3,
    "dpo.n_epochs": 4,
    "dpo.learning_rate": 1.0e-3,
}


@pytest.fixture(scope="module")
def trained(_easy_judge, tmp_path_factory) -> Path:  # noqa: F811 the fixture
    """All stages, once, each with its rows longer than a segment."""
    root = make_root(tmp_path_factory.mktemp("trained"))
    for stage in STAGES:
        _run(root, stage, overrides=XL)
    return root


def _curve(root: Path, stage: str, name: str) -> list[float]:
    rows = csv.DictReader((root / "metrics" / "curves" / f"{stage}.csv").open())
    return [float(row[name]) for row in rows if row[name]]


@pytest.mark.parametrize("stage", ["pretrain", "sft", "reward_model", "dpo"])
def test_a_stage_lowers_its_loss(trained: Path, stage: str) -> None:
    losses = _curve(trained, stage, "loss")
    first, last = sum(losses[:4]) / 4, sum(losses[-4:]) / 4
    assert last < first - 0.02
    held_out = {"pretrain": "validation_bits_per_byte", "sft": "validation_loss"}.get(stage)
    if held_out:
        measured = _curve(trained, stage, held_out)
        assert measured[-1] < measured[0] - 0.1


def test_what_the_stages_leave_is_loaded_as_what_it_is(trained: Path) -> None:
    for stage in (stage for stage in STAGES if stage != "preferences"):
        directory = trained / "models" / stage
        tree, model = read_json(directory / "config.json"), checkpoint.load(directory)
        assert tree["model_type"] == "axon_transformer_xl"
        assert type(model) is TransformerXL
        assert (model.config.segment_length, model.config.memory_length) == (12, 20)
        assert max_positions(tree) == model.config.max_positions == 64
        assert (directory / "tokenizer.json").is_file()
    metrics = read_json(trained / "metrics" / "pretrain.json")
    assert metrics["n_parameters"] == checkpoint.load(trained / "models" / "pretrain").config.n_parameters


def test_rewards_are_those_of_the_head_at_the_last_token(trained: Path) -> None:
    model, shift = read(trained / "models" / "reward_model")
    assert shift != 0.0
    text = some_tokens(1, 40)[0].tolist()
    states = model.backbone.hidden(torch.tensor([text[:30]]))[0, -1].detach()
    (found,) = score_sequences(model, [text[:30]])
    assert found == pytest.approx(float(states @ model.head.weight[0].detach()), abs=1e-5)


@pytest.mark.parametrize(("stage", "killed_at"), [("pretrain", 17), ("sft", 3), ("reward_model", 2), ("ppo", 1)])
def test_a_killed_stage_resumes_to_the_same_bytes(trained: Path, tmp_path: Path, stage: str, killed_at: int) -> None:
    root = tmp_path / "cut"
    shutil.copytree(trained, root)
    before = digests(root, "models", "metrics")
    shutil.rmtree(root / "models" / stage)

    def kill(step: int, n_steps: int, values: dict[str, float]) -> None:
        if step == killed_at:
            raise Killed

    with pytest.raises(Killed):
        _run(root, stage, overrides=XL, report=kill, every_s=0.0, name="cut")
    _run(root, stage, overrides=XL, name="cut")
    assert digests(root, "models", "metrics") == before


def test_it_is_evaluated_with_its_memory(trained: Path, tmp_path: Path) -> None:
    """Bits per byte by the definition, token by token with a memory; a model that forgets needs others."""
    model = checkpoint.load(trained / "models" / "pretrain")
    stream = torch.randint(6, 262, (64,), generator=torch.Generator().manual_seed(1))
    inputs = torch.cat([torch.tensor([0]), stream[:-1]])
    bits = 0.0
    with torch.no_grad():
        for start in (0, 32):  # windows
            memory, window = None, inputs[None, start : start + 32]
            for part in window.split(12, dim=1):
                states, memory = model.read(part, memory)
                logprobs = (states @ model.output_weight.T).log_softmax(-1)[0]
                place = start
                start += part.shape[1]
                bits -= logprobs.gather(1, stream[place:start, None]).sum().item()
        sizes = {"seq_len": 32, "batch_size": 2, "separator": 0}
        found = bits_per_byte(model, stream.numpy(), 100, **sizes)
        assert found == pytest.approx(bits / torch.tensor(2.0).log().item() / 100, rel=1e-5)
        shutil.copytree(trained / "models" / "pretrain", tmp_path / "model")
        tree = read_json(tmp_path / "model" / "config.json")
        tree["decoder"]["memory_length"] = 0
        (tmp_path / "model" / "config.json").write_text(json.dumps(tree))
        forgetful = checkpoint.load(tmp_path / "model")
        assert abs(bits_per_byte(forgetful, stream.numpy(), 100, **sizes) - found) > 1e-4


def test_the_evaluation_measures_every_model(trained: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    shutil.copytree(trained, root)
    demonstrations = records.read(root / "data" / "demonstrations.parquet")
    columns = {**demonstrations, "answer": demonstrations["target"]}
    records.write(root / "data" / "demonstrations.parquet", columns)
    sizes = {"evaluate.n_maths": 8, "evaluate.n_docs": 0, "evaluate.n_samples": 2, "evaluate.n_text_batches": 2}
    _run(root, "evaluate", overrides={**XL, **sizes, "evaluate.batch_size": 4, "evaluate.n_bootstrap": 100})
    found = read_json(root / "metrics" / "evaluate.json")
    measured = {name: found[name]["bits_per_byte"] for name in ("base", "sft", "ppo", "dpo", "sft_continued")}
    assert all(0 < bits < 20 for bits in measured.values())
    assert len(set(measured.values())) == 5
    assert found["dpo"].keys() >= {"exact_match", "win_rate_vs_sft"}


def test_weights_decay_but_not_the_embedding_and_the_biases() -> None:
    model = small_model()
    (decayed, others) = adamw(model, learning_rate=0.1, beta2=0.95, weight_decay=0.5).param_groups
    names = {id(p): name for name, p in model.named_parameters()}
    layers = ("query", "key_value", "position", "output", "up", "down")
    assert {names[id(p)].split(".")[-2] for p in decayed["params"]} == set(layers)
    assert {names[id(p)].split(".")[-1] for p in others["params"]} == {"weight", "bias", "u_bias", "v_bias"}
    assert "embedding.weight" in {names[id(p)] for p in others["params"]}
    assert decayed["weight_decay"] == 0.5
    assert others["weight_decay"] == 0.0


@torch.no_grad()
def test_adapters_merged_are_adapters_unmerged_also_in_decoding() -> None:
    model, tokens = small_model(), some_tokens(2, 17)
    before, prompts = model(tokens), [[3, 4, 5, 6, 7, 8, 9], [1]]
    adapters = Adapters(model, Lora(rank=2, alpha=3.0, targets=["attention", "feed_forward"]), seed=1)
    torch.testing.assert_close(model(tokens), before)
    generator = torch.Generator().manual_seed(5)
    for tensor in adapters.weights().values():
        tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.3)
    assert len(adapters.weights()) == 2 * 2 * 6, "four layers of attention and two of feed-forward in two blocks"
    unmerged = model(tokens)
    sampled = generate(model, prompts, max_new_tokens=9, seed=2)
    adapters.merge()
    assert (unmerged - before).abs().max() > 0.1
    torch.testing.assert_close(model(tokens), unmerged, atol=1e-5, rtol=1e-5)
    assert generate(model, prompts, max_new_tokens=9, seed=2) == sampled


def test_it_can_be_what_pretraining_starts_from(tmp_path: Path) -> None:
    byte_tokenizer().save(str(tmp_path / "tokenizer.json"))
    model = small_model(vocab_size=270, tied_embeddings=False)
    checkpoint.save(model, tmp_path, scalar_head=scalar_head(12))
    assert adopted.adopt(tmp_path).rows == tuple(range(270))
    changed = renumbered(checkpoint.load(tmp_path), [NEW, 3, 7])
    assert type(changed) is TransformerXL
    for name in ("embedding.weight", "output.weight"):
        old, new = model.get_parameter(name), changed.get_parameter(name)
        torch.testing.assert_close(new, torch.stack([old.mean(0), old[3], old[7]]))
    tokens = some_tokens(1, 15) % 2
    with torch.no_grad():
        expected = model(torch.where(tokens == 0, 3, 7))[..., [3, 7]]
        torch.testing.assert_close(changed(tokens + 1)[..., 1:], expected)


def test_pretraining_goes_on_from_such_a_directory(trained: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    shutil.copytree(trained, root)
    shutil.copytree(trained / "models" / "pretrain", root / "sources" / "models" / "xl")
    overrides = {**XL, "model.preset": "x_llama", "model.segment_length": None, "model.memory_length": None}
    _run(root, "pretrain", overrides={**overrides, "pretrain.init_from": "sources/models/xl"}, name="on")
    assert type(checkpoint.load(root / "models" / "pretrain")) is TransformerXL
    before, after = (_curve(one, "pretrain", "validation_bits_per_byte") for one in (trained, root))
    assert after[0] == pytest.approx(before[-1], rel=1e-6)
    assert after[-1] < after[0]


def test_heads_that_are_not_there_cannot_be_pooled(trained: Path, tmp_path: Path) -> None:
    context, source = make_context(trained, {**OVERRIDES, **XL}), trained / "models" / "pretrain"
    with pytest.raises(UserError, match="is a transformer_xl, which has no key and value heads to pool"):
        uptrain.run(context, source, tmp_path / "out", kv_heads=1, fraction=0.1)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("preset", PRESETS)
def test_the_longest_sequence_is_read_from_any_config(preset: str, tmp_path: Path) -> None:
    model = build(PRESETS[preset](vocab_size=40, d_model=16, n_layers=2, heads=2, max_positions=64))
    model.init_weights(torch.Generator().manual_seed(0))
    checkpoint.save(model, tmp_path)
    assert max_positions(read_json(tmp_path / "config.json")) == 64
    assert checkpoint.load(tmp_path).config == model.config


def test_sizes_that_are_none_are_refused_by_name() -> None:
    with pytest.raises(Exception, match=r"d_model='wide' must be a whole number of at least 1; edit model\.d_model"):
        PRESETS["transformer_xl"](d_model="wide", max_positions=None)
    config = PRESETS["transformer_xl"](max_positions=100)
    assert isinstance(config, TransformerXLConfig)
    assert (config.segment_length, config.memory_length, config.reach) == (25, 25, 50)
