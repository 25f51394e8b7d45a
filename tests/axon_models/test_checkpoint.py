from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from axon_models.checkpoint import load, load_scalar_model, save
from axon_models.decoder.model import Decoder
from axon_models.decoder.presets import config_of
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
    assert "model.norm.weight is missing (model.safetensors)" in message
    assert "model.surplus is not a tensor of this model (model.safetensors)" in message
    assert "down_proj.weight has shape (2, 2), but the config asks for (24, 37) (model.safetensors)" in message


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


def rewrite(directory: Path, tensors: dict[str, torch.Tensor]) -> None:
    save_file(tensors, directory / "model.safetensors")


def test_nan_and_infinity_are_refused_by_name_number_and_file(directory: Path) -> None:
    tensors = load_file(directory / "model.safetensors")
    tensors["model.norm.weight"][3] = float("nan")
    tensors["model.layers.1.mlp.up_proj.weight"][0, :2] = float("-inf")
    rewrite(directory, tensors)
    with pytest.raises(CheckpointError) as caught:
        load(directory)
    message = str(caught.value)
    assert "2 mistake(s)" in message
    assert "model.norm.weight has 1 of 24 numbers that are NaN or infinite (model.safetensors)" in message
    assert "model.layers.1.mlp.up_proj.weight has 2 of 888 numbers" in message


def test_mistakes_in_shards_name_the_shard(directory: Path) -> None:
    tensors = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    tensors["model.surplus"] = torch.ones(1)
    names = sorted(tensors)
    homes = {name: f"model-0000{1 + (i >= 5)}-of-00002.safetensors" for i, name in enumerate(names)}
    for home in set(homes.values()):
        save_file({name: tensors[name] for name in names if homes[name] == home}, directory / home)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": homes}))
    with pytest.raises(CheckpointError, match=r"model\.surplus is not a tensor of this model \(model-00002-of"):
        load(directory)
    second = directory / "model-00002-of-00002.safetensors"
    save_file({"model.embed_tokens.weight": torch.ones(67, 24), **load_file(second)}, second)
    with pytest.raises(CheckpointError, match=r"embed_tokens\.weight stands in model-00001-of-00002\.safetensors"):
        load(directory)


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_half_precision_is_read_as_float32(directory: Path, kind: torch.dtype) -> None:
    whole = load(directory)
    rewrite(directory, {name: t.to(kind) for name, t in load_file(directory / "model.safetensors").items()})
    half = load(directory)
    for name, tensor in half.state_dict().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, whole.state_dict()[name].to(kind).float())


def test_whole_numbers_are_no_weights(directory: Path) -> None:
    tensors = load_file(directory / "model.safetensors")
    rewrite(directory, {**tensors, "model.norm.weight": torch.ones(24, dtype=torch.int64)})
    with pytest.raises(CheckpointError, match=r"model\.norm\.weight has type torch\.int64"):
        load(directory)


def test_a_tied_matrix_may_stand_twice_but_not_as_two_matrices(directory: Path) -> None:
    tensors = load_file(directory / "model.safetensors")
    tied = tensors["model.embed_tokens.weight"]
    rewrite(directory, {**tensors, "lm_head.weight": tied.clone()})
    assert torch.equal(load(directory).embedding.weight, tied)
    rewrite(directory, {**tensors, "lm_head.weight": tied + 1})
    with pytest.raises(CheckpointError, match=r"lm_head\.weight \(.*\) differs from model\.embed_tokens\.weight \("):
        load(directory)


@pytest.mark.parametrize("model_type", ["bloom", ["llama"], 3])
def test_an_unknown_model_type_is_refused_with_those_that_are_known(directory: Path, model_type: object) -> None:
    change_config(directory, model_type=model_type)
    with pytest.raises(
        CheckpointError, match=r"is not supported; allowed: llama, gpt2, .*axon_transformer_xl"
    ) as caught:
        load(directory)
    assert f"model_type={model_type!r}" in str(caught.value)


@pytest.mark.parametrize(
    ("preset", "changes", "expected"),
    [
        ("gpt2", {"activation_function": "relu"}, "activation_function='relu' is not supported"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx=True is not supported"),
        ("gpt2", {"n_head": 5}, "heads=5 must divide d_model=24"),
        ("gpt", {"afn": "silu"}, "afn='silu' is not supported"),
        ("phi", {"qk_layernorm": True}, "qk_layernorm=True is not supported"),
        ("mistral", {"hidden_act": "gelu"}, "hidden_act='gelu' is not supported"),
        ("mistral", {"sliding_window": 0}, "window=0 must be a whole number"),
        ("mixtral", {"num_experts_per_tok": 9}, "experts_per_token=9 must be from 1 to experts=8"),
        ("x_llama", {"rope_parameters": {"rope_type": "linear", "factor": 0.5}}, "rope_scaling.factor=0.5"),
        ("x_llama", {"rope_parameters": {"rope_type": "dynamic", "factor": "2"}}, "rope_scaling.factor='2'"),
        ("pygpt", {"decoder": None}, "decoder is missing"),
        ("switch", {"decoder": {"experts": {"m": 2}, "heads": 2}}, "decoder.experts.n is missing"),
    ],
)
def test_a_config_that_another_family_cannot_hold_is_refused(
    tmp_path: Path, preset: str, changes: dict[str, object], expected: str
) -> None:
    sizes = {"vocab_size": 67, "d_model": 24, "n_layers": 1, "heads": 2, "max_positions": 16}
    model = Decoder(config_of(preset, **sizes))
    model.init_weights(torch.Generator().manual_seed(0))
    save(model, tmp_path)
    load(tmp_path)
    change_config(tmp_path, **changes)
    with pytest.raises(CheckpointError) as caught:
        load(tmp_path)
    assert expected in str(caught.value)


def test_a_decoder_that_its_family_cannot_hold_is_not_written(tmp_path: Path) -> None:
    sizes = {"vocab_size": 67, "d_model": 24, "n_layers": 1, "heads": 2, "max_positions": 16}
    with pytest.raises(CheckpointError, match="d_feed_forward=50 would be read as 96"):
        save(Decoder(config_of("gpt", d_feed_forward=50, **sizes)), tmp_path)
    with pytest.raises(CheckpointError, match="window=4 would be read as None"):
        save(Decoder(config_of("x_llama", window=4, **sizes)), tmp_path)
    assert not list(tmp_path.iterdir())
