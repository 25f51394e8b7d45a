"""`axon chat` and `axon generate` on the command line."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from tasks.runtime import checkout as checkouts
from tasks.runtime import environment
from tasks.runtime.checkout import Checkout

Model = Annotated[str, typer.Option(help="champion, challenger, or a stage: pretrain, sft, sft_continued, ppo, dpo")]
MaxNewTokens = Annotated[int, typer.Option(min=1, help="An answer ends after so many tokens.")]
Temperature = Annotated[float, typer.Option(min=0.0, max=5.0, help="0 takes the most likely token.")]
TopK = Annotated[int | None, typer.Option(min=1, help="Only the so many likeliest tokens.")]
TopP = Annotated[float | None, typer.Option(min=0.01, max=1.0, help="Only the likeliest that make up this share.")]
MinP = Annotated[float | None, typer.Option(min=0.0, max=1.0, help="Only those at least this share of the likeliest.")]
RepetitionPenalty = Annotated[
    float, typer.Option(min=0.01, max=10.0, help="Above 1: tokens that were there already become less likely.")
]
Stop = Annotated[list[str] | None, typer.Option(metavar="TEXT", help="End before this text; as often as you like.")]


class WeightType(StrEnum):
    float32 = "float32"
    bfloat16 = "bfloat16"


Precision = Annotated[WeightType, typer.Option(help="bfloat16 rounds the weights: faster, and a little less exact.")]
Seed = Annotated[int, typer.Option(min=0, help="Of the drawing; the same seed gives the same answer.")]


def _checkout() -> Checkout:
    checkout = checkouts.find()
    environment.prepare(checkout)
    return checkout


def chat(
    model: Model = "champion",
    temperature: Temperature = 0.0,
    top_k: TopK = None,
    top_p: TopP = None,
    min_p: MinP = None,
    repetition_penalty: RepetitionPenalty = 1.0,
    stop: Stop = None,
    max_new_tokens: MaxNewTokens = 64,
    seed: Seed = 0,
    precision: Precision = WeightType.float32,
) -> None:
    """Talk to a model."""
    from flows import talking

    settings = talking.Settings(
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        stop=tuple(stop or ()),
        seed=seed,
        precision=precision.value,
    )
    talking.chat(_checkout(), model, settings)


def generate(
    prompt: Annotated[str, typer.Argument(help="What to ask, or to continue with --raw.")],
    model: Model = "champion",
    raw: Annotated[bool, typer.Option("--raw", help="Continue the text instead of answering it.")] = False,
    temperature: Temperature = 0.0,
    top_k: TopK = None,
    top_p: TopP = None,
    min_p: MinP = None,
    repetition_penalty: RepetitionPenalty = 1.0,
    stop: Stop = None,
    max_new_tokens: MaxNewTokens = 64,
    seed: Seed = 0,
    precision: Precision = WeightType.float32,
    beams: Annotated[
        int, typer.Option(min=1, max=64, help="More than 1: search for the likeliest answer with so many.")
    ] = 1,
) -> None:
    """Answer one prompt, or continue a text, and leave."""
    from flows import talking

    settings = talking.Settings(
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        stop=tuple(stop or ()),
        seed=seed,
        precision=precision.value,
        beams=beams,
    )
    talking.generate(_checkout(), model, prompt, settings, raw=raw)


def add_to(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    for command in (chat, generate):
        app.command()(command)
