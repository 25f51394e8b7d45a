"""Weights that no decoder can be read from: what is said of each, and of all at once."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from axon_models.checkpoint import load, save
from axon_models.decoder.model import Decoder
from axon_models.decoder.presets import config_of
from axon_models.errors import CheckpointError
from tests.axon_models.memory.small import small_model
from tests.axon_models.small import randomise, small_decoder

EMBEDDING, OUTPUT, NORM = "model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    save(small_decoder(), tmp_path)
    return tmp_path


def tensors_of(file: Path) -> dict[str, Tensor]:
    """Copies: `load_file` alone maps the file, over which the tests write."""
    return {name: tensor.clone() for name, tensor in load_file(file).items()}


def told(directory: Path) -> list[str]:
    """The mistakes that are listed."""
    with pytest.raises(CheckpointError) as caught:
        load(directory)
    heading, *mistakes = str(caught.value).split("\n  - ")
    assert heading == f"{directory}: {len(mistakes)} mistake(s):"
    return mistakes


def shard(directory: Path, tensors: dict[str, Tensor]) -> dict[str, str]:
    """Write `tensors` in three files by turns, in place of one; returns the file of each."""
    homes = {name: f"model-0000{1 + i % 3}-of-00003.safetensors" for i, name in enumerate(sorted(tensors))}
    for home in set(homes.values()):
        save_file({name: tensors[name] for name in tensors if homes[name] == home}, directory / home)
    (directory / WEIGHTS).unlink()
    (directory / INDEX).write_text(json.dumps({"weight_map": homes}))
    return homes


@pytest.mark.parametrize("bad", [OUTPUT, EMBEDDING])
def test_nan_in_one_copy_of_a_tied_matrix_is_told_as_nan(directory: Path, bad: str) -> None:
    tensors = tensors_of(directory / WEIGHTS)
    tensors[OUTPUT] = tensors[EMBEDDING].clone()
    tensors[bad][2, 3], tensors[bad][0, 1] = float("nan"), float("inf")
    save_file(tensors, directory / WEIGHTS)
    assert told(directory) == [f"{bad} has 2 of 1608 numbers that are NaN or infinite (model.safetensors)"]


def test_a_copy_of_a_tied_matrix_that_has_another_shape_is_told_so(directory: Path) -> None:
    tensors = tensors_of(directory / WEIGHTS)
    save_file({**tensors, OUTPUT: tensors[EMBEDDING][:3].clone()}, directory / WEIGHTS)
    assert told(directory) == [
        f"{OUTPUT} has shape (3, 24), but the config asks for (67, 24) (model.safetensors)",
    ]


def test_two_matrices_for_a_tied_one_hide_no_other_mistake(directory: Path) -> None:
    tensors = tensors_of(directory / WEIGHTS)
    tensors |= {OUTPUT: tensors[EMBEDDING].clone(), "surplus": torch.ones(1)}
    tensors[OUTPUT][1, 1] += 1
    del tensors[NORM]
    home = shard(directory, {**tensors, NORM: torch.ones(24)})
    file = directory / home[NORM]
    save_file({name: tensor for name, tensor in tensors_of(file).items() if name != NORM}, file)
    assert told(directory) == [
        f"{NORM} is missing ({home[NORM]})",
        f"surplus is not a tensor of this model ({home['surplus']})",
        f"{OUTPUT} ({home[OUTPUT]}) differs from {EMBEDDING} ({home[EMBEDDING]}) in 1 of 1608 numbers, but config.json "
        "ties them; set tie_word_embeddings to false there if it is a matrix of its own",
    ]


def test_all_shards_that_are_missing_or_damaged_are_named(directory: Path) -> None:
    first, second, third = sorted(set(shard(directory, tensors_of(directory / WEIGHTS)).values()))
    (directory / first).unlink()
    (directory / third).unlink()
    missing = "is missing, but model.safetensors.index.json names it; put it there, or fetch the model again"
    assert told(directory) == [f"{first} {missing}", f"{third} {missing}"]
    (directory / second).write_bytes(b"not tensors")
    mistakes = told(directory)
    assert [mistake.partition(" ")[0] for mistake in mistakes] == [first, second, third]
    assert "is not a readable safetensors file" in mistakes[1]


def test_a_missing_tensor_names_the_file_where_the_index_has_it(directory: Path) -> None:
    tensors = tensors_of(directory / WEIGHTS)
    home = shard(directory, tensors)
    file = directory / home[NORM]
    save_file({name: tensor for name, tensor in tensors_of(file).items() if name != NORM}, file)
    assert told(directory) == [f"{NORM} is missing ({home[NORM]})"]
    (directory / INDEX).write_text(json.dumps({"weight_map": {n: h for n, h in home.items() if n != NORM}}))
    assert told(directory) == [f"{NORM} is missing ({', '.join(sorted(set(home.values())))})"]


def test_the_index_counts_under_names_without_their_prefix_and_in_a_transformer_xl(tmp_path: Path) -> None:
    sizes = {"vocab_size": 67, "d_model": 24, "n_layers": 1, "heads": 2, "max_positions": 16}
    gpt2, memory = tmp_path / "gpt2", tmp_path / "memory"
    save(randomise(Decoder(config_of("gpt2", **sizes))), gpt2)
    save(small_model(), memory)
    for directory, name in ((gpt2, "transformer.wpe.weight"), (memory, "blocks.0.attention.u_bias")):
        tensors = {n.removeprefix("transformer."): t for n, t in tensors_of(directory / WEIGHTS).items()}
        home = shard(directory, tensors)
        load(directory)
        short = name.removeprefix("transformer.")
        file = directory / home[short]
        save_file({n: t for n, t in tensors_of(file).items() if n != short}, file)
        assert told(directory) == [f"{name} is missing ({home[short]})"]


def test_an_index_beside_whole_weights_does_not_count(directory: Path) -> None:
    tensors = tensors_of(directory / WEIGHTS)
    (directory / INDEX).write_text(json.dumps({"weight_map": {NORM: "model-00001-of-00002.safetensors"}}))
    load(directory)
    del tensors[NORM]
    save_file(tensors, directory / WEIGHTS)
    assert told(directory) == [f"{NORM} is missing (model.safetensors)"]


@pytest.mark.parametrize("found", [None, ["a"], {}, {"a": 3}])
def test_an_index_without_files_is_refused(directory: Path, found: object) -> None:
    (directory / WEIGHTS).unlink()
    (directory / INDEX).write_text(json.dumps({"weight_map": found}))
    with pytest.raises(CheckpointError, match=r"index\.json: weight_map=.* must be an object with the file of each"):
        load(directory)


class Trap:
    """Writes a file where it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Callable[..., object], tuple[Path, str]]:
        return Path.write_text, (self.file, "was unpickled")


