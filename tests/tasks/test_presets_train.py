"""Every preset with the other parameters as they are: built at the default size, and trained at a tiny one."""

from __future__ import annotations

import csv
import dataclasses
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import get_args

import pytest
import torch

from axon_models.checkpoint import load
from axon_models.decoder.presets import gpt2
from axon_models.decoder.sizes import SIZES
from axon_models.generation.engine import generate
from axon_models.layers.language_model import LanguageModel
from axon_models.presets import PRESETS, build
from tasks.errors import UserError
from tasks.files import read_json
from tasks.parameter_mistakes import _OPEN
from tasks.parameter_sections import Preset
from tasks.steps import pretrain, sft
from tasks.steps.pretrain import config_of_shape
from tasks.training.batches import Batch
from tasks.training.learning_rates import own_learning_rate
from tasks.training.losses import PackedLoss, packed_loss, stream_loss
from tasks.training.packing import packed_batch
from tasks.training.recomputation import recompute_activations
from tests.helpers import REPOSITORY, make_context, make_params
from tests.tasks.test_training_packing import _examples
from tests.tasks.tiny_root import OVERRIDES, make_root

OWN = {"model.kv_heads": None, "model.d_feed_forward": None}


def small(preset: str, **sizes) -> LanguageModel:
    given = {"vocab_size": 40, "d_model": 16, "n_layers": 2, "heads": 2, "max_positions": 64, "init_std": 0.2}
    model = build(PRESETS[preset](**{**given, **sizes})).double()
    model.init_weights(torch.Generator().manual_seed(0))
    return model


def highest_learning_rates(root: Path) -> list[float]:
    """Of pretraining and of fine-tuning, as their curves have them."""
    found = []
    for stage in ("pretrain", "sft"):
        with (root / "metrics" / "curves" / f"{stage}.csv").open() as file:
            found.append(max(float(row["learning_rate"] or 0) for row in csv.DictReader(file)))
        assert read_json(root / "metrics" / f"{stage}.json")["highest_learning_rate"] == found[-1]
    return found


def test_the_parameters_know_every_preset():
    assert list(_OPEN) == list(PRESETS)
    assert get_args(Preset) == (*PRESETS, *SIZES)


@pytest.mark.parametrize("name", SIZES)
def test_a_published_size_is_a_preset_with_the_tokens_at_hand(name):
    config = config_of_shape(make_params({"model.preset": name}).model, 4096)
    published = SIZES[name]()
    assert dataclasses.replace(config, vocab_size=published.vocab_size) == published
    assert config.vocab_size == 4096


def test_a_published_size_says_what_it_takes_and_learns(tmp_path, monkeypatch, caplog):
    """The real sizes are too large for a test, so one of them is made small."""
    monkeypatch.setitem(SIZES, "gpt2_124m", lambda: gpt2(d_model=32, n_layers=2, heads=4, max_positions=64))
    root = make_root(tmp_path / "root")
    overrides = {**OVERRIDES, **OWN, "model.d_model": 16, "model.n_layers": 1, "model.preset": "gpt2_124m"}
    pretrain.run(make_context(root, overrides, checkpoints=tmp_path / "pretrain"))
    config = load(root / "models" / "pretrain").config
    assert (config.family, config.d_model, config.n_layers, config.vocab_size) == ("gpt2", 32, 2, 262)
    assert "model.preset=gpt2_124m: its published shape is taken (d_model=32, n_layers=2" in caplog.text


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_is_all_that_has_to_be_named_at_the_default_size(preset):
    params = make_params({"model.preset": preset})
    config = config_of_shape(params.model, 4096)
    assert (config.d_model, config.n_layers, config.heads, config.max_positions) == (256, 3, 4, 512)
    with torch.device("meta"):
        model = build(config)
    assert config.n_parameters == sum(p.numel() for p in model.parameters())
    assert 2_000_000 < config.n_active_parameters < 5_000_000


