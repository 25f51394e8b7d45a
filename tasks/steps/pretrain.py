"""Pretrain a model on the text of `tokens/`, from random weights or from a checkpoint (`pretrain.init_from`)."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from axon_models import checkpoint
from axon_models.decoder.config import RopeScaling
from axon_models.decoder.sizes import SIZES
from axon_models.errors import CheckpointError
from axon_models.layers.language_model import LanguageModel
from axon_models.presets import Config, build, config_of
from axon_models.vocabulary import renumbered
from tasks.errors import UserError
from tasks.steps.context import StepContext
from tasks.tokenizers import adopted, bytelevel
from tasks.tokenizers.chat import END_OF_TEXT
from tasks.training import tokens
from tasks.training.batches import Batch, stream_batch
from tasks.training.device import setup
from tasks.training.loop import Recipe, fit
from tasks.training.losses import bits_per_byte, stream_loss
from tasks.training.outputs import write_metrics, write_model
from tasks.training.sampling import seed_of

if TYPE_CHECKING:
    from tasks.parameter_sections import Model

STAGE = "pretrain"
log = logging.getLogger(__name__)


def run(context: StepContext) -> None:
    """Read `tokens/text.*`, write `models/pretrain/`, `metrics/pretrain.json` and the curve."""
    params, section = context.params, context.params.pretrain
    device = setup(params)
    model = (new_model(context) if section.init_from is None else started_model(context)).to(device)
    recipe = Recipe.of(STAGE, section, params.precision, model.config)
    fitted = fit(
        model,
        recipe,
        batch=batches(context, device),
        loss=stream_loss,
        evaluate=validation(context, model),
        context=context,
    )
    write_model(context, STAGE, model)
    write_metrics(
        context,
        STAGE,
        fitted.curve,
        {
            "bits_per_byte": fitted.curve.last("validation_bits_per_byte"),
            "loss": fitted.curve.mean_of_last("loss", 20),
            "n_parameters": sum(p.numel() for p in model.parameters()),
            "tokens": fitted.tokens,
            "highest_learning_rate": recipe.learning_rate,
            **({} if section.init_from is None else {"started_from": section.init_from}),
            **fitted.recorded(),
        },
    )


def batches(context: StepContext, device: torch.device) -> Callable[[int], Batch]:
    """What gives the rows of update k."""
    section, stream = context.params.pretrain, tokens.text_stream(context.root, "train")
    seed = seed_of(context.params.seed, STAGE)
    sizes = {"batch_size": section.batch_size, "seq_len": section.seq_len}
    return lambda k: stream_batch(stream, k, **sizes, seed=seed, device=device)


def validation(context: StepContext, model: LanguageModel) -> Callable[[], dict[str, float]]:
    """What measures the bits per byte of `model` on held-out text; raises UserError where there is none."""
    section = context.params.pretrain
    n_validation = section.n_validation_batches * section.batch_size * section.seq_len
    held_out, n_bytes = tokens.text_documents(context.root, "validation", n_tokens=n_validation)
    if not n_bytes:
        raise UserError("tokens/text.validation.npy holds no text; raise data.splits.validation in params.yaml")
    sizes = {"batch_size": section.batch_size, "seq_len": section.seq_len}
    return lambda: {"bits_per_byte": bits_per_byte(model, held_out, n_bytes, **sizes, separator=END_OF_TEXT)}


def new_model(context: StepContext) -> LanguageModel:
    """A model of the shape of `model` in params.yaml for the tokenizer at hand, weights from the seed."""
    shape = context.params.model
    config = config_of_shape(shape, bytelevel.load(context.root / "tokenizer").get_vocab_size())
    if shape.preset in SIZES and not context.rank:
        log.warning(
            "model.preset=%s: its published shape is taken (d_model=%d, n_layers=%d, heads=%d, kv_heads=%d) with the "
            "%d tokens at hand; of the other keys of model max_positions alone counts, for how long texts may be",
            *(shape.preset, config.d_model, config.n_layers, config.heads, config.kv_heads, config.vocab_size),
        )
    model = build(config)
    model.init_weights(torch.Generator().manual_seed(seed_of(context.params.seed, "weights")))
    return model


def started_model(context: StepContext) -> LanguageModel:
    """The model of the checkpoint `pretrain.init_from`, with its rows in the order of the tokenizer at hand.

    Raises UserError for a checkpoint that cannot be read, has fewer positions than `model.max_positions`, scales
    dynamically and was trained on shorter rows than are asked for, cannot be partitioned as asked, or is not the one
    that `tokenizer/` is from.
    """
    params = context.params
    named = f"pretrain.init_from={params.pretrain.init_from}"
    directory = adopted.directory_of(context.root, str(params.pretrain.init_from))
    found = adopted.adopt(directory)
    if found.tokenizer.get_vocab() != bytelevel.load(context.root / "tokenizer").get_vocab():
        raise UserError(
            f"{named}: tokenizer/ is of something else; make it again with: axon run tokenizer", exit_code=1
        )
    try:
        model = checkpoint.load(directory)
    except CheckpointError as error:
        raise UserError(f"{named}: {error}") from error
    config = model.config
    if config.max_positions < params.model.max_positions:
        raise UserError(
            f"model.max_positions={params.model.max_positions} must be at most {config.max_positions}, what {named} "
            "has; edit params.yaml"
        )
    if params.partition == "pipeline" and (config.experts is not None or params.workers > config.n_layers):
        raise UserError(
            f"partition=pipeline with workers={params.workers} does not go with {named}, which has {config.n_layers} "
            "layers, and must have no experts; use partition=shard"
        )
    sampled = params.preferences.prompt_tokens + params.preferences.max_new_tokens
    longest = max(params.pretrain.seq_len, params.sft.seq_len, sampled)
    if longest > model.padded_positions:
        raise UserError(
            f"pretrain.seq_len, sft.seq_len and preferences.prompt_tokens + preferences.max_new_tokens must be at most "
            f"{model.padded_positions}, the length that {named} was trained on before its dynamic scaling, but one is "
            f"{longest}; edit params.yaml"
        )
    if not context.rank:
        log.warning(
            "%s: its shape is taken (%s, d_model=%d, n_layers=%d, heads=%d, kv_heads=%d), not that of model and "
            "tokenizer in params.yaml; of these model.max_positions alone counts, for how long texts may be",
            *(named, config.family, config.d_model, config.n_layers, config.heads, config.kv_heads),
        )
    return renumbered(model, found.rows).train()


def config_of_shape(shape: Model, vocab_size: int) -> Config:
    """The model that `model` in params.yaml describes; what is null there is the preset's own.

    Of a published size all is its own, but the vocabulary.
    """
    if shape.preset in SIZES:
        return replace(SIZES[shape.preset](), vocab_size=vocab_size)
    scaling = shape.rope_scaling
    sizes = {
        "d_model": shape.d_model,
        "n_layers": shape.n_layers,
        "heads": shape.heads,
        "kv_heads": shape.kv_heads,
        "d_feed_forward": shape.d_feed_forward,
        "max_positions": shape.max_positions,
        "window": shape.window,
        "segment_length": shape.segment_length,
        "memory_length": shape.memory_length,
        "rope_theta": shape.rope_theta,
        "experts": shape.experts,
        "rope_scaling": None if scaling is None else RopeScaling(kind=scaling.kind, factor=scaling.factor),
    }
    given = {name: value for name, value in sizes.items() if value is not None}
    return config_of(shape.preset, vocab_size=vocab_size, **given)
