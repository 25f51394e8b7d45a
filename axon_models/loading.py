"""Reading a model directory of any family that is a language model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from axon_models import checkpoint
from axon_models.memory import checkpoint as memory
from axon_models.model_files import read_json


def load(directory: str | Path, *, device: str | torch.device = "cpu") -> Any:
    """The `Decoder`, or the `TransformerXL`, of a model directory, in float32 and in evaluation mode.

    The `model_type` of config.json decides. Raises `CheckpointError`, which lists everything that is wrong.
    """
    file = Path(directory) / "config.json"
    if file.is_file() and read_json(file).get("model_type") == memory.MODEL_TYPE:
        return memory.load(directory, device=device)
    return checkpoint.load(directory, device=device)
