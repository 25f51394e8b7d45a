"""Measure six models side by side on held-out prompts and text: `metrics/evaluate.json` and every single
answer.

base, sft, sft_continued, ppo and dpo answer greedily. best_of_n is SFT again: of `evaluate.n_samples` sampled
answers the one that the reward model likes most. Win rates are against SFT's *greedy* answer to the same
prompt, for best_of_n too: that is what a user of SFT would have got. The judge is programmatic, no person is
asked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tasks.data import records
from tasks.errors import UserError
from tasks.evaluation import prompts as held_out
from tasks.evaluation import summary
from tasks.evaluation.bits_per_byte import Chunk, Document, bits_per_byte, chunks
from tasks.evaluation.prompts import Prompt, shard_seed
from tasks.evaluation.summary import Answer, best_of_n_divergence
from tasks.files import write_json
from tasks.steps.context import StepContext
from tasks.tokenizers import bytelevel, chat

DIRECTORIES = {
    "base": "models/pretrain",
    "sft": "models/sft",
    "sft_continued": "models/sft_continued",
    "ppo": "models/ppo",
    "dpo": "models/dpo",
}
BEST_OF_N = "best_of_n"
MODELS = (*DIRECTORIES, BEST_OF_N)
WINDOWS_PER_TEXT_BATCH = 4
DIVERGENCE_EVERY = 4  # sampling is costly, and a quarter of the prompts gives the divergence well enough
N_SAMPLES = 8


def _prompts(context: StepContext) -> tuple[list[Prompt], int]:
    evaluate = context.params.evaluate
    tokenizer = bytelevel.load(context.root / "tokenizer")
    longest = context.params.preferences.prompt_tokens
    table = records.read(context.root / "data" / "demonstrations.parquet")
    chosen, n_too_long = held_out.choose(
        held_out.of_split(table, "test"),
        n_maths=evaluate.n_maths,
        n_docs=evaluate.n_docs,
        fits=lambda prompt: len(chat.encode_prompt(tokenizer, prompt)) <= longest,
    )
    if not chosen:
        raise UserError(
            "evaluate: the test split of data/demonstrations.parquet holds no prompt of at most "
            f"preferences.prompt_tokens={longest} tokens; raise it, or data.splits.test, in params.yaml",
            exit_code=1,
        )
    return chosen, n_too_long


def _text_chunks(context: StepContext) -> list[Chunk]:
    index = records.read(context.root / "tokens" / "text.test.index.parquet")
    columns = (index[name] for name in ("record_id", "offset", "length", "n_bytes"))
    dealt = chunks(
        [Document(bytes(record_id), *numbers) for record_id, *numbers in zip(*columns, strict=True)],
        n_chunks=context.params.evaluate.n_text_batches,
        tokens_per_chunk=WINDOWS_PER_TEXT_BATCH * context.params.pretrain.seq_len,
    )
    if not dealt:
        raise UserError(
            "evaluate: tokens/text.test.npy holds no document; raise data.splits.test in params.yaml",
            exit_code=1,
        )
    return dealt


def _items(
    context: StepContext, shards: Sequence[Sequence[Prompt]], text: Sequence[Chunk]
) -> list[tuple[str, dict[str, Any]]]:
    """(model, item) of all the work, in an order that starts the longest first."""
    p = context.params
    place = {"root": str(context.root), "device": p.device}
    lengths = {
        "max_new_tokens": p.preferences.max_new_tokens,
        "prompt_length": p.preferences.prompt_tokens,
        "kv_length": p.preferences.prompt_tokens + p.preferences.max_new_tokens,
    }
    items: list[tuple[str, dict[str, Any]]] = []
    sampling = {"job": "best_of_n", "n": p.evaluate.n_samples, "temperature": p.evaluate.temperature}
    for number, shard in enumerate(shards):
        seed = shard_seed(p.seed, "evaluate", BEST_OF_N, number)
        items.append((BEST_OF_N, {**sampling, **place, **lengths, "prompts": list(shard), "seed": seed}))
    for model, directory in DIRECTORIES.items():
        answering = {"job": "answers", "model": directory, "divergence_every": DIVERGENCE_EVERY}
        for number, shard in enumerate(shards):
            seed = shard_seed(p.seed, "evaluate", model, number)
            items.append((model, {**answering, **place, **lengths, "prompts": list(shard), "seed": seed}))
    for model, directory in DIRECTORIES.items():
        reading = {"job": "text", "model": directory, "precision": p.precision, "seq_len": p.pretrain.seq_len}
        for chunk in text:
            documents = [list(document) for document in chunk.documents]
            items.append((model, {**reading, **place, "documents": documents}))
    return items


def _write_answers(context: StepContext, prompts: Sequence[Prompt], answers: Mapping[str, Sequence[Answer]]) -> None:
    pairs = [(model, prompt, row) for model in MODELS for prompt, row in zip(prompts, answers[model], strict=True)]
    columns: dict[str, list[Any]] = {
        "record_id": [bytes.fromhex(prompt["record_id"]) for _, prompt, _ in pairs],
        "model": [model for model, _, _ in pairs],
    }
    for name in ("task", "prompt", "target"):
        columns[name] = [prompt[name] for _, prompt, _ in pairs]
    for name in ("answer", "score", "correct", "well_formed", "ended", "reward", "n_tokens"):
        columns[name] = [row[name] for _, _, row in pairs]  # type: ignore[literal-required]
    records.write(context.root / "evaluation" / "answers.parquet", columns)


def run(context: StepContext) -> None:
    """Write `metrics/evaluate.json`, `evaluation/answers.parquet` and `evaluation/samples.json`."""
    p = context.params
    prompts, n_too_long = _prompts(context)
    text = _text_chunks(context)
    work = _items(context, held_out.shards(prompts, p.evaluate.batch_size), text)
    results = context.fan_out("evaluate", "tasks.evaluation.shards:run", [item for _, item in work])

    answers: dict[str, list[Answer]] = {model: [] for model in MODELS}
    nats: dict[str, list[float]] = {model: [] for model in DIRECTORIES}
    for (model, item), result in zip(work, results, strict=True):
        if item["job"] == "text":
            nats[model].append(result["nats"])
        else:
            answers[model] += result
    nats[BEST_OF_N] = nats["sft"]  # choosing among its answers leaves SFT's distribution over text as it is

    metrics: dict[str, Any] = {}
    for model in MODELS:
        metrics[model] = summary.model_metrics(
            prompts,
            answers[model],
            answers["sft"],
            bits_per_byte=bits_per_byte(nats[model], [chunk.n_bytes for chunk in text]),
            divergence=best_of_n_divergence(p.evaluate.n_samples) if model == BEST_OF_N else None,
            n_resamples=p.evaluate.n_bootstrap,
            seed=shard_seed(p.seed, "evaluate", "bootstrap"),
        )
        metrics[model] |= {"n_too_long": n_too_long, "n_text_bytes": sum(chunk.n_bytes for chunk in text)}
    if not summary.all_finite(metrics):
        raise UserError("evaluate: a figure is not finite; a model has diverged (see metrics/curves)", exit_code=1)

    _write_answers(context, prompts, answers)
    shown = summary.samples(prompts, answers, n_samples=N_SAMPLES)
    write_json(context.root / "evaluation" / "samples.json", shown)
    write_json(context.root / "metrics" / "evaluate.json", metrics)
    context.report(1, 1, {f"{model}/win_rate_vs_sft": metrics[model]["win_rate_vs_sft"] for model in MODELS})
