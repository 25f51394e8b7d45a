"""Measure two models on the same items: what one worker process does with one shard, and how the shards make tables.

`run(item)` is what `context.fan_out` calls. Prompts are answered by sampling, once for each seed; both models get the
same seeds. Texts are read by each model through its own tokenizer, so that bits per byte stay comparable.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from axon_models import checkpoint
from axon_models.generation.engine import generate
from tasks.evaluation import prompts as held_out
from tasks.evaluation.judge import judge
from tasks.evaluation.likelihood import total_nats
from tasks.evaluation.prompts import shard_seed
from tasks.parameters import Parameters
from tasks.promotion.gate import Measured
from tasks.promotion.items import EvaluationSet
from tasks.tokenizers import bytelevel, chat
from tasks.training.device import autocast

# N items, S seeds
CHALLENGER, CHAMPION = "challenger", "champion"
ROLES = (CHALLENGER, CHAMPION)
_TEXTS_PER_SHARD = 20

Item = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """What both models have room for: tokens of a prompt and of an answer, and of a window of text."""

    prompt: int
    answer: int
    window: int


def shards(
    items: EvaluationSet, directories: Mapping[str, str], lengths: Lengths, params: Parameters
) -> list[tuple[tuple[str, str, int], dict[str, Any]]]:
    """((role, job, seed), item) of all the work."""
    place = {"device": params.device}
    room = {
        "max_new_tokens": lengths.answer,
        "prompt_length": lengths.prompt,
        "kv_length": lengths.prompt + lengths.answer,
    }
    work: list[tuple[tuple[str, str, int], dict[str, Any]]] = []
    for role in ROLES:
        model = {"model": directories[role], **place}
        for seed in range(params.gate.n_seeds):
            for number, prompts in enumerate(held_out.shards(items.prompts, params.evaluate.batch_size)):
                sampling = {
                    "temperature": params.gate.temperature,
                    "seed": shard_seed(params.seed, "gate", seed, number),
                }
                work.append(
                    ((role, "answers", seed), {"job": "answers", **model, **room, **sampling, "prompts": prompts})
                )
        for start in range(0, len(items.texts), _TEXTS_PER_SHARD):
            texts = [text for _, text in items.texts[start : start + _TEXTS_PER_SHARD]]
            reading = {"window": lengths.window, "precision": params.precision, "texts": texts}
            work.append(((role, "texts", 0), {"job": "texts", **model, **reading}))
    return work


@lru_cache(maxsize=4)
def _model(directory: str, device: str) -> Any:
    return checkpoint.load(Path(directory), device=device)


def answers(item: Item) -> list[dict[str, Any]]:
    """What the judge says of one sampled answer to each prompt."""
    tokenizer = bytelevel.load(Path(item["model"]))
    questions = [chat.encode_prompt(tokenizer, prompt["prompt"]) for prompt in item["prompts"]]
    room = {name: item[name] for name in ("max_new_tokens", "prompt_length", "kv_length", "temperature", "seed")}
    sampled = generate(_model(item["model"], item["device"]), questions, eos_id=chat.END, **room)
    rows = []
    for prompt, tokens in zip(item["prompts"], sampled, strict=True):
        ended = bool(tokens) and tokens[-1] == chat.END
        body = list(tokens[:-1] if ended else tokens)
        text = tokenizer.decode(body, skip_special_tokens=False)
        verdict = judge(prompt["task"], prompt["prompt"], text, prompt["target"], ended=ended)
        rows.append({"score": float(verdict.score), "correct": bool(verdict.correct), "length": len(body)})
    return rows


def texts(item: Item) -> list[float]:
    """Bits per byte of each text."""
    tokenizer = bytelevel.load(Path(item["model"]))
    module = _model(item["model"], item["device"])
    found = []
    for text in item["texts"]:
        stream = np.array([*chat.encode_text(tokenizer, text), chat.END_OF_TEXT])
        with autocast(torch.device(item["device"]), item["precision"]):
            nats = total_nats(
                lambda rows: module(rows.to(item["device"])),
                stream,
                seq_len=item["window"],
                separator=chat.END_OF_TEXT,
            )
        found.append(nats / math.log(2.0) / len(text.encode()))
    return found


JOBS: dict[str, Callable[[Item], Any]] = {"answers": answers, "texts": texts}


def run(item: Item) -> Any:
    """One shard, on one thread: with another number of threads sums round differently."""
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    return JOBS[item["job"]](item)


def tables(items: EvaluationSet, found: Sequence[tuple[tuple[str, str, int], Any]], n_seeds: int) -> dict[str, Any]:
    """Metric → role → rows (N, S), from the results of the shards in their order."""
    columns: dict[tuple[str, str, int], list[Any]] = {}
    for key, result in found:
        columns.setdefault(key, []).extend(result)
    made: dict[str, Any] = {}
    for role in ROLES:
        by_seed = [columns[role, "answers", seed] for seed in range(n_seeds)]
        for metric in ("score", "correct", "length"):
            rows = [[float(answered[i][metric]) for answered in by_seed] for i in range(len(items.prompts))]
            made.setdefault(metric, {})[role] = rows
        made.setdefault("bits_per_byte", {})[role] = [[value] for value in columns[role, "texts", 0]]
    return made


def measured(items: EvaluationSet, made: Mapping[str, Any]) -> dict[str, Measured]:
    """The metrics of the gate from the tables; exact match over maths alone, where there is any."""

    def both(metric: str, rows: Sequence[int]) -> dict[str, NDArray[np.float64]]:
        return {role: np.array(made[metric][role], dtype=np.float64)[list(rows)] for role in ROLES}

    every = range(len(items.prompts))
    maths = [i for i in every if not held_out.is_text(items.prompts[i]["task"])]
    score = both("score", every)
    won = (score[CHALLENGER] > score[CHAMPION]) + 0.5 * (score[CHALLENGER] == score[CHAMPION])
    found = {
        "score": Measured(**score),
        "win_rate": Measured(challenger=won, champion=1.0 - won),
        "length": Measured(**both("length", every)),
        "bits_per_byte": Measured(
            **both("bits_per_byte", range(len(items.texts))),
            weights=np.array([float(len(text.encode())) for _, text in items.texts]),
        ),
    }
    if maths:
        found["exact_match"] = Measured(**both("correct", maths))
    return found
