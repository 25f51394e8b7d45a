"""The reward model as a file and as a function: its scalar at the last token, less the shift.

Only differences of rewards are learnt, so InstructGPT moves them until demonstrations score 0 on average. A Hugging
Face score head has no bias: the shift stands in config.json as `reward_shift`, and whoever wants rewards that mean
something on their own subtracts it.
"""

# B rows, T time, D model

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from axon_models import checkpoint
from axon_models.errors import CheckpointError
from axon_models.layers.language_model import ScalarModel
from tasks.errors import UserError
from tasks.files import new_directory, read_json, write_json
from tasks.steps.context import StepContext
from tasks.tokenizers.chat import PAD
from tasks.training.batches import pad_rows

_SHIFT = "reward_shift"


class Shifted(NamedTuple):
    """reward = model at the last token − shift."""

    model: ScalarModel
    shift: float


def scalars(model: ScalarModel, tokens: Tensor) -> Tensor:
    """The scalar at every place, (B, T) float32, of tokens (B, T).

    The head's product is a sum in float32 even under autocast: in bfloat16 two good answers would often tie.
    """
    hidden = model.backbone.states(tokens)  # (B, T, D)
    return (hidden.float() * model.head.weight[0]).sum(-1)


def final_scalars(model: ScalarModel, tokens: Tensor, lengths: Tensor) -> Tensor:
    """The scalar at each row's last token, (B,) float32, of tokens (B, T) padded on the right, lengths (B,) int64.

    Raises `ValueError` where padding would change it (`LanguageModel.padded_positions`).
    """
    model.backbone.check_padding(lengths, tokens.shape[1])
    return scalars(model, tokens).gather(1, (lengths - 1).unsqueeze(1)).squeeze(1)


@torch.no_grad()
def score_sequences(model: ScalarModel, sequences: Sequence[list[int]], *, batch_size: int = 32) -> list[float]:
    """The model's scalar at the last token of each sequence, without the shift."""
    device = next(model.parameters()).device
    found: list[float] = []
    for start in range(0, len(sequences), batch_size):
        part = list(sequences[start : start + batch_size])
        lengths = torch.tensor([len(s) for s in part], device=device)  # (B,)
        found += final_scalars(model, pad_rows(part, pad_id=PAD).to(device), lengths).tolist()
    return found


def demonstration_mean(model: ScalarModel, demonstrations: Sequence[list[int]]) -> float:
    """Mean scalar of `demonstrations`; those longer than the model's positions, or than can be padded, are left out."""
    fitting = [d for d in demonstrations if len(d) <= model.backbone.padded_positions]
    found = score_sequences(model, fitting)
    return sum(found) / len(found)


def write(context: StepContext, stage: str, model: ScalarModel, *, shift: float) -> None:
    """Write `models/STAGE/` with `reward_shift` in its config.json; of several workers the first one does."""
    if context.rank:
        return
    with new_directory(context.root / "models" / stage) as directory:
        tokenizer_dir = context.root / "tokenizer"
        checkpoint.save(model.backbone, directory, tokenizer_dir=tokenizer_dir, scalar_head=model.head)
        config = read_json(directory / "config.json")
        write_json(directory / "config.json", {**config, _SHIFT: shift})


def read(directory: Path, *, device: str = "cpu") -> Shifted:
    """The reward model in `directory`. Raises `UserError` (exit code 1) when it is missing or damaged."""
    try:
        model = checkpoint.load_scalar_model(directory, device=device)
    except (CheckpointError, FileNotFoundError) as error:
        raise UserError(f"{error}\nMake it again with: axon run reward_model", exit_code=1) from error
    return Shifted(model, float(read_json(directory / "config.json").get(_SHIFT, 0.0)))