@pytest.mark.parametrize("preset", PRESETS)
def test_what_the_parameters_leave_open_is_what_the_preset_takes(preset):
    given = {
        "model.kv_heads": 1,
        "model.d_feed_forward": 96,
        "model.window": 24,
        "model.segment_length": 96,
        "model.memory_length": 0,
        "model.rope_theta": 500.0,
        "model.rope_scaling": {"kind": "linear", "factor": 2.0},
        "model.experts": 4,
    }
    own = config_of_shape(make_params({"model.preset": preset}).model, 4096)
    for key, value in given.items():
        name = key.removeprefix("model.")
        if name in _OPEN[preset]:
            changed = config_of_shape(make_params({"model.preset": preset, key: value}).model, 4096)
            differing = {f.name for f in dataclasses.fields(own) if getattr(own, f.name) != getattr(changed, f.name)}
            assert differing == {name}
        else:
            with pytest.raises(UserError, match=f"{key}=.* is not for model.preset={preset}, only for"):
                make_params({"model.preset": preset, key: value})


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ({"model.preset": "gpt4"}, "model.preset='gpt4'"),
        ({"model.preset": "phi", "model.d_model": 24}, "model.d_model/model.heads/2=3 must be even"),
        ({"model.preset": "pygpt", "model.d_model": 27, "model.heads": 3}, "model.d_model=27 must be even"),
        ({"model.preset": "transformer_xl", "model.d_model": 27, "model.heads": 3}, "model.d_model=27 must be even"),
        (
            {"model.preset": "transformer_xl", "model.segment_length": 513},
            "model.segment_length=513 must be at most model.max_positions=512",
        ),
        (
            {"model.preset": "transformer_xl", "model.memory_length": 600},
            "model.memory_length=600 must be at most model.max_positions=512",
        ),
        ({"model.preset": "transformer_xl", "model.memory_length": -1}, "model.memory_length=-1"),
        ({"model.preset": "transformer_xl", "model.segment_length": 0}, "model.segment_length=0"),
        ({"model.rope_scaling": {"kind": "yarn", "factor": 2.0}}, "model.rope_scaling.kind='yarn'"),
        ({"model.rope_scaling": {"kind": "linear", "factor": 0.5}}, "model.rope_scaling.factor=0.5"),
        (
            {"model.rope_scaling": {"kind": "dynamic", "factor": 2.1}},
            "pretrain.seq_len=256 must be at most model.max_positions/model.rope_scaling.factor=244",
        ),
        (
            {"model.rope_scaling": {"kind": "dynamic", "factor": 5.0}},
            "preferences.prompt_tokens + preferences.max_new_tokens=128 must be at most model.max_positions/",
        ),
        ({"model.preset": "gpt2_124m", "model.window": 64}, "model.window=64 is not for model.preset=gpt2_124m, whose"),
        (
            {"model.preset": "gpt2_124m", "model.max_positions": 2048},
            "model.max_positions=2048 must be at most 1024, what gpt2_124m has",
        ),
        ({"model.preset": "mixtral_8x7b", "partition": "pipeline"}, "is not for model.preset=mixtral_8x7b, whose"),
        (
            {"model.preset": "gpt2_124m", "partition": "pipeline", "workers": 13},
            "workers=13 with partition=pipeline must be at most model.n_layers=12",
        ),
        (
            {"model.preset": "gpt2_124m", "lora": {"rank": 769, "alpha": 1.0, "targets": ["attention"]}},
            "lora.rank=769 must be at most model.d_model=768",
        ),
        (
            {"model.preset": "mixtral_8x7b", "lora": {"rank": 8, "alpha": 1.0, "targets": ["feed_forward"]}},
            "is not for model.preset=mixtral_8x7b, whose experts are no linear layers",
        ),
        ({"model.preset": "mixtral", "partition": "pipeline"}, "partition=pipeline is not for model.preset=mixtral"),
        ({"sft.lm_coef": -1.0}, "sft.lm_coef=-1.0"),
    ],
)
def test_a_mistake_in_the_shape_is_named(overrides, expected):
    with pytest.raises(UserError, match="mistake") as caught:
        make_params(overrides)
    assert expected in str(caught.value)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_pretrains_tunes_and_answers(preset, tmp_path):
    root = make_root(tmp_path / "root")
    for step in (pretrain, sft):
        step.run(make_context(root, {**OVERRIDES, **OWN, "model.preset": preset}, checkpoints=tmp_path / step.STAGE))
    metrics = json.loads((root / "metrics" / "pretrain.json").read_text())
    assert 0 < metrics["bits_per_byte"] < 20
    assert highest_learning_rates(root) == ([1e-3, 6e-4] if preset == "gpt" else [3e-3, 1.2e-3])
    model = load(root / "models" / "sft")
    answers = generate(model, [[3, 20, 21], [3, 9]], max_new_tokens=6, temperature=0.0, prompt_length=16)
    for prompt, answer in zip([[3, 20, 21], [3, 9]], answers, strict=True):
        tokens = list(prompt)
        for token in answer:
            with torch.no_grad():
                assert int(model(torch.tensor([tokens]))[0, -1].argmax()) == token
            tokens.append(token)


