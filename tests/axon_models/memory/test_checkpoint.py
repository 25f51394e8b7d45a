from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from axon_models.errors import CheckpointError, ConfigError
from axon_models.memory.checkpoint import load, save
from axon_models.memory.config import TransformerXLConfig
from axon_models.memory.model import TransformerXL
from tests.axon_models.memory.small import SIZES, small_model, some_tokens


@pytest.mark.parametrize("tied", [True, False])
def test_a_directory_round_trips_to_the_bit(tmp_path: Path, tied: bool) -> None:
    model = small_model(tied_embeddings=tied)
    save(model, tmp_path / "one")
    again = load(tmp_path / "one")
    assert again.config == model.config
    assert not again.training
    assert torch.equal(again(some_tokens(2, 9)), model(some_tokens(2, 9)))
    save(again, tmp_path / "two")
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    assert sorted(file.name for file in (tmp_path / "one").iterdir()) == [
        "config.json",
        "generation_config.json",
        "model.safetensors",
    ]
    tree = json.loads((tmp_path / "one" / "config.json").read_text())
    assert tree["model_type"] == "axon_transformer_xl"
    assert "axon_models.load" in tree["note"]


def test_a_tokenizers_files_go_along(tmp_path: Path) -> None:
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "tokenizer.json").write_text("{}")
    save(small_model(), tmp_path / "model", tokenizer_dir=tmp_path / "tokenizer")
    assert (tmp_path / "model" / "tokenizer.json").read_text() == "{}"


def test_everything_wrong_with_the_weights_is_listed(tmp_path: Path) -> None:
    save(small_model(), tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["blocks.0.attention.u_bias"]
    tensors["blocks.0.feed_forward.up.weight"] = torch.zeros(3, 12)
    tensors["blocks.1.feed_forward.up.bias"] = torch.tensor([float("nan")] * 2 + [1.0] * 15)
    tensors["blocks.1.feed_forward.down.bias"] = torch.zeros(12, dtype=torch.int64)
    tensors["surplus"] = torch.zeros(1)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError) as caught:
        load(tmp_path)
    for expected in (
        "5 mistake(s)",
        "blocks.0.attention.u_bias is missing (model.safetensors)",
        "surplus is not a tensor of this model",
        "blocks.0.feed_forward.up.weight has shape (3, 12), but the config asks for (17, 12) (model.safetensors)",
        "blocks.1.feed_forward.up.bias has 2 of 17 numbers that are NaN or infinite",
        "blocks.1.feed_forward.down.bias has type torch.int64",
    ):
        assert expected in str(caught.value)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"model_type": "llama"}, "model_type='llama' is not supported, only 'axon_transformer_xl'"),
        ({"decoder": None}, "decoder is missing; it must hold the sizes"),
        ({"decoder.heads": None}, "decoder.heads is missing"),
        ({"decoder.adaptive_softmax": True}, "decoder.adaptive_softmax is not known"),
        ({"decoder.heads": 5}, "heads=5 must divide d_model=12"),
    ],
)
def test_a_wrong_config_is_refused(tmp_path: Path, change: dict[str, object], expected: str) -> None:
    save(small_model(), tmp_path)
    file = tmp_path / "config.json"
    tree = json.loads(file.read_text())
    for key, value in change.items():
        *above, name = key.split(".")
        part = tree[above[0]] if above else tree
        part[name] = value
        if value is None:
            del part[name]
    file.write_text(json.dumps(tree))
    with pytest.raises(CheckpointError, match=r"config\.json") as caught:
        load(tmp_path)
    assert expected in str(caught.value)


def test_missing_damaged_and_pickled_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="there is no such model directory"):
        load(tmp_path / "nowhere")
    save(small_model(), tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"not tensors")
    with pytest.raises(CheckpointError, match="not a readable safetensors file"):
        load(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin may run code when read and is refused"):
        load(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(CheckpointError, match="must hold an object, but holds list"):
        load(tmp_path)


def test_all_mistakes_in_sizes_are_reported_together() -> None:
    with pytest.raises(ConfigError) as caught:
        TransformerXLConfig(**{**SIZES, "heads": 2, "d_model": 13})
    assert "heads=2 must divide d_model=13; edit model.heads in params.yaml" in str(caught.value)
    assert "d_model=13 must be even" in str(caught.value)
    with pytest.raises(ConfigError) as caught:
        TransformerXLConfig(**{**SIZES, "segment_length": 65, "memory_length": 66})
    assert "segment_length=65 must be at most max_positions=64; edit model.segment_length" in str(caught.value)
    assert "memory_length=66 must be at most max_positions=64; edit model.memory_length" in str(caught.value)
    with pytest.raises(ConfigError) as caught:
        TransformerXLConfig(
            **{**SIZES, "memory_length": -1, "segment_length": 0, "n_layers": True, "norm_eps": float("nan")}
        )
    assert "memory_length=-1 must be a whole number of at least 0" in str(caught.value)
    assert "segment_length=0 must be a whole number of at least 1" in str(caught.value)
    assert "n_layers=True must be a whole number of at least 1" in str(caught.value)
    assert "norm_eps=nan must be a positive number" in str(caught.value)


@pytest.mark.parametrize("changes", [{}, {"tied_embeddings": False}, {"n_layers": 3, "heads": 1}])
def test_the_predicted_parameter_count_is_the_built_models(changes: dict[str, object]) -> None:
    model = small_model(**changes)
    assert model.config.n_parameters == sum(parameter.numel() for parameter in model.parameters())


def test_the_config_imports_without_torch() -> None:
    code = "import sys, axon_models.memory.config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_package_s_load_knows_both_families(tmp_path: Path) -> None:
    import axon_models
    from axon_models import checkpoint as decoders
    from tests.axon_models.small import small_decoder

    save(small_model(), tmp_path / "memory")
    decoders.save(small_decoder(), tmp_path / "decoder")
    assert type(axon_models.load(tmp_path / "memory")) is TransformerXL
    assert axon_models.load(tmp_path / "decoder").config == small_decoder().config
    (tmp_path / "decoder" / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="is not JSON"):
        axon_models.load(tmp_path / "decoder")
