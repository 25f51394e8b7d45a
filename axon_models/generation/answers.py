"""What is asked of a model, and what it answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from axon_models.generation.sampling import Sampling
from axon_models.layers.language_model import Sizes

GREEDY = Sampling(temperature=0)
Reason = Literal["eos", "length", "stop"]  # the model ended; max_new_tokens were written; a stop string came


@dataclass(frozen=True, kw_only=True)
class Request:
    """A prompt to continue by at most `max_new_tokens` tokens.

    Draws depend on (seed, row) alone: the same numbers as row `row` of `engine.generate` with that seed. The answer
    ends where its text contains one of the strings `stop`.
    """

    prompt: Sequence[int]
    max_new_tokens: int
    sampling: Sampling = GREEDY
    seed: int = 0
    row: int = 0
    stop: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The tokens behind a prompt, with the end token where it was produced, and why there are no more.

    logprobs: natural logarithms of the tokens' probabilities in the model's own distribution, before penalty,
    temperature and cuts. text: the text of the tokens up to a stop string; None without a vocabulary.
    """

    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    reason: Reason
    text: str | None = None


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A token as it is chosen, and the text that became certain with it (see `text.TextStream`)."""

    request: int
    token: int
    logprob: float
    text: str = ""


def mistakes_of(request: Request, config: Sizes, length: int, *, has_text: bool) -> list[str]:
    """What is wrong with a request to a model whose rows have `length` positions; empty if nothing is."""
    prompt, wrong = request.prompt, []
    if request.max_new_tokens < 1:
        wrong.append(f"max_new_tokens={request.max_new_tokens} must be at least 1")
    if not prompt:
        wrong.append("the prompt is empty; give at least one token")
    elif min(prompt) < 0 or max(prompt) >= config.vocab_size:
        wrong.append(f"the prompt has a token outside 0 … {config.vocab_size - 1}")
    room = length - max(request.max_new_tokens, 1)
    if len(prompt) > room:
        wrong.append(
            f"the prompt has {len(prompt)} tokens; with max_new_tokens={request.max_new_tokens} at most "
            f"{max(room, 0)} fit into {length} positions"
        )
    if request.stop and not has_text:
        wrong.append(f"stop={list(request.stop)} needs `vocabulary`, by which tokens become text")
    if "" in request.stop:
        wrong.append("stop must not hold an empty string")
    return wrong
