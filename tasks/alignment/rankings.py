"""Human rankings from a JSONL file: {"prompt": str, "answers": [str, …], "ranks": [int, …]}, 2 to 9 answers."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from tasks.alignment.comparisons import Comparison
from tasks.errors import UserError
from tasks.tokenizers import bytelevel, chat

_MAX_ANSWERS = 9  # InstructGPT's labellers ranked 4 to 9
_N_LISTED = 10


def read(path: Path, *, tokenizer_dir: Path, validation_share: float, max_tokens: int) -> list[Comparison]:
    """The rankings in `path` as comparisons whose judge is "human".

    A prompt belongs to validation or train by a hash of its text, so that no prompt is in both. Raises `UserError`
    listing the lines that are not rankings or do not fit `max_tokens`.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise UserError(f"preferences.judge={str(path)!r}: there is no such file; edit params.yaml") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text: {error}") from None
    tokenizer = bytelevel.load(tokenizer_dir)
    found: dict[bytes, Comparison] = {}
    faults: list[str] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except json.JSONDecodeError as error:
            faults.append(f"line {number}: not JSON: {error}")
            continue
        fault = _fault(value)
        if fault:
            faults.append(f"line {number}: {fault}")
            continue
        comparison = _comparison(tokenizer, value, validation_share)
        if comparison.longest() > max_tokens:
            faults.append(
                f"line {number}: {comparison.longest()} tokens; model.max_positions={max_tokens} is the limit"
            )
        found[comparison.record_id] = comparison
    if faults:
        listed = "\n".join(f"  - {fault}" for fault in faults[:_N_LISTED])
        raise UserError(f"{path}: {len(faults)} of {len(lines)} lines are not rankings:\n{listed}")
    if not found:
        raise UserError(f"{path} holds no rankings; edit preferences.judge in params.yaml")
    return list(found.values())


def _fault(value: Any) -> str:
    """What is wrong with one line, or ""."""
    if not isinstance(value, dict) or not {"prompt", "answers", "ranks"} <= set(value):
        return "must be an object with prompt, answers and ranks"
    prompt, answers, ranks = value["prompt"], value["answers"], value["ranks"]
    if not isinstance(prompt, str) or not prompt:
        return "prompt must be text"
    if not isinstance(answers, list) or not all(isinstance(a, str) for a in answers):
        return "answers must be a list of texts"
    if not 2 <= len(answers) <= _MAX_ANSWERS:
        return f"{len(answers)} answers; 2 to {_MAX_ANSWERS} are allowed"
    if not isinstance(ranks, list) or len(ranks) != len(answers):
        return "ranks must be a list as long as answers"
    if not all(isinstance(r, int) and not isinstance(r, bool) and r >= 1 for r in ranks):
        return "ranks must be whole numbers from 1 (best)"
    return ""


def _comparison(tokenizer: Any, value: dict[str, Any], validation_share: float) -> Comparison:
    prompt, answers = value["prompt"], value["answers"]
    digest = hashlib.sha256(b"human\x00" + prompt.encode()).digest()
    in_validation = int.from_bytes(digest[:4], "little") < validation_share * 2**32
    examples = [chat.encode_example(tokenizer, prompt, answer) for answer in answers]
    return Comparison(
        record_id=digest[:16],
        source="human",
        task="own",
        split="validation" if in_validation else "train",
        prompt=prompt,
        prompt_tokens=chat.encode_prompt(tokenizer, prompt),
        answers=answers,
        answer_tokens=[tokens[prompt_length:] for tokens, prompt_length in examples],
        scores=[-float(rank) for rank in value["ranks"]],
        ranks=value["ranks"],
        judge="human",
    )
