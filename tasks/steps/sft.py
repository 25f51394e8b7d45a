"""Fine-tune the pretrained decoder on demonstrations: packed rows, loss on answers only."""

from __future__ import annotations

import torch

from axon_models.layers.language_model import LanguageModel
from tasks.steps.context import StepContext
from tasks.training.device import setup
from tasks.training.loop import Recipe, fit
from tasks.training.lora import attach
from tasks.training.losses import PackedLoss, packed_validation
from tasks.training.outputs import read_model, write_metrics, write_model
from tasks.training.packing import packed_demonstrations

STAGE = "sft"


def run(context: StepContext) -> None:
    """Read `models/pretrain/` and `tokens/demonstrations.*`, write `models/sft/`, metrics and the curve."""
    section = context.params.sft
    setup(context.params)
    model = read_model(context, "pretrain", drops_tokens=True)
    recipe = Recipe.of(STAGE, section, context.params.precision, model.config)
    tune(context, model, recipe, batch_size=section.batch_size)


def tune(context: StepContext, model: LanguageModel, recipe: Recipe, *, batch_size: int) -> None:
    """Fine-tune `model` by `recipe` and write what the stage `recipe.stage` leaves."""
    section, stage, device = context.params.sft, recipe.stage, torch.device(context.params.device)
    train = packed_demonstrations(context, "train", seed_name=stage, batch_size=batch_size)
    held_out = packed_demonstrations(context, "validation", seed_name=stage, batch_size=section.batch_size)
    validation = [held_out.batch(k, device) for k in range(min(section.n_validation_batches, held_out.n_batches))]
    adapters = attach(context, stage, model)
    fitted = fit(
        model,
        recipe,
        batch=lambda k: train.batch(k, device),
        loss=PackedLoss(lm_coef=section.lm_coef),
        evaluate=lambda: packed_validation(model, validation),
        context=context,
    )
    write_model(context, stage, model, adapters=adapters)
    write_metrics(
        context,
        stage,
        fitted.curve,
        {
            "loss": fitted.curve.mean_of_last("loss", 20),
            "validation_loss": fitted.curve.last("validation_loss"),
            "validation_token_accuracy": fitted.curve.last("validation_token_accuracy"),
            "tokens": fitted.tokens,
            "highest_learning_rate": recipe.learning_rate,
            **fitted.recorded(),
            "n_steps": recipe.n_steps,
            "n_rows": len(train.rows),
            "n_examples": sum(len(row) for row in train.rows),
            "n_too_long": train.n_too_long,
        },
    )
