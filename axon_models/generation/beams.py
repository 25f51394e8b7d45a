"""Beam search: the likeliest answers, by keeping several unfinished ones and going on with the best.

Rules are those of `transformers` 5 (`GenerationMixin._beam_search`), so that the same weights give the same answers:
  1. Of all continuations of all beams the 2·`beams` likeliest are looked at, in order.
  2. One that ends (end token, or full length) is finished if it is among the first `beams`, else dropped.
  3. The first `beams` of the others go on.
  4. A finished answer's score is its log-probability / length^`length_penalty`, the end token counted
     (Wu et al. 2016, section 7, with the simpler norm). The `beams` best finished ones are kept.
  5. It stops when `beams` are finished and either `early_stopping` is True or the best beam could not beat the worst
     of them; for that bound a beam's length is the present one (False) or, if longer answers score better, the
     longest allowed ("never"). A single beam stops with its first answer: it is greedy decoding.
"""
# B beams, V vocabulary

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from axon_models.generation.answers import Answer, Request, mistakes_of
from axon_models.generation.rows import rows_for
from axon_models.generation.sampling import refuse_what_is_not_finite
from axon_models.generation.text import decode
from axon_models.generation.vocabulary import Vocabulary
from axon_models.layers.language_model import LanguageModel

EarlyStopping = Literal["never"] | bool


@dataclass(frozen=True, kw_only=True)
class BeamSettings:
    """How to search; see the file's docstring. Raises `ValueError` for values out of range."""

    beams: int = 4
    length_penalty: float = 1.0
    early_stopping: EarlyStopping = False

    def __post_init__(self) -> None:
        if self.beams < 1:
            raise ValueError(f"beams={self.beams} must be at least 1")
        if not -float("inf") < self.length_penalty < float("inf"):
            raise ValueError(f"length_penalty={self.length_penalty} must be a finite number")
        if self.early_stopping not in (True, False, "never"):
            raise ValueError(f"early_stopping={self.early_stopping!r} must be True, False or 'never'")


class _Beam(NamedTuple):
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    score: float  # Σ logprobs in float32 while it goes on; divided by length^length_penalty when finished


@torch.inference_mode()
def beam_search(
    module: LanguageModel,
    prompt: Sequence[int],
    *,
    max_new_tokens: int,
    settings: BeamSettings | None = None,
    eos_id: int | None = None,
    vocabulary: Vocabulary | None = None,
    chunk: int = 512,
    prepare: bool = True,
    dtype: torch.dtype | None = None,
    name: str = "the model",
) -> list[Answer]:
    """At most `settings.beams` answers to `prompt`, best first; chunk, prepare and dtype as in `rows.rows_for`.

    Raises `ValueError` for a prompt that is empty, too long or outside the vocabulary, and `ScoresError`, which names
    the model by `name`, where its scores are not finite.
    """
    settings = settings or BeamSettings()
    request = Request(prompt=prompt, max_new_tokens=max_new_tokens)
    wrong = mistakes_of(request, module.config, module.config.max_positions, has_text=vocabulary is not None)
    if wrong:
        raise ValueError("cannot search:\n" + "\n".join(f"  - {mistake}" for mistake in wrong))
    length = len(prompt) + max_new_tokens
    rows = rows_for(module, n_rows=settings.beams, length=length, chunk=chunk, prepare=prepare, dtype=dtype)
    logits = rows.add([prompt])
    going, finished = [_Beam((), (), 0.0)], list[_Beam]()
    for n_written in range(1, max_new_tokens + 1):
        is_last = n_written == max_new_tokens
        logprobs = logits.float().log_softmax(-1)  # (B, V)
        refuse_what_is_not_finite(logprobs.sum(), name)
        ended, parents, continued = _continuations(going, logprobs, settings.beams, eos_id, is_last)
        norm = n_written**settings.length_penalty
        finished += [beam._replace(score=beam.score / norm) for beam in ended]
        finished = sorted(finished, key=lambda beam: -beam.score)[: settings.beams]  # stable: equals in order of coming
        going = continued
        if not going or _may_stop(going, finished, settings, n_written, max_new_tokens):
            break
        rows.keep(parents)
        logits = rows.step(torch.tensor([beam.tokens[-1] for beam in going], device=logits.device))
    return [_answer(beam, eos_id, vocabulary) for beam in finished]


def _continuations(
    going: Sequence[_Beam], logprobs: Tensor, beams: int, eos_id: int | None, is_last: bool
) -> tuple[list[_Beam], list[int], list[_Beam]]:
    """Rules 1 to 3: (those that end, the rows of the others' parents, the others)."""
    vocab_size = logprobs.shape[1]
    totals = torch.tensor([beam.score for beam in going], device=logprobs.device).unsqueeze(1) + logprobs  # (B, V)
    best, places = totals.flatten().topk(min(2 * beams, totals.numel()))
    ended: list[_Beam] = []
    parents: list[int] = []
    continued: list[_Beam] = []
    for rank, (score, place) in enumerate(zip(best.tolist(), places.tolist(), strict=True)):
        parent, token = divmod(place, vocab_size)
        logprob = float(logprobs[parent, token])
        beam = _Beam((*going[parent].tokens, token), (*going[parent].logprobs, logprob), score)
        if token == eos_id or is_last:
            if rank < beams:
                ended.append(beam)
        elif len(continued) < beams:
            parents.append(parent)
            continued.append(beam)
    return ended, parents, continued


def _may_stop(
    going: Sequence[_Beam], finished: Sequence[_Beam], settings: BeamSettings, n_written: int, max_new_tokens: int
) -> bool:
    """Rule 5."""
    if len(finished) < settings.beams:
        return False
    if settings.early_stopping is True or settings.beams == 1:
        return True
    looks_ahead = settings.early_stopping == "never" and settings.length_penalty > 0
    length = max_new_tokens if looks_ahead else n_written
    return going[0].score / length**settings.length_penalty <= finished[-1].score


def _answer(beam: _Beam, eos_id: int | None, vocabulary: Vocabulary | None) -> Answer:
    return Answer(
        tokens=beam.tokens,
        logprobs=beam.logprobs,
        reason="eos" if beam.tokens[-1] == eos_id else "length",
        text=None if vocabulary is None else decode(vocabulary, beam.tokens),
    )
