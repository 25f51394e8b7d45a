"""Model directories of the Transformer-XL: `config.json` and `model.safetensors`. Nothing is pickled.

transformers has no class for this family any more, so `config.json` names a model type of our own.
"""

from __future__ import annotations

from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch

from axon_models.errors import CheckpointError, ConfigError, raise_all
from axon_models.memory.config import TransformerXLConfig
from axon_models.memory.model import TransformerXL
from axon_models.model_files import (
    WEIGHTS,
    copy_tokenizer,
    differences,
    read_json,
    read_tensors,
    write_json,
    write_tensors,
)

MODEL_TYPE = "axon_transformer_xl"
_ABOUT = {
    "model_type": MODEL_TYPE,
    "architectures": ["TransformerXL"],
    "dtype": "float32",
    "library": "transformers has no class for this model; read it with axon_models.load",
}


def save(model: TransformerXL, directory: str | Path, *, tokenizer_dir: str | Path | None = None) -> None:
    """Write `model` in float32; each file appears whole or not at all, and its bytes depend on the weights alone.

    The tokenizer's files are copied from `tokenizer_dir`.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    if tokenizer_dir is not None:
        copy_tokenizer(Path(tokenizer_dir), directory)
    write_json(directory / "config.json", {**_ABOUT, **asdict(model.config)})
    write_tensors(directory / WEIGHTS, model.state_dict())


def load(directory: str | Path, *, device: str | torch.device = "cpu") -> TransformerXL:
    """The model of a directory that `save` wrote, in float32 and in evaluation mode.

    Raises `CheckpointError`, which lists everything that is wrong: no config or weights, another family, sizes that
    do not fit, pickled weights, tensors missing, unknown, of another shape or with numbers that are not finite.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise CheckpointError(f"{directory}: there is no such model directory")
    config = _config(read_json(directory / "config.json"), directory)
    tensors, homes = read_tensors(directory)
    with torch.device("meta"):
        model = TransformerXL(config)
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    raise_all(CheckpointError, str(directory), differences(expected, tensors, homes))
    model.load_state_dict({name: tensor.float() for name, tensor in tensors.items()}, assign=True)
    return model.eval().to(device)


def _config(tree: dict[str, Any], directory: Path) -> TransformerXLConfig:
    if tree.get("model_type") != MODEL_TYPE:
        found = tree.get("model_type")
        raise CheckpointError(f"{directory}: config.json: model_type={found!r} is not supported, only {MODEL_TYPE!r}")
    names = [field.name for field in fields(TransformerXLConfig)]
    wrong = [f"config.json: {name} is missing" for name in names if name not in tree]
    wrong += [f"config.json: {name!r} is not known" for name in sorted(tree.keys() - set(names) - _ABOUT.keys())]
    raise_all(CheckpointError, str(directory), wrong)
    try:
        return TransformerXLConfig(**{name: tree[name] for name in names})
    except ConfigError as error:
        raise CheckpointError(f"{directory}: config.json: {error}") from error