def test_a_learning_rate_that_is_given_is_taken_and_one_that_is_open_is_that_of_the_checkpoint_at_hand(tmp_path):
    root = make_root(tmp_path / "root")
    settings = {**OVERRIDES, **OWN, "model.preset": "gpt", "pretrain.learning_rate": 2e-3}
    pretrain.run(make_context(root, settings, checkpoints=tmp_path / "pretrain"))
    # As after pretrain.init_from: models/pretrain is of another kind than model.preset.
    sft.run(make_context(root, {**settings, "model.preset": "x_llama"}, checkpoints=tmp_path / "sft"))
    assert highest_learning_rates(root) == [2e-3, 6e-4]


def test_params_yaml_says_what_an_open_learning_rate_means():
    text = (REPOSITORY / "params.yaml").read_text()
    for stage in ("pretrain", "sft"):
        line = r"  learning_rate: null +# highest; (\S+), of gpt (\S+)$"
        said = re.search(rf"^{stage}:\n(?:  .*\n)*?{line}", text, re.MULTILINE)
        assert said is not None
        rates = [own_learning_rate(stage, PRESETS[preset]()) for preset in ("x_llama", "gpt")]
        assert [float(figure) for figure in said.groups()] == rates


@pytest.mark.parametrize("preset", ["phi", "switch", "gpt3_sparse", "transformer_xl"])
def test_a_preset_is_aligned_and_a_policy_starts_as_its_reference(preset, tmp_path, monkeypatch):
    """An output with a bias, experts that drop tokens in pretraining, bands, memory: through every later stage."""
    from tasks.steps import dpo, ppo, preferences, reward_model, sft_continued

    def judge(task, prompt, text, target, *, ended):
        return SimpleNamespace(score=float(len(text) % 2 == 0) + ended, correct=ended, well_formed=True)

    monkeypatch.setattr(preferences, "judge", judge)
    root = make_root(tmp_path / "root")
    overrides = {**OVERRIDES, **OWN, "model.preset": preset}
    for number, step in enumerate((pretrain, sft, preferences, reward_model, dpo, sft_continued)):
        step.run(make_context(root, overrides, checkpoints=tmp_path / str(number)))
    trainer = ppo.Trainer(make_context(root, overrides, checkpoints=tmp_path / "ppo"))
    rollouts = trainer.sample()
    figures = trainer.update(rollouts)
    assert figures["clip_fraction"] == 0.0
    torch.testing.assert_close(rollouts.logprobs, rollouts.ref_logprobs)


def test_no_token_is_dropped_where_probabilities_are_compared():
    model = small("switch", max_positions=64)
    tokens = torch.randint(40, (2, 48), generator=torch.Generator().manual_seed(1))
    whole = model.eval().hidden(tokens)
    assert not torch.equal(model.train().hidden(tokens), whole)
    model.drop_no_tokens()
    assert torch.equal(model.train().hidden(tokens), whole)