def torch_zip(content: object, file: Path) -> None:
    torch.save(content, file)


def torch_legacy(content: object, file: Path) -> None:
    torch.save(content, file, _use_new_zipfile_serialization=False)


def plain(protocol: int) -> Callable[[object, Path], None]:
    return lambda content, file: file.write_bytes(pickle.dumps(content, protocol)) and None


@pytest.mark.parametrize("write", [torch_zip, torch_legacy, plain(2), plain(3), plain(4), plain(5)])
@pytest.mark.parametrize("in_shards", [False, True])
def test_a_pickle_under_the_name_of_safetensors_is_refused_as_one(
    directory: Path, write: Callable[[object, Path], None], in_shards: bool
) -> None:
    tensors, name = tensors_of(directory / WEIGHTS), WEIGHTS
    if in_shards:
        name = shard(directory, tensors)[NORM]
    (directory / name).unlink()
    write({**tensors, "trap": Trap(directory / "trace")}, directory / name)
    assert told(directory) == [
        f"{name} is a pickle, as torch.save writes it, whatever its name; it may run code when read and is refused: "
        "convert it with torch.load(…, weights_only=True) and safetensors.torch.save_file"
    ]
    assert not (directory / "trace").exists()


def test_safetensors_that_begin_as_a_pickle_does_are_read(directory: Path) -> None:
    """Their first bytes are the length of the header, of which 0x10280 begins with 0x80 0x02."""
    file = directory / WEIGHTS
    length = int.from_bytes(file.read_bytes()[:8], "little")
    header = file.read_bytes()[8 : 8 + length]
    padded = header.ljust(0x10280)
    file.write_bytes(len(padded).to_bytes(8, "little") + padded + file.read_bytes()[8 + length :])
    assert file.read_bytes()[:2] == b"\x80\x02"
    load(directory)
    file.write_bytes(file.read_bytes()[:-100])
    (mistake,) = told(directory)
    assert "is not a readable safetensors file" in mistake
