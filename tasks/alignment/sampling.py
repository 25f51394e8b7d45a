"""Sample answers in worker processes: what `StepContext.fan_out` calls, and how its items are made."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from axon_models import checkpoint
from axon_models.decoder.model import Decoder
from axon_models.generation.engine import generate
from tasks.errors import UserError
from tasks.tokenizers.chat import END
from tasks.training.batches import seed_of
from tasks.training.device import set_threads

ANSWER_SHARD = "tasks.alignment.sampling:answer_shard"


def digest_of_model(directory: Path) -> str:
    """SHA-256 of the weights."""
    with (directory / "model.safetensors").open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@lru_cache(maxsize=2)
def _model(directory: str, digest: str) -> Decoder:
    """One load per process and digest: a warm worker must not answer with the model of an earlier run."""
    found = digest_of_model(Path(directory))
    if found != digest:
        raise UserError(f"{directory}/model.safetensors has digest {found}, not {digest}: it changed", exit_code=1)
    return checkpoint.load(Path(directory)).eval()


def answer_shard(item: Mapping[str, Any]) -> list[list[int]]:
    """The answers to one shard of prompts, one thread: token lists that end with <|end|> if the model ended.

    A pure function of `item`, which `shard_item` makes, and of the model whose digest it names.
    """
    set_threads(1)
    return generate(
        _model(item["model"], item["digest"]),
        item["prompts"],
        max_new_tokens=item["max_new_tokens"],
        temperature=item["temperature"],
        top_p=item["top_p"] if item["top_p"] < 1 else None,
        eos_id=END,
        seed=item["seed"],
        kv_length=item["prompt_tokens"] + item["max_new_tokens"],
        prompt_length=item["prompt_tokens"],
    )


def shard_item(
    directory: Path,
    digest: str,
    prompts: Sequence[Sequence[int]],
    *,
    seed_parts: Sequence[int | str | bytes],
    prompt_tokens: int,
    max_new_tokens: int,
    temperature: float,
    top_p: float,
) -> dict[str, Any]:
    """The JSON item from which `answer_shard` samples one answer per prompt. Temperature 0 is greedy."""
    return {
        "model": str(directory),
        "digest": digest,
        "prompts": [list(prompt) for prompt in prompts],
        "seed": seed_of(*seed_parts) % 2**31,
        "prompt_tokens": prompt_tokens,
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        "top_p": top_p,
    }
