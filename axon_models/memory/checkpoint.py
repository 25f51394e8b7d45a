"""Model directories of the Transformer-XL: `config.json` and `model.safetensors`. Nothing is pickled.

transformers has no class for this family any more, so `config.json` names a model type of our own and holds our config
under `decoder`, as those of our other own families do.
"""
# D model

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from axon_models.errors import CheckpointError, ConfigError, raise_all
from axon_models.layers.language_model import ScalarModel
from axon_models.layers.language_model import scalar_head as new_head
from axon_models.memory.config import TransformerXLConfig
from axon_models.memory.model import TransformerXL
from axon_models.model_files import (
    BOS_ID,
    EOS_ID,
    HEAD,
    PAD_ID,
    differences,
    homes_by_index,
    read_json,
    read_tensors,
    write_directory,
)

FAMILY = "transformer_xl"
MODEL_TYPE = f"axon_{FAMILY}"
_ABOUT = {
    "model_type": MODEL_TYPE,
    "bos_token_id": BOS_ID,
    "eos_token_id": EOS_ID,
    "pad_token_id": PAD_ID,
    "dtype": "float32",
    "note": "transformers has no class for this model; read it with axon_models.load(directory)",
}


def save(
    model: TransformerXL,
    directory: str | Path,
    *,
    tokenizer_dir: str | Path | None = None,
    scalar_head: nn.Linear | Tensor | None = None,
) -> None:
    """Write `model` in float32; each file appears whole or not at all, and its bytes depend on the weights alone.

    With `scalar_head` (a linear layer of weight (1, D), or that weight) also the head of a reward. The tokenizer's
    files are copied from `tokenizer_dir`.
    """
    tensors = dict(model.state_dict())
    if scalar_head is not None:
        tensors[HEAD] = scalar_head.weight if isinstance(scalar_head, nn.Linear) else scalar_head
    architecture = "TransformerXL" if scalar_head is None else "TransformerXLWithScalarHead"
    tree = {**_ABOUT, "architectures": [architecture], "decoder": asdict(model.config)}
    write_directory(Path(directory), tree, tensors, tokenizer_dir)


def load(directory: str | Path, *, device: str | torch.device = "cpu") -> TransformerXL:
    """The model of a directory that `save` wrote, in float32 and in evaluation mode; a head is left unread.

    Raises `CheckpointError`, which lists everything that is wrong: no config or weights, another family, sizes that
    do not fit, pickled weights, tensors missing, unknown, of another shape or with numbers that are not finite.
    """
    config, tensors = _read(Path(directory), needs_head=False)
    return _model(config, tensors).to(device)


def load_scalar_model(directory: str | Path, *, device: str | torch.device = "cpu") -> ScalarModel:
    """As `load`, together with the scalar head; a directory without one raises `CheckpointError`."""
    config, tensors = _read(Path(directory), needs_head=True)
    head = new_head(config.d_model)
    head.load_state_dict({"weight": tensors.pop(HEAD).float()})
    return ScalarModel(_model(config, tensors), head).eval().to(device)


def _model(config: TransformerXLConfig, tensors: Mapping[str, Tensor]) -> TransformerXL:
    model = TransformerXL(config)
    model.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
    return model.eval()


def _read(directory: Path, *, needs_head: bool) -> tuple[TransformerXLConfig, dict[str, Tensor]]:
    if not directory.is_dir():
        raise CheckpointError(f"{directory}: there is no such model directory")
    config = _config(read_json(directory / "config.json"), directory)
    tensors, homes = read_tensors(directory)
    with torch.device("meta"):
        expected = {name: tuple(tensor.shape) for name, tensor in TransformerXL(config).state_dict().items()}
    if needs_head:
        expected[HEAD] = (1, config.d_model)
    else:
        tensors.pop(HEAD, None)
    homes = {**homes_by_index(directory), **homes}
    raise_all(CheckpointError, str(directory), differences(expected, tensors, homes))
    return config, tensors


def _config(tree: Mapping[str, Any], directory: Path) -> TransformerXLConfig:
    found, sizes = tree.get("model_type"), tree.get("decoder")
    if found != MODEL_TYPE:
        raise CheckpointError(f"{directory}: config.json: model_type={found!r} is not supported, only {MODEL_TYPE!r}")
    if not isinstance(sizes, Mapping):
        raise CheckpointError(f"{directory}: config.json: decoder is missing; it must hold the sizes")
    names = [field.name for field in fields(TransformerXLConfig)]
    wrong = [f"config.json: decoder.{name} is missing" for name in names if name not in sizes]
    wrong += [f"config.json: decoder.{name} is not known" for name in sorted(sizes.keys() - set(names))]
    raise_all(CheckpointError, str(directory), wrong)
    try:
        return TransformerXLConfig(**sizes)
    except ConfigError as error:
        raise CheckpointError(f"{directory}: config.json: {error}") from error
