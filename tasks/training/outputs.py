"""What every training stage leaves: a Hugging Face model directory, metrics and a curve."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from axon_models import checkpoint
from axon_models.layers.language_model import LanguageModel
from tasks.errors import UserError
from tasks.files import new_directory, write_json
from tasks.steps.context import StepContext
from tasks.training.curves import Curve
from tasks.training.lora import Adapters


def write_model(
    context: StepContext,
    stage: str,
    model: LanguageModel,
    *,
    scalar_head: nn.Linear | None = None,
    adapters: Adapters | None = None,
) -> None:
    """Write `models/STAGE/` whole or not at all; of several workers the first one does.

    adapters: those of `model`, written below `adapter/`, and for good merged into the weights.
    """
    if context.rank:
        return
    with new_directory(context.root / "models" / stage) as directory:
        if adapters is not None:
            adapters.save(directory / "adapter")
            adapters.merge()
        checkpoint.save(model, directory, tokenizer_dir=context.root / "tokenizer", scalar_head=scalar_head)


def read_model(context: StepContext, stage: str, *, drops_tokens: bool = False) -> LanguageModel:
    """The model that `stage` left, on the device of the parameters.

    drops_tokens: whether layers of switched experts drop tokens in training, as in pretraining. Where probabilities of
    a policy are compared with those of its samples or of a reference, they must not.
    Raises `UserError` (exit code 1) when it is missing or damaged.
    """
    from axon_models.errors import CheckpointError

    directory = context.root / "models" / stage
    if not directory.is_dir():
        raise UserError(f"models/{stage} is missing; make it with: axon run {stage}", exit_code=1)
    try:
        model = checkpoint.load(directory, device=context.params.device)
    except CheckpointError as error:
        raise UserError(f"models/{stage}: {error}\nMake it again with: axon run {stage}", exit_code=1) from error
    if not drops_tokens:
        model.drop_no_tokens()
    return model


def write_metrics(context: StepContext, stage: str, curve: Curve | None, values: Mapping[str, Any]) -> None:
    """Write `metrics/STAGE.json` and, if there is one, `metrics/curves/STAGE.csv`; the first worker does."""
    if context.rank:
        return
    write_json(context.root / "metrics" / f"{stage}.json", dict(values))
    if curve is not None:
        curve.write(context.root / "metrics" / "curves" / f"{stage}.csv")
