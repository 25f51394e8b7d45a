from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from axon_models.checkpoint import load, load_scalar_model, save
from axon_models.errors import CheckpointError
from tests.axon_models.small import small_decoder


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    save(small_decoder(), tmp_path / "model")
    return tmp_path / "model"


def change_config(directory: Path, **values: object) -> None:
    tree = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**tree, **values}))


def test_saving_twice_gives_the_same_bytes_and_no_scratch_files(directory: Path, tmp_path: Path) -> None:
    save(small_decoder(), tmp_path / "again", tokenizer_dir=tmp_path)
    files = sorted(file.name for file in directory.iterdir())
    assert files == ["config.json", "generation_config.json", "model.safetensors"]
    for name in files:
        assert (directory / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_the_tokenizers_files_are_copied(tmp_path: Path) -> None:
    source = tmp_path / "tokenizer"
    source.mkdir()
    (source / "tokenizer.json").write_text("{}")
    (source / "notes.txt").write_text("not of the tokenizer")
    save(small_decoder(), tmp_path / "model", tokenizer_dir=source)
    assert (tmp_path / "model" / "tokenizer.json").read_text() == "{}"
    assert not (tmp_path / "model" / "notes.txt").exists()


def test_missing_unknown_and_misshapen_tensors_are_listed_together(directory: Path) -> None:
    tensors = load_file(directory / "model.safetensors")
    del tensors["model.norm.weight"]
    tensors["model.surplus"] = torch.ones(1)
    tensors["model.layers.0.mlp.down_proj.weight"] = torch.ones(2, 2)
    save_file(tensors, directory / "model.safetensors")
    with pytest.raises(CheckpointError) as caught:
        load(directory)
    message = str(caught.value)
    assert "3 mistake(s)" in message
    assert "model.norm.weight is missing" in message
    assert "model.surplus is not a tensor of this model" in message
    assert "down_proj.weight has shape (2, 2), but the config asks for (24, 37)" in message


def test_a_truncated_file_is_refused(directory: Path) -> None:
    weights = directory / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="not a readable safetensors file"):
        load(directory)


def test_pickled_weights_are_refused(directory: Path) -> None:
    (directory / "model.safetensors").unlink()
    (directory / "pytorch_model.bin").write_bytes(b"anything")
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin may run code when read and is refused"):
        load(directory)


def test_what_the_decoder_cannot_do_is_refused(directory: Path) -> None:
    change_config(directory, attention_bias=True, rope_parameters={"rope_type": "yarn", "rope_theta": 1e4})
    with pytest.raises(CheckpointError) as caught:
        load(directory)
    assert "attention_bias=True is not supported" in str(caught.value)
    assert "rope_type='yarn' is not supported" in str(caught.value)


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (lambda d: (d / "config.json").unlink(), r"config\.json cannot be read"),
        (lambda d: (d / "config.json").write_text("{"), r"config\.json is not JSON"),
        (lambda d: (d / "config.json").write_text("[]"), "must hold an object"),
        (lambda d: change_config(d, num_key_value_heads=4), "kv_heads=4 must divide heads=6"),
        (lambda d: (d / "config.json").write_text('{"model_type": "llama"}'), "hidden_size is missing"),
    ],
)
def test_a_damaged_config_is_refused(directory: Path, damage: object, expected: str) -> None:
    damage(directory)  # type: ignore[operator]
    with pytest.raises(CheckpointError, match=expected):
        load(directory)


def test_an_index_may_not_name_files_elsewhere(directory: Path) -> None:
    (directory / "model.safetensors").unlink()
    index = {"weight_map": {"model.norm.weight": "../other.safetensors"}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="is not a file name"):
        load(directory)


def test_a_directory_without_a_head_has_no_scalar_model(directory: Path) -> None:
    with pytest.raises(CheckpointError, match=r"score\.weight is missing"):
        load_scalar_model(directory)


def test_a_directory_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="there is no such model directory"):
        load(tmp_path / "nowhere")
