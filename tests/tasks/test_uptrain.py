"""`axon uptrain`: from a trained model to one with fewer heads, by the step and by the command line."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from axon_models import checkpoint
from axon_models.decoder.pooling import pooled
from axon_models.decoder.presets import x_llama
from flows import cli, uptrain_command, uptraining
from tasks import yaml_text
from tasks.errors import UserError
from tasks.runtime.checkout import Checkout
from tasks.steps import pretrain, uptrain
from tasks.steps.uptrain import Uptrained
from tasks.training.batches import stream_batch
from tests.axon_models.small import small_decoder
from tests.helpers import make_context, make_tree
from tests.tasks.tiny_root import OVERRIDES, byte_tokenizer, digests, make_root

MULTI_HEAD = OVERRIDES | {"model.kv_heads": 4, "pretrain.n_steps": 40}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with a multi-head model that was pretrained."""
    root = make_root(tmp_path_factory.mktemp("root"))
    pretrain.run(make_context(root, MULTI_HEAD, checkpoints=root / ".axon" / "checkpoints" / "pretrain"))
    return root


def _uptrain(root: Path, out: Path, kv_heads: int = 2, fraction: float = 0.2, **more: object) -> Uptrained:
    overrides = MULTI_HEAD | {key.replace("__", "."): value for key, value in more.items()}
    context = make_context(root, overrides, checkpoints=out.parent / "checkpoints" / out.name)
    return uptrain.run(context, root / "models" / "pretrain", out, kv_heads=kv_heads, fraction=fraction)


def _bits(directory: Path, root: Path, kv_heads: int | None = None) -> float:
    """Bits per byte of a model by its definition, token by token, over the documents that pretraining validates on."""
    from tasks.training.tokens import text_documents

    model = checkpoint.load(directory) if kv_heads is None else pooled(checkpoint.load(directory), kv_heads)
    stream, n_bytes = text_documents(root, "validation", n_tokens=2 * 4 * 32)
    inputs = np.concatenate([[0], stream[:-1]])
    bits = 0.0
    for start in range(0, len(stream), 32):
        with torch.no_grad():
            logprobs = model(torch.tensor(inputs[None, start : start + 32])).log_softmax(-1)[0]
        bits -= sum(logprobs[i, token].item() for i, token in enumerate(stream[start : start + 32])) / math.log(2)
    return bits / n_bytes


@pytest.mark.parametrize("kv_heads", [2, 1])
def test_three_figures_and_a_model_of_fewer_heads(root: Path, tmp_path: Path, kv_heads: int) -> None:
    out, source = tmp_path / "out", root / "models" / "pretrain"
    found = _uptrain(root, out, kv_heads)
    assert found.before == pytest.approx(_bits(source, root), abs=1e-5)
    assert found.pooled == pytest.approx(_bits(source, root, kv_heads), abs=1e-5)
    assert found.uptrained == pytest.approx(_bits(out, root), abs=1e-5)
    assert found.uptrained < found.pooled
    assert found.before < found.pooled
    assert (found.heads_before, found.heads, found.n_steps, found.tokens) == (4, kv_heads, 8, 8 * 4 * 32)
    assert checkpoint.load(out).config.kv_heads == kv_heads
    assert (out / "tokenizer.json").read_bytes() == (source / "tokenizer.json").read_bytes()
    theirs, tokens = AutoModelForCausalLM.from_pretrained(out), torch.arange(6, 30)[None]
    with torch.no_grad():
        torch.testing.assert_close(theirs(tokens).logits, checkpoint.load(out)(tokens), atol=1e-4, rtol=0)


def test_twice_the_same_bytes_and_the_pipeline_untouched(root: Path, tmp_path: Path) -> None:
    before = digests(root, "models", "metrics", "tokens", "tokenizer")
    assert _uptrain(root, tmp_path / "a") == _uptrain(root, tmp_path / "b")
    assert list(digests(tmp_path / "a", ".").values()) == list(digests(tmp_path / "b", ".").values())
    assert digests(root, "models", "metrics", "tokens", "tokenizer") == before


