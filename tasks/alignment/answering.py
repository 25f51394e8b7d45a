"""Sample the answers to one shard of prompts: what `StepContext.fan_out` calls in worker processes."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from axon_models import checkpoint
from axon_models.generation.engine import generate
from axon_models.layers.language_model import LanguageModel
from tasks.alignment.sampling import digest_of_model
from tasks.errors import UserError
from tasks.tokenizers.chat import END
from tasks.training.device import set_threads


@lru_cache(maxsize=2)
def _model(directory: str, digest: str) -> LanguageModel:
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
