"""Name and describe the shards of prompts that worker processes answer. Nothing here imports torch."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tasks.training.sampling import seed_of

ANSWER_SHARD = "tasks.alignment.answering:answer_shard"


def digest_of_model(directory: Path) -> str:
    """SHA-256 of the weights."""
    with (directory / "model.safetensors").open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
    """The JSON item from which `answering.answer_shard` samples one answer per prompt. Temperature 0 is greedy."""
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