def test_rows_go_on_where_pretraining_ended(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []

    def noting(stream, k, **sizes):
        taken.append(k)
        return stream_batch(stream, k, **sizes)

    monkeypatch.setattr(pretrain, "stream_batch", noting)
    _uptrain(root, tmp_path / "out", fraction=0.1)
    assert taken == [40, 41, 42, 43]


@pytest.mark.parametrize(
    ("fraction", "n_steps", "expected"),
    [(0.05, 560, (28, 4)), (1.0, 560, (560, 80)), (0.001, 560, (1, 0)), (0.1, 100, (10, 8))],
)
def test_the_recipe_is_pretraining_s_drawn_together(fraction: float, n_steps: int, expected: tuple[int, int]) -> None:
    context = make_context(Path(), {"pretrain.n_steps": n_steps})
    recipe = uptrain._recipe(context, x_llama(), fraction)
    assert (recipe.n_steps, recipe.warmup_steps) == expected
    assert recipe.learning_rate == pytest.approx(5e-4)  # a sixth of 3e-3
    assert (recipe.min_learning_rate, recipe.beta2) == (2e-4, 0.95)


def test_mistakes_are_named(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(UserError, match=r"--kv-heads 3: .*: kv_heads=3 must divide the 4 key and value heads"):
        _uptrain(root, out, 3)
    for fraction in (0.0, -1.0, 1.5, math.nan):
        with pytest.raises(UserError, match="must be above 0 and at most 1"):
            _uptrain(root, out, fraction=fraction)
    with pytest.raises(UserError, match=r"pretrain.seq_len=65 must be at most 64"):
        _uptrain(root, out, pretrain__seq_len=65, model__max_positions=128)
    out.mkdir()
    with pytest.raises(UserError, match=r"--out .*out is there already"):
        _uptrain(root, out)
    assert list(out.iterdir()) == []


def test_models_that_it_is_not_for_are_refused(root: Path, tmp_path: Path) -> None:
    source, context = tmp_path / "model", make_context(root, MULTI_HEAD, checkpoints=tmp_path / "checkpoints")

    def refused(match: str) -> None:
        with pytest.raises(UserError, match=match):
            uptrain.run(context, source, tmp_path / "out", kv_heads=2, fraction=0.1)
        assert not (tmp_path / "out").exists()

    gpt = {"norm": "layer", "feed_forward": "gelu_tanh", "positions": "learned", "biases": True}
    sizes = {"kv_heads": 6, "d_feed_forward": 96}
    checkpoint.save(
        small_decoder(family="gpt2", vocab_size=262, **gpt, **sizes), source, tokenizer_dir=root / "tokenizer"
    )
    read = "kv_heads=2 would be read as 6"
    refused(r"--kv-heads 2: .* of model type gpt2 cannot hold this decoder: 1 mistake\(s\):\n  - " + read)
    checkpoint.save(small_decoder(vocab_size=200), source, tokenizer_dir=root / "tokenizer")
    refused("its tokenizer has id 261, its embedding 200 rows")
    (source / "model.safetensors").unlink()
    refused("model.safetensors is missing")
    other = byte_tokenizer()
    other.add_tokens(["word"])
    other.save(str(source / "tokenizer.json"))
    refused("has another tokenizer than tokenizer/")


def test_the_command_prints_what_it_found(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (root / "params.yaml").write_text(json.dumps(make_tree(MULTI_HEAD)))
    assert yaml_text.parse((root / "params.yaml").read_text()) == make_tree(MULTI_HEAD)
    monkeypatch.setattr(uptrain_command.checkouts, "find", lambda: Checkout(root))
    monkeypatch.setattr(uptrain_command.environment, "prepare", lambda checkout: None)
    out = tmp_path / "out"
    arguments = [
        "uptrain",
        str(root / "models" / "pretrain"),
        "--kv-heads",
        "1",
        "--fraction",
        "0.1",
        "--out",
        str(out),
    ]
    told = CliRunner().invoke(cli.app, arguments, catch_exceptions=False)
    assert told.exit_code == 0
    same = _uptrain(root, tmp_path / "same", 1, 0.1)
    assert f"4 key and value heads before: {same.before:.4f} bits per byte\n" in told.output
    assert f"1 after pooling: {same.pooled:.4f}\n" in told.output
    assert f"1 after uptraining (4 steps, 512 tokens): {same.uptrained:.4f}\n" in told.output
    assert digests(out, ".") == digests(tmp_path / "same", ".")
    assert not list((root / ".axon").glob("uptrain-*"))


def test_a_name_that_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="'nothing' is not a model; allowed: champion, challenger, pretrain"):
        uptraining.source_of(Checkout(tmp_path), "nothing")
