"""Adapters: the formula by hand, base weights that stay, what each stage leaves with them, and exact resumption."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from axon_models import checkpoint
from axon_models.decoder.config import Experts
from tasks.errors import UserError
from tasks.parameter_sections import Lora
from tasks.steps.ppo import Trainer
from tasks.training.device import autocast
from tasks.training.lora import Adapters
from tasks.training.optimizer import adamw
from tests.axon_models.small import small_decoder, some_tokens
from tests.helpers import make_context
from tests.tasks.test_steps_training import STAGES, Killed, _easy_judge, _run  # noqa: F401 a fixture
from tests.tasks.tiny_root import OVERRIDES, digests, make_root

BOTH = ["attention", "feed_forward"]
RANK, ALPHA = 4, 6.0
LORA = {"lora": {"rank": RANK, "alpha": ALPHA, "targets": BOTH}, "dpo.n_epochs": 3}
SOURCES = {"sft": "pretrain", "sft_continued": "sft", "dpo": "sft", "ppo": "sft"}
MODELS = {
    "llama": {},
    "gpt2": {"norm": "layer", "positions": "learned", "feed_forward": "gelu_tanh", "biases": True, "kv_heads": 6},
    "slices": {"pretraining_tp": 2, "d_feed_forward": 38},
}


def _settings(targets: list[str] = BOTH) -> Lora:
    return Lora(rank=RANK, alpha=ALPHA, targets=targets)


def _trained(adapters: Adapters) -> dict[str, Tensor]:
    """Random numbers in place of what training would have made of the adapters; a copy of them."""
    generator = torch.Generator().manual_seed(5)
    for tensor in adapters.weights().values():
        tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.2)
    return {name: tensor.clone() for name, tensor in adapters.weights().items()}


def _by_hand(weight: Tensor, adapters: dict[str, Tensor], layer: str) -> Tensor:
    """W + (alpha/r)·B·A in float64, term by term."""
    a, b = (adapters[f"{layer}.lora_{side}.weight"].double() for side in "AB")  # (r, I), (O, r)
    assert len(a) == RANK
    return weight.double() + (ALPHA / RANK) * sum(torch.outer(b[:, i], a[i]) for i in range(RANK))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", MODELS)
def test_adapters_that_have_learnt_nothing_change_no_bit(name, precision):
    model = small_decoder(**MODELS[name]).eval()
    tokens = some_tokens(3, 20)
    with autocast(torch.device("cpu"), precision):
        expected = model(tokens)
        Adapters(model, _settings(), seed=1)
        found = model(tokens)
    assert found.dtype == expected.dtype
    assert torch.equal(found, expected)


@pytest.mark.parametrize("name", MODELS)
def test_merged_and_unmerged_give_the_same_logits_by_the_formula(name):
    model, before = (small_decoder(**MODELS[name]).eval() for _ in range(2))
    names = list(model.state_dict())
    adapters = Adapters(model, _settings(), seed=1)
    learnt, tokens = _trained(adapters), some_tokens(3, 20)
    for both in (model, before):
        both.double()
    unmerged = model(tokens)
    adapters.merge()
    assert list(model.state_dict()) == names
    assert (unmerged - before(tokens)).abs().max() > 0.1, "the adapters do nothing"
    torch.testing.assert_close(model(tokens), unmerged, rtol=1e-9, atol=1e-9)
    layers = {key.rpartition(".lora_")[0] for key in learnt}
    assert len(layers) == 2 * 4, "qkv, output and two of feed-forward in each of two blocks"
    for key, weight in before.state_dict().items():
        layer = key.removesuffix(".weight")
        if layer in layers:
            expected = _by_hand(weight, learnt, layer)
            torch.testing.assert_close(model.state_dict()[key], expected, rtol=1e-12, atol=1e-12)
        else:
            assert torch.equal(model.state_dict()[key], weight)


def test_only_adapters_are_in_the_optimizer_and_base_weights_stay_bit_for_bit():
    model = small_decoder()
    base = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    adapters = Adapters(model, _settings(["attention"]), seed=1)
    optimizer = adamw(model, learning_rate=0.1, beta2=0.95, weight_decay=0.5)
    learning = {id(p) for group in optimizer.param_groups for p in group["params"]}
    named = dict(model.named_parameters())
    assert {name for name, p in named.items() if id(p) in learning} == {n for n in named if ".lora_" in n}
    before = {name: tensor.clone() for name, tensor in adapters.weights().items()}
    for _ in range(2):  # A learns from the second step on: before, B is zero
        optimizer.zero_grad()
        model(some_tokens(2, 9)).square().mean().backward()
        optimizer.step()
    assert all(not torch.equal(tensor, before[name]) for name, tensor in adapters.weights().items())
    for name, p in named.items():
        if ".lora_" not in name:
            assert torch.equal(p, base[name.replace(".base_layer", "")])


def test_first_weights_are_those_of_the_seed_alone():
    drawn = []
    for seed, noise in ((1, 0), (1, 9), (2, 0)):
        torch.manual_seed(noise)
        drawn.append({n: t.clone() for n, t in Adapters(small_decoder(), _settings(), seed=seed).weights().items()})
    for name, first in drawn[0].items():
        assert torch.equal(first, drawn[1][name])
        if name.endswith("lora_B.weight"):
            assert not first.any()
        else:
            assert not torch.equal(first, drawn[2][name])
            # Uniform on ±1/√I, as `torch.nn.Linear` draws.
            assert 0.8 < first.abs().max() * first.shape[1] ** 0.5 <= 1


def test_a_model_of_experts_has_adapters_in_attention_alone():
    experts = Experts(n=4, per_token=2)
    with pytest.raises(UserError, match=r"lora\.targets names feed_forward, which has no linear layers"):
        Adapters(small_decoder(experts=experts), _settings(), seed=1)
    names = Adapters(small_decoder(experts=experts), _settings(["attention"]), seed=1).weights()
    assert len(names) == 2 * 2 * 2


def test_without_peft_the_message_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(UserError, match=r"needs a library that is not installed \(peft\); install it with: pip"):
        Adapters(small_decoder(), _settings(), seed=1)


@pytest.fixture(scope="module")
def adapted(_easy_judge, tmp_path_factory) -> Path:  # noqa: F811
    """All stages, once, with adapters."""
    root = make_root(tmp_path_factory.mktemp("adapted"))
    for stage in STAGES:
        _run(root, stage, overrides=LORA)
    return root


def _adapters_of(root: Path, stage: str) -> dict[str, Tensor]:
    return load_file(root / "models" / stage / "adapter" / "adapter_model.safetensors")


@pytest.mark.parametrize("stage", SOURCES)
def test_a_stage_leaves_its_source_with_its_adapters_added(adapted, stage):
    source = checkpoint.load(adapted / "models" / SOURCES[stage]).state_dict()
    left = checkpoint.load(adapted / "models" / stage).state_dict()
    adapters = _adapters_of(adapted, stage)
    layers = {name.rpartition(".lora_")[0] for name in adapters}
    for name, weight in left.items():
        layer = name.removesuffix(".weight")
        if layer in layers:
            assert not torch.equal(weight, source[name]), "nothing was learnt"
            torch.testing.assert_close(weight.double(), _by_hand(source[name], adapters, layer), rtol=1e-5, atol=1e-7)
        else:
            assert torch.equal(weight, source[name])


def test_stages_that_lora_is_not_for_have_no_adapters(adapted):
    assert sorted(p.parent.name for p in (adapted / "models").glob("*/adapter")) == sorted(SOURCES)


def test_peft_and_transformers_read_what_a_stage_leaves(adapted):
    from peft import LoraConfig, inject_adapter_in_model, load_peft_weights, set_peft_model_state_dict
    from transformers import AutoModelForCausalLM

    tokens = some_tokens(2, 12, vocab_size=262)
    merged = checkpoint.load(adapted / "models" / "dpo")
    with torch.no_grad():
        expected = merged(tokens)
        folder = str(adapted / "models" / "dpo" / "adapter")
        on_top = inject_adapter_in_model(
            LoraConfig.from_pretrained(folder), checkpoint.load(adapted / "models" / "sft")
        )
        found = set_peft_model_state_dict(on_top, load_peft_weights(folder))
        assert found.unexpected_keys == []
        torch.testing.assert_close(on_top.eval()(tokens), expected, rtol=1e-5, atol=1e-5)
        theirs = AutoModelForCausalLM.from_pretrained(adapted / "models" / "dpo").eval()
        torch.testing.assert_close(theirs(tokens).logits, expected, rtol=1e-4, atol=1e-4)


def test_the_reference_of_ppo_is_the_sft_model_while_the_policy_learns(adapted):
    trainer = Trainer(make_context(adapted, OVERRIDES | LORA, checkpoints=adapted / ".axon" / "reference"))
    rollouts = trainer.sample()
    torch.testing.assert_close(rollouts.logprobs, rollouts.ref_logprobs, rtol=0, atol=0)
    trainer.update(rollouts)
    trainer.update(rollouts)
    sft = checkpoint.load(adapted / "models" / "sft").state_dict()
    assert all(torch.equal(tensor, sft[name]) for name, tensor in trainer.reference.state_dict().items())
    again = trainer.sample()
    assert (again.logprobs - again.ref_logprobs).abs().max() > 0


@pytest.mark.parametrize(("stage", "killed_at"), [("sft", 3), ("dpo", 2), ("ppo", 1)])
def test_a_killed_stage_resumes_to_the_same_bytes(adapted, tmp_path, stage, killed_at):
    root = tmp_path / "cut"
    shutil.copytree(adapted, root)
    before = digests(root, "models", "metrics")
    shutil.rmtree(root / "models" / stage)

    def kill(step, n_steps, values):
        if step == killed_at:
            raise Killed

    with pytest.raises(Killed):
        _run(root, stage, overrides=LORA, report=kill, every_s=0.0, name="cut")
    folder = root / ".axon" / "checkpoints" / f"{stage}cut"
    saved = [load_file(path) for path in folder.glob("checkpoint-*/*.safetensors")]
    names = {name for tensors in saved for name in tensors if "value." not in name}
    assert saved, "there is nothing to resume from"
    assert {name for name in names if "model." in name} == {n for n in names if "model." in n and ".lora_" in n}
    _run(root, stage, overrides=LORA, name="cut")
    assert digests(root, "models", "metrics") == before


@pytest.mark.parametrize("stage", ["sft", "ppo"])
def test_a_second_run_with_activation_checkpointing_leaves_the_same_bytes(adapted, tmp_path, stage):
    root = tmp_path / "again"
    shutil.copytree(adapted, root)
    before = digests(root, "models", "metrics")
    shutil.rmtree(root / "models" / stage)
    _run(root, stage, overrides=LORA | {"runtime.activation_checkpointing": True}, name="again")
    assert digests(root, "models", "metrics") == before
    assert json.loads((root / "models" / stage / "adapter" / "adapter_config.json").read_text())["r"] == RANK
