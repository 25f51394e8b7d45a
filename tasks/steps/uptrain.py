"""Uptraining: pool the key and value heads of a trained model, then pretrain on for a part of the steps.

Ainslie et al. 2023, section 2.1: mean-pool (`axon_models/decoder/pooling.py`), then the recipe of pretraining for a
share α of its steps, 5 % in the paper. Here the recipe is `pretrain` of params.yaml with steps and warm-up times α, the
schedule drawn together likewise with its peak at a sixth, since the whole peak undoes more in so few steps than they
mend (docs/models.md), and rows go on where pretraining ended, so that none comes twice before all came once.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from axon_models import checkpoint
from axon_models.decoder import hugging_face
from axon_models.decoder.config import DecoderConfig
from axon_models.decoder.model import Decoder
from axon_models.decoder.pooling import pooled
from axon_models.errors import CheckpointError, ConfigError
from tasks.errors import UserError
from tasks.files import new_directory
from tasks.steps import pretrain
from tasks.steps.context import StepContext
from tasks.tokenizers import folder
from tasks.training.device import autocast, setup
from tasks.training.loop import Recipe, fit
from tasks.training.losses import stream_loss

STAGE = "uptrain"
PEAK = 1 / 6  # of pretraining's highest learning rate


@dataclass(frozen=True, kw_only=True)
class Uptrained:
    """Bits per byte of held-out text of the model as it was, with pooled heads, and after training; what it took."""

    before: float
    pooled: float
    uptrained: float
    heads_before: int
    heads: int
    n_steps: int
    tokens: int


def run(context: StepContext, source: Path, out: Path, *, kv_heads: int, fraction: float) -> Uptrained:
    """Uptrain the model directory `source` on the text of `tokens/`; write a model directory with its tokenizer.

    Raises UserError: no model, another tokenizer than that of `tokens/`, heads that cannot be pooled so or that the
    kind of checkpoint cannot hold, sequences longer than the model's.
    """
    params, section = context.params, context.params.pretrain
    if not 0 < fraction <= 1:
        raise UserError(f"--fraction {fraction:g} must be above 0 and at most 1")
    if out.exists():
        raise UserError(f"--out {out} is there already; name a folder that is not")
    device = setup(params)
    original = _original(context, source)
    model = _pooled(original, source, kv_heads).to(device)
    with torch.no_grad(), autocast(device, params.precision):
        before = pretrain.validation(context, original.to(device))()["bits_per_byte"]
    heads_before = original.config.kv_heads
    del original
    recipe, rows = _recipe(context, model.config, fraction), pretrain.batches(context, device)
    fitted = fit(
        model,
        recipe,
        batch=lambda k: rows(section.n_steps + k),
        loss=stream_loss,
        evaluate=pretrain.validation(context, model),
        context=context,
    )
    with new_directory(out) as directory:
        checkpoint.save(model, directory, tokenizer_dir=source)
    return Uptrained(
        before=before,
        pooled=fitted.curve.rows[0]["validation_bits_per_byte"],
        uptrained=fitted.curve.last("validation_bits_per_byte"),
        heads_before=heads_before,
        heads=kv_heads,
        n_steps=recipe.n_steps,
        tokens=fitted.tokens,
    )


def _original(context: StepContext, source: Path) -> Decoder:
    ids = folder.load(source).get_vocab()
    if ids != folder.load(context.root / "tokenizer").get_vocab():
        raise UserError(f"{source} has another tokenizer than tokenizer/, with which the text of tokens/ was made")
    try:
        model = checkpoint.load(source)
    except CheckpointError as error:
        raise UserError(str(error), exit_code=1) from error
    if not isinstance(model, Decoder):
        raise UserError(f"{source} is a {model.config.family}, which has no key and value heads to pool")
    config, seq_len = model.config, context.params.pretrain.seq_len
    if max(ids.values()) >= config.vocab_size:
        raise UserError(f"{source}: its tokenizer has id {max(ids.values())}, its embedding {config.vocab_size} rows")
    if seq_len > config.max_positions:
        raise UserError(f"pretrain.seq_len={seq_len} must be at most {config.max_positions}, what {source} has")
    return model


def _pooled(original: Decoder, source: Path, kv_heads: int) -> Decoder:
    """The model with pooled heads, if a checkpoint of its kind can hold it: the first GPTs know multi-head alone."""
    try:
        model = pooled(original, kv_heads)
        hugging_face.to_json(model.config, bos_id=0, eos_id=0, pad_id=0, n_labels=0)
    except (ConfigError, CheckpointError) as error:
        raise UserError(f"--kv-heads {kv_heads}: {source}: {error}") from error
    return model.train()


def _recipe(context: StepContext, config: DecoderConfig, fraction: float) -> Recipe:
    """Pretraining's recipe with `fraction` of its steps, measured first and last."""
    whole = Recipe.of(pretrain.STAGE, context.params.pretrain, context.params.precision, config)
    n_steps = max(1, round(fraction * whole.n_steps))
    warmup_steps = min(round(fraction * whole.warmup_steps), n_steps - 1)
    peak = max(whole.min_learning_rate, PEAK * whole.learning_rate)
    recipe = replace(whole, stage=STAGE, learning_rate=peak)
    return replace(recipe, n_steps=n_steps, warmup_steps=warmup_steps, evaluate_every=n_steps)
