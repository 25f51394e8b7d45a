"""The files of a model directory, whatever the family: JSON and safetensors, written whole or not at all."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from axon_models.errors import CheckpointError, raise_all

BOS_ID, PAD_ID, EOS_ID = 0, 1, 5  # <|endoftext|>, <|pad|>, <|end|>
WEIGHTS = "model.safetensors"
HEAD = "score.weight"  # of a model that gives one number per position
_INDEX = "model.safetensors.index.json"
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt")
_REFUSED = (
    "may run code when read and is refused: convert it with torch.load(…, weights_only=True) and "
    "safetensors.torch.save_file"
)


def write_json(file: Path, tree: Mapping[str, Any]) -> None:
    """Write `tree` with sorted keys, so that the bytes depend on the content alone."""
    content = (json.dumps(tree, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()
    _replace(file, lambda scratch: scratch.write_bytes(content))


def write_tensors(file: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write `tensors` as float32 safetensors."""
    exact = {name: tensor.detach().to("cpu", torch.float32).contiguous() for name, tensor in tensors.items()}
    # One key alone: with several, the bytes differ from process to process.
    _replace(file, lambda scratch: save_file(exact, scratch, metadata={"format": "pt"}))


def write_generation_config(directory: Path) -> None:
    """Write the ids of the chat format, by which generation ends."""
    ids = {"bos_token_id": BOS_ID, "eos_token_id": EOS_ID, "pad_token_id": PAD_ID}
    write_json(directory / "generation_config.json", {**ids, "do_sample": True})


def copy_tokenizer(source: Path, directory: Path) -> None:
    """Copy what is there of a tokenizer's files."""
    for name in _TOKENIZER_FILES:
        if (source / name).is_file():
            _replace(directory / name, partial(shutil.copyfile, source / name))


def write_directory(
    directory: Path, tree: Mapping[str, Any], tensors: Mapping[str, Tensor], tokenizer_dir: str | Path | None
) -> None:
    """Write a model directory, made if need be: config.json of `tree`, the weights last, a tokenizer's files copied."""
    directory.mkdir(parents=True, exist_ok=True)
    if tokenizer_dir is not None:
        copy_tokenizer(Path(tokenizer_dir), directory)
    write_generation_config(directory)
    write_json(directory / "config.json", tree)
    write_tensors(directory / WEIGHTS, tensors)


def read_json(file: Path) -> dict[str, Any]:
    """The object in `file`; anything else raises `CheckpointError`."""
    try:
        tree = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise CheckpointError(f"{file} is not JSON ({error})") from error
    if not isinstance(tree, dict):
        raise CheckpointError(f"{file} must hold an object, but holds {type(tree).__name__}")
    return tree


def read_tensors(directory: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors of `model.safetensors`, whole or in shards, and the name of the file of each.

    Raises `CheckpointError` with all files that are missing, damaged or pickled, and all tensors that stand in two.
    """
    tensors: dict[str, Tensor] = {}
    homes: dict[str, str] = {}
    wrong: list[str] = []
    for file in _weight_files(directory):
        try:
            found = load_file(file)
        except FileNotFoundError:
            wrong.append(f"{file.name} is missing, but {_INDEX} names it; put it there, or fetch the model again")
        except (SafetensorError, OSError) as error:
            wrong.append(f"{file.name} {_why_unreadable(file, error)}")
        else:
            wrong += [f"{name} stands in {homes[name]} and in {file.name}" for name in sorted(found) if name in homes]
            tensors.update(found)
            homes.update(dict.fromkeys(found, file.name))
    raise_all(CheckpointError, str(directory), wrong)
    return tensors, homes


def homes_by_index(directory: Path) -> dict[str, str]:
    """The name of the file in which each tensor should be; {} where no index counts, since the weights are one file."""
    file = directory / _INDEX
    if (directory / WEIGHTS).is_file() or not file.is_file():
        return {}
    homes = read_json(file).get("weight_map")
    if not isinstance(homes, dict) or not homes or not all(isinstance(home, str) for home in homes.values()):
        raise CheckpointError(f"{file}: weight_map={homes!r:.60} must be an object with the file of each tensor")
    names = sorted(set(homes.values()))
    outside = [f"{_INDEX} names {name!r}, which is not a file name" for name in names if Path(name).name != name]
    raise_all(CheckpointError, str(directory), outside)
    return homes


def differences(
    expected: Mapping[str, Sequence[int]], tensors: Mapping[str, Tensor], homes: Mapping[str, str]
) -> list[str]:
    """Every tensor that is missing, unknown, of another shape, not of floating-point numbers or not finite.

    homes: the file of each tensor, also of one that is not there, if it is known where it should be.
    """
    files = ", ".join(sorted(set(homes.values())))
    wrong = [f"{name} is missing ({homes.get(name, files)})" for name in sorted(expected.keys() - tensors.keys())]
    unknown = sorted(tensors.keys() - expected.keys())
    wrong += [f"{name} is not a tensor of this model ({homes[name]})" for name in unknown]
    for name in sorted(expected.keys() & tensors.keys()):
        tensor, shape, home = tensors[name], tuple(expected[name]), homes[name]
        if tuple(tensor.shape) != shape:
            wrong.append(f"{name} has shape {tuple(tensor.shape)}, but the config asks for {shape} ({home})")
        elif not tensor.is_floating_point():
            wrong.append(f"{name} has type {tensor.dtype}, but must hold floating-point numbers ({home})")
        elif n_bad := int((~tensor.isfinite()).sum()):
            wrong.append(f"{name} has {n_bad} of {tensor.numel()} numbers that are NaN or infinite ({home})")
    return wrong


def _weight_files(directory: Path) -> Iterable[Path]:
    if (directory / WEIGHTS).is_file():
        return [directory / WEIGHTS]
    if homes := homes_by_index(directory):
        return [directory / name for name in sorted(set(homes.values()))]
    pickles = sorted(file.name for pattern in _PICKLES for file in directory.glob(pattern))
    found = f"; {', '.join(pickles)} {_REFUSED}" if pickles else ""
    raise CheckpointError(f"{directory}: {WEIGHTS} is missing{found}")


def _why_unreadable(file: Path, error: Exception) -> str:
    """What is wrong with a file that is no safetensors. Its first bytes tell a pickle; nothing is unpickled."""
    try:
        with file.open("rb") as opened:
            start = opened.read(9)
    except OSError:
        start = b""
    # safetensors may begin with these bytes too, which are the length of its header; the header begins with a brace.
    if re.match(rb"PK\x03\x04|\x80[\2-\5]", start) and not start.endswith(b"{"):
        return f"is a pickle, as torch.save writes it, whatever its name; it {_REFUSED}"
    return f"is not a readable safetensors file ({error}); write it again"


def _replace(file: Path, write: Callable[[Path], object]) -> None:
    scratch = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    try:
        write(scratch)
        os.replace(scratch, file)
    finally:
        scratch.unlink(missing_ok=True)
