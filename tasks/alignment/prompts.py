"""Which prompts answers are sampled for: of the preference split, dealt over tasks, mostly maths."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable

from tasks.errors import UserError
from tasks.steps.context import StepContext
from tasks.training import tokens
from tasks.training.examples import Example

TEXT_TASKS = ("docs", "own")  # judged by similarity, noisier than maths, which is right or wrong
_TURNS = {True: 1, False: 4}  # prompts of a text task, and of a maths task, in one round of dealing


def hash_of(seed: int, name: str, record_id: bytes) -> bytes:
    """A hash of a record that is different for every `seed` and `name`."""
    return hashlib.sha256(f"{seed}\x00{name}\x00{record_id.hex()}".encode()).digest()


def read(context: StepContext) -> tuple[list[Example], int]:
    """The preference split's examples whose prompt fits `preferences.prompt_tokens`, and how many do not."""
    examples = tokens.demonstrations(context.root, "preference")
    fitting = [e for e in examples if e.prompt_length <= context.params.preferences.prompt_tokens]
    return fitting, len(examples) - len(fitting)


def choose(examples: Iterable[Example], n: int, seed: int) -> list[Example]:
    """`n` of `examples`, dealt over tasks in rounds: equally many of every maths task, fewer of a text task.

    Within a task the order is a hash of (seed, record_id). Fewer than `n` if there are no more.
    """
    queues: dict[str, list[Example]] = defaultdict(list)
    for example in sorted(examples, key=lambda e: hash_of(seed, "deal", e.record_id)):
        queues[example.task].append(example)
    chosen: list[Example] = []
    while len(chosen) < n and any(queues.values()):
        for task in sorted(queues):
            turns = _TURNS[task in TEXT_TASKS]
            chosen += queues[task][:turns]
            del queues[task][:turns]
    return chosen[:n]


def to_answer(context: StepContext, n: int, *, stage: str) -> list[list[int]]:
    """The tokens of `n` prompts, fewer if there are no more. Raises `UserError` if there is none."""
    section = context.params.preferences
    chosen = choose(read(context)[0], n, context.params.seed)
    if not chosen:
        raise UserError(
            f"{stage}: no prompt of the preference split fits preferences.prompt_tokens={section.prompt_tokens}; "
            "raise it in params.yaml",
            exit_code=1,
        )
    return [example.prompt for example in chosen]
