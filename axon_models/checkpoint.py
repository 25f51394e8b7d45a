"""Model directories: a decoder, with or without a scalar head, as a Hugging Face checkpoint. Nothing is pickled."""
# D model

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from axon_models.decoder import hugging_face
from axon_models.decoder.config import DecoderConfig
from axon_models.decoder.model import Decoder, ScalarModel, scalar_head
from axon_models.errors import CheckpointError, raise_all

BOS_ID, PAD_ID, EOS_ID = 0, 1, 5  # <|endoftext|>, <|pad|>, <|end|>
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")
_WEIGHTS, _INDEX, _HEAD = "model.safetensors", "model.safetensors.index.json", "score.weight"
_OUTPUT = "lm_head.weight"
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt")


def save(
    model: Decoder,
    directory: str | Path,
    *,
    tokenizer_dir: str | Path | None = None,
    scalar_head: nn.Linear | Tensor | None = None,
) -> None:
    """Write `model` as a checkpoint of its family (`LlamaForCausalLM`, …) in float32; each file whole or not at all.

    With `scalar_head` (a linear layer of weight (1, D), or that weight) it is also a model for sequence classification
    with one label. The tokenizer's files are copied from `tokenizer_dir`. The bytes depend on the weights alone.
    Raises `CheckpointError` for a decoder that its family's config cannot express.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    tensors = hugging_face.to_tensors(model.config, model.state_dict())
    if scalar_head is not None:
        weight = scalar_head.weight if isinstance(scalar_head, nn.Linear) else scalar_head
        tensors[_HEAD] = weight.detach().to("cpu", torch.float32).contiguous()
    ids = {"bos_id": BOS_ID, "eos_id": EOS_ID, "pad_id": PAD_ID}
    tree = hugging_face.to_json(model.config, **ids, n_labels=0 if scalar_head is None else 1)
    generation = {"bos_token_id": BOS_ID, "eos_token_id": EOS_ID, "pad_token_id": PAD_ID, "do_sample": True}
    for name in _TOKENIZER_FILES if tokenizer_dir is not None else ():
        source = Path(tokenizer_dir or "") / name
        if source.is_file():
            _replace(directory / name, source.read_bytes())
    _replace(directory / "generation_config.json", _json_bytes(generation))
    _replace(directory / "config.json", _json_bytes(tree))
    scratch = directory / f".{_WEIGHTS}.{os.getpid()}.tmp"
    try:
        save_file(tensors, scratch, metadata={"format": "pt"})
        os.replace(scratch, directory / _WEIGHTS)
    finally:
        scratch.unlink(missing_ok=True)


def load(directory: str | Path, *, device: str | torch.device = "cpu") -> Decoder:
    """The decoder of a model directory, in float32 and in evaluation mode; a scalar head beside it is left unread.

    Reads every family of `decoder/families`: `model.safetensors`, whole or in shards, of any floating-point type.
    Raises `CheckpointError`, which lists everything that is wrong with the file where it is: no config or weights,
    pickled weights, tensors missing, unknown, of another shape or with NaN or infinity, sizes that do not fit.
    """
    config, tensors = _read(Path(directory), needs_head=False)
    return _decoder(config, tensors).to(device)


def load_scalar_model(directory: str | Path, *, device: str | torch.device = "cpu") -> ScalarModel:
    """As `load`, together with the scalar head; a directory without one raises `CheckpointError`."""
    config, tensors = _read(Path(directory), needs_head=True)
    head = scalar_head(config.d_model)
    head.load_state_dict({"weight": tensors[_HEAD].float()})
    return ScalarModel(_decoder(config, tensors), head).eval().to(device)


def _decoder(config: DecoderConfig, tensors: dict[str, Tensor]) -> Decoder:
    model = Decoder(config)
    model.load_state_dict(hugging_face.from_tensors(config, tensors))
    return model.eval()


def _read(directory: Path, *, needs_head: bool) -> tuple[DecoderConfig, dict[str, Tensor]]:
    if not directory.is_dir():
        raise CheckpointError(f"{directory}: there is no such model directory")
    try:
        config = hugging_face.from_json(_read_json(directory / "config.json"))
    except CheckpointError as error:
        raise CheckpointError(f"{directory}: {error}") from error
    tensors, homes = _read_tensors(directory, config)
    expected = hugging_face.shapes(config)
    if needs_head:
        expected[_HEAD] = (1, config.d_model)
    else:
        tensors.pop(_HEAD, None)
    raise_all(CheckpointError, str(directory), _differences(expected, tensors, homes))
    return config, tensors


def _read_tensors(directory: Path, config: DecoderConfig) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors of a directory by their names in its family, and the file of each."""
    family = hugging_face.family_of(config)
    tensors: dict[str, Tensor] = {}
    homes: dict[str, str] = {}
    for file in _weight_files(directory):
        try:
            found = load_file(file)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{file}: not a readable safetensors file ({error}); write it again") from error
        twice = [f"{name} stands in {homes[name]} and in {file.name}" for name in sorted(found) if name in homes]
        raise_all(CheckpointError, str(directory), twice)
        tensors.update(found)
        homes.update(dict.fromkeys(found, file.name))
    pairs = family.named(tensors)
    by_tensor = {id(tensor): homes[name] for name, tensor in tensors.items()}
    return _untied(directory, config, pairs), {name: by_tensor[id(tensor)] for name, tensor in pairs.items()}


