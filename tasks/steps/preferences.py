"""Sample K answers per prompt from the SFT model, or take people's, and rank them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tasks.alignment import comparisons, prompts, rankings
from tasks.alignment.comparisons import Comparison
from tasks.alignment.prompts import TEXT_TASKS, choose, hash_of
from tasks.alignment.sampling import ANSWER_SHARD, digest_of_model, shard_item
from tasks.data import records
from tasks.errors import UserError
from tasks.evaluation.judge import judge, rank
from tasks.files import read_json, write_json
from tasks.model_configs import padded_positions
from tasks.steps.context import StepContext
from tasks.tokenizers import bytelevel
from tasks.tokenizers.chat import END
from tasks.training.examples import Example


def run(context: StepContext) -> None:
    """Write `preferences/comparisons.parquet` and `metrics/preferences.json`."""
    params, section = context.params, context.params.preferences
    if section.judge == "programmatic":
        found, metrics = _sampled(context)
    else:
        model_config = context.root / "models" / "sft" / "config.json"  # reward model and DPO pad what is ranked
        found = rankings.read(
            context.root / section.judge,
            tokenizer_dir=context.root / "tokenizer",
            validation_share=_validation_share(context),
            max_tokens=min(params.model.max_positions, padded_positions(read_json(model_config))),
        )
        metrics = {}
    comparisons.write(context.root, found)
    write_json(context.root / "metrics" / "preferences.json", {**metrics, **_pair_counts(found)})


def _validation_share(context: StepContext) -> float:
    section = context.params.preferences
    return section.n_validation_prompts / (section.n_prompts + section.n_validation_prompts)


def _is_held_out(example: Example, seed: int, share: float) -> bool:
    """By a hash of the record alone, so that a prompt keeps its side when the numbers of prompts change little."""
    return int.from_bytes(hash_of(seed, "split", example.record_id)[:4], "little") < share * 2**32


def _choose(context: StepContext) -> tuple[list[Example], list[Example], int]:
    """Prompts to train on, prompts to validate on, and how many are too long."""
    section, seed = context.params.preferences, context.params.seed
    share = _validation_share(context)
    examples, n_too_long = prompts.read(context)
    train = choose([e for e in examples if not _is_held_out(e, seed, share)], section.n_prompts, seed)
    held_out = choose([e for e in examples if _is_held_out(e, seed, share)], section.n_validation_prompts, seed)
    for split, found in (("train", train), ("validation", held_out)):
        if not found:
            raise UserError(
                f"preferences: no {split} prompts of at most {section.prompt_tokens} tokens; raise "
                "data.splits.preference or preferences.prompt_tokens in params.yaml",
                exit_code=1,
            )
    return train, held_out, n_too_long


def _sampled(context: StepContext) -> tuple[list[Comparison], dict[str, Any]]:
    """Comparisons of the SFT model's own answers by the programmatic judge, and figures about them."""
    train, held_out, n_too_long = _choose(context)
    split_of = {e.record_id: "train" for e in train} | {e.record_id: "validation" for e in held_out}
    # A batch decodes until its last row ends: tasks with answers of about one length belong together.
    chosen = sorted(train + held_out, key=lambda e: (e.task, e.record_id))
    answers = _sample(context, chosen)
    names = ("record_id", "source", "prompt", "target")
    table = records.read(context.root / "data" / "demonstrations.parquet", names)
    text_of = {row[0]: row[1:] for row in zip(*(table[name] for name in names), strict=True)}
    tokenizer = bytelevel.load(context.root / "tokenizer")
    found, judged = [], []
    for example, of_prompt in zip(chosen, answers, strict=True):
        source, prompt, target = text_of[example.record_id]
        texts = [tokenizer.decode(_body(a), skip_special_tokens=False) for a in of_prompt]
        verdicts = [
            judge(example.task, prompt, text, target, ended=a[-1:] == [END])
            for text, a in zip(texts, of_prompt, strict=True)
        ]
        judged += [(example.task, verdict) for verdict in verdicts]
        scores = [float(verdict.score) for verdict in verdicts]
        found.append(
            Comparison(
                record_id=example.record_id,
                source=source,
                task=example.task,
                split=split_of[example.record_id],
                prompt=prompt,
                prompt_tokens=example.prompt,
                answers=texts,
                answer_tokens=of_prompt,
                scores=scores,
                ranks=rank(scores),
                judge="programmatic",
            )
        )
    by_task = {task: _quality([v for t, v in judged if t == task]) for task in sorted({t for t, _ in judged})}
    maths = [v for task, v in judged if task not in TEXT_TASKS]
    return found, {**_quality(maths), "by_task": by_task, "n_too_long": n_too_long}


def _sample(context: StepContext, chosen: Sequence[Example]) -> list[list[list[int]]]:
    """`answers_per_prompt` answers to each prompt, from worker processes."""
    section = context.params.preferences
    per_shard = max(1, section.batch_size // section.answers_per_prompt)
    directory = context.root / "models" / "sft"
    if not (directory / "model.safetensors").is_file():
        raise UserError("models/sft is missing; make it with: axon run sft", exit_code=1)
    digest = digest_of_model(directory)
    items = []
    for number, start in enumerate(range(0, len(chosen), per_shard)):
        part = chosen[start : start + per_shard]
        items.append(
            shard_item(
                directory,
                digest,
                [e.prompt for e in part for _ in range(section.answers_per_prompt)],
                seed_parts=(context.params.seed, "preferences", number, *(e.record_id for e in part)),
                prompt_tokens=section.prompt_tokens,
                max_new_tokens=section.max_new_tokens,
                temperature=section.temperature,
                top_p=section.top_p,
            )
        )
    flat = [answer for shard in context.fan_out("answers", ANSWER_SHARD, items) for answer in shard]
    k = section.answers_per_prompt
    return [flat[i : i + k] for i in range(0, len(flat), k)]


def _body(answer: list[int]) -> list[int]:
    return answer[:-1] if answer[-1:] == [END] else answer


def _quality(verdicts: Sequence[Any]) -> dict[str, float]:
    if not verdicts:
        return {}
    n = len(verdicts)
    return {
        "n_answers": n,
        "correct": sum(v.correct for v in verdicts) / n,
        "well_formed": sum(v.well_formed for v in verdicts) / n,
    }


def _pair_counts(found: Sequence[Comparison]) -> dict[str, Any]:
    """Prompts, pairs with a winner and tied pairs, by split and over all."""
    n_pairs = sum(c.n_pairs() for c in found)
    n_all = sum(len(c.ranks) * (len(c.ranks) - 1) // 2 for c in found)
    return {
        "judge": found[0].judge,
        "n_prompts": sum(c.split == "train" for c in found),
        "n_validation_prompts": sum(c.split == "validation" for c in found),
        "pairs": n_pairs,
        "ties": n_all - n_pairs,
        "prompts_without_a_pair": sum(not c.n_pairs() for c in found),
        "pairs_by_task": {t: sum(c.n_pairs() for c in found if c.task == t) for t in sorted({c.task for c in found})},
    }
