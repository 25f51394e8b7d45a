"""Model directories of every family that is a language model, with or without a scalar head."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor, nn

from axon_models.decoder import checkpoint as decoder
from axon_models.decoder.hugging_face import BY_TYPE
from axon_models.errors import CheckpointError
from axon_models.layers.language_model import LanguageModel, ScalarModel
from axon_models.memory import checkpoint as memory
from axon_models.model_files import read_json


def save(
    model: LanguageModel,
    directory: str | Path,
    *,
    tokenizer_dir: str | Path | None = None,
    scalar_head: nn.Linear | Tensor | None = None,
) -> None:
    """Write `model` in float32 as a checkpoint of its family; each file whole or not at all.

    With `scalar_head` (a linear layer of weight (1, D), or that weight) it is also a model that gives one number per
    position. The tokenizer's files are copied from `tokenizer_dir`. The bytes depend on the weights alone. Raises
    `CheckpointError` for a model that its family's config cannot express.
    """
    family = memory if model.config.family == memory.FAMILY else decoder
    family.save(model, directory, tokenizer_dir=tokenizer_dir, scalar_head=scalar_head)


def load(directory: str | Path, *, device: str | torch.device = "cpu") -> LanguageModel:
    """The language model of a directory, in float32 and in evaluation mode; a scalar head beside it is left unread.

    The `model_type` of config.json decides on the family. Raises `CheckpointError`, which lists everything that is
    wrong: no config or weights, pickled weights, tensors missing, unknown, of another shape or with NaN or infinity,
    sizes that do not fit.
    """
    model: LanguageModel = _family_of(directory).load(directory, device=device)
    return model


def load_scalar_model(directory: str | Path, *, device: str | torch.device = "cpu") -> ScalarModel:
    """As `load`, together with the scalar head; a directory without one raises `CheckpointError`."""
    model: ScalarModel = _family_of(directory).load_scalar_model(directory, device=device)
    return model


def _family_of(directory: str | Path) -> ModuleType:
    file = Path(directory) / "config.json"
    model_type = read_json(file).get("model_type") if file.is_file() else None
    if model_type == memory.MODEL_TYPE:
        return memory
    if model_type is not None and model_type not in list(BY_TYPE):  # it may be anything, a list too
        known = ", ".join([*BY_TYPE, memory.MODEL_TYPE])
        raise CheckpointError(f"{file}: model_type={model_type!r} is not supported; allowed: {known}")
    return decoder