@pytest.mark.parametrize("preset", PRESETS)
def test_micro_batches_add_up_to_the_batch(preset):
    """Whatever the router says, so that accumulation and the number of workers do not change a step."""
    model = small(preset).train()
    both = torch.randint(40, (5, 17), generator=torch.Generator().manual_seed(1))
    batch = Batch(tensors={"tokens": both[:, :-1], "targets": both[:, 1:]}, n_targets=80, n_tokens=80)
    packed = packed_batch([_examples(2), _examples(3), _examples(1)], seq_len=48, pad_id=1, device=torch.device("cpu"))
    for loss, rows in ((stream_loss, batch), (packed_loss, packed)):
        found = []
        for n_parts in (1, 3):
            model.zero_grad()
            values = [loss(model, part) for part in rows.split(n_parts)]
            torch.stack(values).sum().backward()
            found.append((torch.stack(values).sum().detach(), [p.grad.clone() for p in model.parameters()]))
        torch.testing.assert_close(found[0], found[1])


@pytest.mark.parametrize("preset", PRESETS)
def test_recomputed_activations_give_the_same_gradients(preset):
    both = torch.randint(40, (2, 41), generator=torch.Generator().manual_seed(1))
    found = []
    for recomputed in (False, True):
        model = small(preset).train()
        if recomputed:
            recompute_activations(model)
        loss = stream_loss(model, {"tokens": both[:, :-1], "targets": both[:, 1:]})
        loss.backward()
        found.append((loss.detach(), [p.grad for p in model.parameters()]))
    assert torch.equal(found[0][0], found[1][0])
    assert all(torch.equal(one, other) for one, other in zip(found[0][1], found[1][1], strict=True))


def test_the_router_loss_is_added_as_many_times_as_there_are_targets():
    model = small("mixtral")
    both = torch.randint(40, (2, 17), generator=torch.Generator().manual_seed(1))
    rows = {"tokens": both[:, :-1], "targets": both[:, 1:]}
    hidden, penalty = model.hidden_and_penalty(rows["tokens"])
    cross_entropy = torch.nn.functional.cross_entropy(
        (hidden @ model.output_weight.T).flatten(0, 1), rows["targets"].flatten(), reduction="sum"
    )
    assert penalty.min() > 0
    torch.testing.assert_close(stream_loss(model, rows), cross_entropy + 16 * penalty[0] + 16 * penalty[1])


def test_the_auxiliary_loss_of_gpt1_is_the_language_models_loss_of_whole_examples():
    """Equation 5 of the paper by hand: L2 of the answers + λ·L1 of prompts and answers, padding in neither."""
    model, examples = small("gpt"), _examples(3)
    batch = packed_batch([examples], seq_len=48, pad_id=1, device=torch.device("cpu"))
    answers = whole = 0.0
    for example in examples:
        tokens = torch.tensor(example.tokens)
        nats = torch.nn.functional.cross_entropy(model(tokens[None, :-1])[0], tokens[1:], reduction="none")
        answers = answers + nats[example.prompt_length - 1 :].sum()
        whole = whole + nats.sum()
    torch.testing.assert_close(PackedLoss(lm_coef=0.3)(model, batch.tensors), answers + 0.3 * whole)
    torch.testing.assert_close(packed_loss(model, batch.tensors), answers)


def test_the_weight_of_the_auxiliary_loss_reaches_the_stage(tmp_path, monkeypatch):
    class Enough(Exception):
        pass

    given = []

    def fit(model, recipe, *, loss, **_):
        given.append(loss)
        raise Enough

    monkeypatch.setattr(sft, "read_model", lambda context, stage, drops_tokens: small("gpt"))
    monkeypatch.setattr(sft, "fit", fit)
    root = make_root(tmp_path / "root")
    with pytest.raises(Enough):
        sft.run(make_context(root, {**OVERRIDES, "sft.lm_coef": 0.5}))
    assert given == [PackedLoss(lm_coef=0.5)]
