"""`axon uptrain`: from multi-head to grouped-query attention, in this process, beside the pipeline."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flows import talking
from tasks import parameters
from tasks.errors import UserError
from tasks.runtime.checkout import Checkout


def uptrain(checkout: Checkout, model: str, *, kv_heads: int, fraction: float, out: Path) -> None:
    """Pool and train on, write `out`, and print the bits per byte before, between and after."""
    from tasks.steps import uptrain as step
    from tasks.steps.context import StepContext

    params, source = parameters.load(checkout.root), source_of(checkout, model)

    def report(done: int, n_steps: int, values: Mapping[str, float]) -> None:
        if "validation_bits_per_byte" in values:
            print(f"step {done} of {n_steps}: {values['validation_bits_per_byte']:.4f} bits per byte", flush=True)

    def no_fan_out(name: str, function: str, items: Sequence[Mapping[str, Any]]) -> list[Any]:
        raise RuntimeError(f"uptraining hands nothing out, but was asked to for {name}: {function}")

    checkout.state.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="uptrain-", dir=checkout.state) as folder:
        context = StepContext(
            params=params,
            root=checkout.root,
            checkpoints=Path(folder),
            checkpoint_every_s=float("inf"),  # a temporary folder: there is nothing to come back to
            report=report,
            fan_out=no_fan_out,
        )
        found = step.run(context, source, out, kv_heads=kv_heads, fraction=fraction)
    print(
        f"{found.heads_before} key and value heads before: {found.before:.4f} bits per byte\n"
        f"{found.heads} after pooling: {found.pooled:.4f}\n"
        f"{found.heads} after uptraining ({found.n_steps} steps, {found.tokens:,} tokens): {found.uptrained:.4f}\n"
        f"{out} is the model; `axon_models.load` and `transformers` read it."
    )


def source_of(checkout: Checkout, model: str) -> Path:
    """The model directory of a stage, of the champion or challenger, or a directory."""
    if model in (*talking.STAGES, talking.registry.CHAMPION, talking.registry.CHALLENGER):
        return talking.directory_of(checkout, model)
    if (Path(model) / "config.json").is_file():
        return Path(model)
    allowed = ", ".join((talking.registry.CHAMPION, talking.registry.CHALLENGER, *talking.STAGES))
    raise UserError(f"{model!r} is not a model; allowed: {allowed}, or a model directory with a config.json.")
