"""Which held-out prompts the models are judged on, and how they are cut into shards."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypedDict

TEXT_TASKS = ("docs", "own")  # judged by similarity to a reference; every other task is maths, right or wrong


class Prompt(TypedDict):
    """One demonstration of the test split; `record_id` is 32 hex digits."""

    record_id: str
    task: str
    prompt: str
    reference: str
    target: str


def is_text(task: str) -> bool:
    """Whether answers to `task` are prose, judged by similarity, and not right or wrong."""
    return task in TEXT_TASKS


def of_split(table: Mapping[str, Sequence[Any]], split: str) -> list[Prompt]:
    """The rows of a demonstrations table that belong to `split`, in the table's order."""
    columns = (table[name] for name in ("split", "record_id", "task", "prompt", "answer", "target"))
    return [
        Prompt(record_id=bytes(record_id).hex(), task=task, prompt=prompt, reference=answer, target=target)
        for where, record_id, task, prompt, answer, target in zip(*columns, strict=True)
        if where == split
    ]


def balanced(prompts: Iterable[Prompt], n: int) -> list[Prompt]:
    """`n` prompts (fewer if there are no more), equally many of each task as far as they go.

    Within a task the order is that of `record_id`, a hash of the content: no prompt is preferred for what it
    says.
    """
    by_task: dict[str, list[Prompt]] = defaultdict(list)
    for prompt in prompts:
        by_task[prompt["task"]].append(prompt)
    queues = [sorted(by_task[task], key=lambda p: p["record_id"]) for task in sorted(by_task)]
    deepest = max((len(queue) for queue in queues), default=0)
    dealt = [queue[place] for place in range(deepest) for queue in queues if place < len(queue)]
    return sorted(dealt[:n], key=lambda p: (p["task"], p["record_id"]))


def choose(
    prompts: Sequence[Prompt], *, n_maths: int, n_docs: int, fits: Callable[[str], bool]
) -> tuple[list[Prompt], int]:
    """The prompts to evaluate on, maths first, and how many were passed over because they do not fit.

    `fits` says whether a prompt is short enough for the KV buffers.
    """
    fitting = [prompt for prompt in prompts if fits(prompt["prompt"])]
    maths = balanced((p for p in fitting if not is_text(p["task"])), n_maths)
    text = balanced((p for p in fitting if is_text(p["task"])), n_docs)
    return maths + text, len(prompts) - len(fitting)


def shards(prompts: Sequence[Prompt], size: int) -> list[list[Prompt]]:
    """Consecutive shards of at most `size` prompts; maths and prose never share one.

    Decoding stops when every row of a batch has ended, and answers in prose are several times as long.
    """
    cut: list[list[Prompt]] = []
    for prose in (False, True):
        group = [prompt for prompt in prompts if is_text(prompt["task"]) is prose]
        cut += [group[start : start + size] for start in range(0, len(group), size)]
    return cut


def shard_seed(seed: int, *names: object) -> int:
    """A seed of 31 bits for one named use, the same wherever and in whichever order shards run."""
    text = "/".join(str(name) for name in (seed, *names))
    return int.from_bytes(hashlib.sha256(text.encode("utf-8")).digest()[:4], "big") >> 1