def _untied(directory: Path, config: DecoderConfig, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """`tensors` without the output matrix of a tied model, which some writers store a second time."""
    if not config.tied_embeddings or _OUTPUT not in tensors:
        return tensors
    pieces = hugging_face.family_of(config).pieces(config)
    (embedding,) = pieces["embedding.weight"].names
    if embedding in tensors and not torch.equal(tensors[embedding], tensors[_OUTPUT]):
        raise CheckpointError(
            f"{directory}: {_OUTPUT} differs from {embedding}, but config.json ties them; set tie_word_embeddings "
            "to false there if it is a matrix of its own"
        )
    return {name: tensor for name, tensor in tensors.items() if name != _OUTPUT}


def _differences(expected: dict[str, tuple[int, ...]], tensors: dict[str, Tensor], homes: dict[str, str]) -> list[str]:
    files = ", ".join(sorted(set(homes.values())))
    wrong = [f"{name} is missing ({files})" for name in sorted(expected.keys() - tensors.keys())]
    unknown = sorted(tensors.keys() - expected.keys())
    wrong += [f"{name} is not a tensor of this model ({homes[name]})" for name in unknown]
    for name in sorted(expected.keys() & tensors.keys()):
        tensor, home = tensors[name], homes[name]
        if tuple(tensor.shape) != expected[name]:
            asked = f"but the config asks for {expected[name]}"
            wrong.append(f"{name} has shape {tuple(tensor.shape)}, {asked} ({home})")
        elif not tensor.is_floating_point():
            wrong.append(f"{name} has type {tensor.dtype}, but must hold floating-point numbers ({home})")
        elif n := int((~tensor.isfinite()).sum()):
            wrong.append(f"{name} has {n} of {tensor.numel()} numbers that are NaN or infinite ({home})")
    return wrong


def _weight_files(directory: Path) -> Iterable[Path]:
    if (directory / _WEIGHTS).is_file():
        return [directory / _WEIGHTS]
    if (directory / _INDEX).is_file():
        names = sorted(set(_read_json(directory / _INDEX).get("weight_map", {}).values()))
        outside = [f"{_INDEX} names {name!r}, which is not a file name" for name in names if Path(name).name != name]
        raise_all(CheckpointError, str(directory), outside)
        return [directory / name for name in names]
    pickles = sorted(file.name for pattern in _PICKLES for file in directory.glob(pattern))
    found = (
        f"; {', '.join(pickles)} may run code when read and is refused: convert it to safetensors" if pickles else ""
    )
    raise CheckpointError(f"{directory}: {_WEIGHTS} is missing{found}")


def _read_json(file: Path) -> dict[str, Any]:
    try:
        tree = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{file.name} cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise CheckpointError(f"{file.name} is not JSON ({error})") from error
    if not isinstance(tree, dict):
        raise CheckpointError(f"{file.name} must hold an object, but holds {type(tree).__name__}")
    return tree


def _json_bytes(tree: dict[str, Any]) -> bytes:
    return (json.dumps(tree, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()


def _replace(file: Path, content: bytes) -> None:
    scratch = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    try:
        scratch.write_bytes(content)
        os.replace(scratch, file)
    finally:
        scratch.unlink(missing_ok=True)
