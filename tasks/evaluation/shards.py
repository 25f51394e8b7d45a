"""What one worker process of the evaluation does: one shard, one thread, a result that depends on the item
alone.

`run(item)` is what `context.fan_out` calls. An item is {"job", "root", "device", …}; the jobs are

- "answers": greedy answers of one model to a shard of prompts, judged, scored by the reward model, and the
  model's
  divergence from SFT on answers that it samples;
- "best_of_n": n sampled answers of SFT to each prompt; the one that the reward model likes most is judged;
- "text": −log p of one chunk of held-out text under one model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer

from axon_models import checkpoint
from axon_models.generation.engine import generate
from axon_models.layers.language_model import LanguageModel
from tasks.alignment import rewards
from tasks.evaluation.divergence import sequence_divergence
from tasks.evaluation.judge import judge
from tasks.evaluation.likelihood import total_nats
from tasks.evaluation.prompts import Prompt
from tasks.evaluation.summary import Answer
from tasks.tokenizers import bytelevel, chat
from tasks.training.device import autocast

Item = Mapping[str, Any]
REFERENCE = "models/sft"
REWARD_MODEL = "models/reward_model"


@lru_cache(maxsize=8)
def _loaded(loader: Callable[..., Any], directory: Path, identity: tuple[int, ...], device: str) -> Any:
    return loader(directory, device=device)


def _load(loader: Callable[..., Any], root: str, name: str, device: str) -> Any:
    """A model kept between the shards of a worker, loaded again when its weights were replaced."""
    directory = Path(root) / name
    stat = (directory / "model.safetensors").stat()
    return _loaded(loader, directory, (stat.st_ino, stat.st_mtime_ns, stat.st_size), device)


def _rewards(root: str, device: str, questions: Sequence[list[int]], answers: Sequence[list[int]]) -> list[float]:
    """The reward of each answer, moved as in PPO: demonstrations score 0 on average."""
    model, shift = _load(rewards.read, root, REWARD_MODEL, device)
    sequences = [[*question, *answer] for question, answer in zip(questions, answers, strict=True)]
    return [scalar - shift for scalar in rewards.score_sequences(model, sequences)]


def _assess(
    tokenizer: Tokenizer, prompt: Prompt, tokens: Sequence[int], reward: float, divergence: float | None
) -> Answer:
    """Judge one answer, given as the tokens that were generated, the end token included if there was one."""
    ended = bool(tokens) and tokens[-1] == chat.END
    body = list(tokens[:-1] if ended else tokens)
    text = tokenizer.decode(body, skip_special_tokens=False)
    verdict = judge(prompt["task"], prompt["prompt"], text, prompt["target"], ended=ended)
    return Answer(
        answer=text,
        n_tokens=len(body),
        ended=ended,
        score=float(verdict.score),
        correct=bool(verdict.correct),
        well_formed=bool(verdict.well_formed),
        reward=reward,
        divergence=divergence,
    )


def _divergences(
    item: Item, module: LanguageModel, questions: Sequence[list[int]], lengths: Mapping[str, Any]
) -> list[float | None]:
    """Divergence from SFT on one sampled answer to every `item["divergence_every"]`-th prompt, None for the others.

    0 for SFT itself, as it is by definition.
    """
    if item["model"] == REFERENCE:
        return [0.0] * len(questions)
    every, device = item["divergence_every"], item["device"]
    asked = list(questions[::every])
    sampled = generate(module, asked, temperature=1.0, eos_id=chat.END, seed=item["seed"], **lengths)
    reference = _load(checkpoint.load, item["root"], REFERENCE, device)
    measured = sequence_divergence(module, reference, asked, sampled, pad_id=chat.PAD, device=device)
    return [measured[i // every] if i % every == 0 else None for i in range(len(questions))]


def answers(item: Item) -> list[Answer]:
    """Greedy answers of `item["model"]`, and its divergence from SFT on some of the prompts."""
    root, device, prompts = item["root"], item["device"], item["prompts"]
    tokenizer = bytelevel.load(Path(root) / "tokenizer")
    module = _load(checkpoint.load, root, item["model"], device)
    questions = [chat.encode_prompt(tokenizer, prompt["prompt"]) for prompt in prompts]
    lengths = {name: item[name] for name in ("max_new_tokens", "prompt_length", "kv_length")}
    greedy = generate(module, questions, temperature=0.0, eos_id=chat.END, **lengths)
    divergences = _divergences(item, module, questions, lengths)
    rows = zip(prompts, greedy, _rewards(root, device, questions, greedy), divergences, strict=True)
    return [_assess(tokenizer, *row) for row in rows]


def best_of_n(item: Item) -> list[Answer]:
    """Of `n` samples of SFT to each prompt, the one with the highest reward (the first of equals)."""
    root, device, prompts, n = item["root"], item["device"], item["prompts"], item["n"]
    tokenizer = bytelevel.load(Path(root) / "tokenizer")
    module = _load(checkpoint.load, root, REFERENCE, device)
    questions = [chat.encode_prompt(tokenizer, prompt["prompt"]) for prompt in prompts for _ in range(n)]
    lengths = {name: item[name] for name in ("max_new_tokens", "prompt_length", "kv_length")}
    sampled = generate(
        module, questions, temperature=item["temperature"], eos_id=chat.END, seed=item["seed"], **lengths
    )
    marks = _rewards(root, device, questions, sampled)
    chosen: list[Answer] = []
    for i, prompt in enumerate(prompts):
        best = max(range(i * n, (i + 1) * n), key=lambda row: marks[row])
        chosen.append(_assess(tokenizer, prompt, sampled[best], marks[best], None))
    return chosen


def text(item: Item) -> dict[str, float]:
    """−log p, in nats, of the documents of one chunk under `item["model"]`."""
    tokens = np.load(Path(item["root"]) / "tokens" / "text.test.npy", mmap_mode="r", allow_pickle=False)
    stream = np.concatenate([tokens[offset : offset + length] for offset, length in item["documents"]])
    module = _load(checkpoint.load, item["root"], item["model"], item["device"])

    def logits(rows: torch.Tensor) -> torch.Tensor:
        return module(rows.to(item["device"]))

    with autocast(torch.device(item["device"]), item["precision"]):
        nats = total_nats(logits, stream, seq_len=item["seq_len"], separator=chat.END_OF_TEXT)
    return {"nats": nats}


JOBS: dict[str, Callable[[Item], Any]] = {"answers": answers, "best_of_n": best_of_n, "text": text}


def run(item: Item) -> Any:
    """One shard, on one thread: with another number of threads sums round differently."""
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    return JOBS[item["job"]](item)
