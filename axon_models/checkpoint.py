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
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt")


def save(
    model: Decoder,
    directory: str | Path,
    *,
    tokenizer_dir: str | Path | None = None,
    scalar_head: nn.Linear | Tensor | None = None,
) -> None:
    """Write `model` as a LlamaForCausalLM directory in float32; each file appears whole or not at all.

    With `scalar_head` (a linear layer of weight (1, D), or that weight) it is also a LlamaForSequenceClassification
    of one label. The tokenizer's files are copied from `tokenizer_dir`. The bytes depend on the weights alone.
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
    """The decoder of a Llama directory, in float32 and in evaluation mode; a scalar head beside it is left unread.

    Reads `model.safetensors`, whole or in shards. Raises `CheckpointError`, which lists everything that is wrong:
    no config or weights, pickled weights, tensors missing, unknown or of another shape, sizes that do not fit.
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
    tensors: dict[str, Tensor] = {}
    for file in _weight_files(directory):
        try:
            tensors.update(load_file(file))
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{file}: not a readable safetensors file ({error}); write it again") from error
    if config.tied_embeddings:
        tensors.pop("lm_head.weight", None)  # some writers store the tied matrix twice
    expected = hugging_face.shapes(config)
    if needs_head:
        expected[_HEAD] = (1, config.d_model)
    else:
        tensors.pop(_HEAD, None)
    raise_all(CheckpointError, str(directory), _differences(expected, tensors))
    return config, tensors


def _differences(expected: dict[str, tuple[int, ...]], tensors: dict[str, Tensor]) -> list[str]:
    wrong = [f"{name} is missing" for name in sorted(expected.keys() - tensors.keys())]
    wrong += [f"{name} is not a tensor of this model" for name in sorted(tensors.keys() - expected.keys())]
    for name in sorted(expected.keys() & tensors.keys()):
        if tuple(tensors[name].shape) != expected[name]:
            wrong.append(f"{name} has shape {tuple(tensors[name].shape)}, but the config asks for {expected[name]}")
        elif not tensors[name].is_floating_point():
            wrong.append(f"{name} has type {tensors[name].dtype}, but must hold floating-point numbers")
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
