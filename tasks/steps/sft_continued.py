"""The control for DPO: the SFT model, fine-tuned further for as many tokens and about as many steps as DPO takes.

Without it, a gain of DPO could be no more than the gain of further training.
"""

from __future__ import annotations

from tasks.errors import UserError
from tasks.files import read_json
from tasks.steps.context import StepContext
from tasks.steps.sft import tune
from tasks.training.device import setup
from tasks.training.loop import Recipe
from tasks.training.outputs import read_model
from tasks.training.packing import packed_demonstrations

STAGE = "sft_continued"


def run(context: StepContext) -> None:
    """Read `models/sft/` and the budget in `metrics/dpo_tokens.json`, write `models/sft_continued/` and metrics."""
    params = context.params
    path = context.root / "metrics" / "dpo_tokens.json"
    if not path.is_file():
        raise UserError("metrics/dpo_tokens.json is missing; make it with: axon run dpo", exit_code=1)
    dpo = read_json(path)
    batch_size, n_steps = match_budget(context, tokens=dpo["tokens"], n_steps=dpo["n_steps"])
    recipe = Recipe(
        stage=STAGE,
        n_steps=n_steps,
        learning_rate=params.sft_continued.learning_rate,
        warmup_steps=min(params.dpo.warmup_steps, n_steps - 1),
        weight_decay=params.sft.weight_decay,
        beta2=params.sft.beta2,
        clip_norm=params.sft.clip_norm,
        evaluate_every=params.sft.evaluate_every,
        precision=params.precision,
    )
    setup(params)
    tune(context, read_model(context, "sft", drops_tokens=True), recipe, batch_size=batch_size)


def match_budget(context: StepContext, *, tokens: int, n_steps: int) -> tuple[int, int]:
    """(rows per step, steps): steps near `n_steps`, and the fewest that train on at least `tokens` tokens."""
    rows = packed_demonstrations(context, "train", seed_name=STAGE, batch_size=1)
    per_row = sum(rows.n_tokens) / len(rows.rows)
    batch_size = max(1, round(tokens / n_steps / per_row))
    data = packed_demonstrations(context, "train", seed_name=STAGE, batch_size=batch_size)
    seen = steps = 0
    while seen < tokens:
        seen += sum(data.n_tokens[row] for row in data.rows_of(steps))
        steps += 1
    return batch_size, max(1, steps)
