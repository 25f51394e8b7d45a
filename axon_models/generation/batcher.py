"""Continuous batching: requests wait in a queue, enter as rows get free, and leave when they have ended.

Every step writes one token to each row that is going on. An answer is the one that its request gets alone, as long as
no two tokens are so close that the rounding of differently shaped products decides between them (about 1e-6 of the
scores' scale, see `docs/generation.md`).
"""
# B rows, V vocabulary

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from axon_models.generation.answers import Answer, Piece, Reason, Request, mistakes_of
from axon_models.generation.rows import rows_for
from axon_models.generation.sampling import Sampling, refuse_what_is_not_finite, uniforms
from axon_models.generation.text import TextStream
from axon_models.generation.vocabulary import Vocabulary
from axon_models.layers.language_model import LanguageModel

_MANY_ROWS, _BLOCK = 8, 64  # rows, tokens of the vocabulary


class Batcher:
    """Answers requests with at most `max_rows` of them in work at once; see the file's docstring.

    length: positions of a row, prompt and answer (default: the model's `max_positions`). chunk: tokens of one pre-fill
    pass. vocabulary: the bytes of tokens, for stop strings and for `Piece.text`. stream: called with every token as it
    is chosen. growing, prepare, dtype: as in `rows.rows_for`. name: what an error calls the model. After an
    error, also one of `stream`, nothing is waiting or in work any more.
    """

    def __init__(
        self,
        module: LanguageModel,
        *,
        eos_id: int | None = None,
        max_rows: int = 64,
        length: int | None = None,
        chunk: int = 512,
        vocabulary: Vocabulary | None = None,
        stream: Callable[[Piece], None] | None = None,
        growing: bool = True,
        prepare: bool = True,
        dtype: torch.dtype | None = None,
        name: str = "the model",
    ) -> None:
        self._config, self._eos_id, self._name = module.config, eos_id, name
        self._vocabulary, self._stream = vocabulary, stream
        self._length = module.config.max_positions if length is None else length
        self._max_rows = max_rows
        _check(self._length, module.config.max_positions, max_rows, chunk)
        with torch.inference_mode():
            self._rows = rows_for(
                module,
                n_rows=max_rows,
                length=self._length,
                chunk=chunk,
                growing=growing,
                prepare=prepare,
                dtype=dtype,
            )
        self._waiting: deque[_Row] = deque()
        self._going: list[_Row] = []
        self._logits = torch.empty(0)  # (B, V): of the next token of each row
        self._n_requests = 0

    def submit(self, request: Request) -> int:
        """Queue a request; its number, from 0 upwards. Raises `ValueError` with everything that is wrong with it."""
        wrong = mistakes_of(request, self._config, self._length, has_text=self._vocabulary is not None)
        if wrong:
            raise ValueError("cannot generate:\n" + "\n".join(f"  - {mistake}" for mistake in wrong))
        text = None if self._vocabulary is None else TextStream(self._vocabulary, stop=request.stop)
        self._waiting.append(_Row(self._n_requests, request, text, self._config.vocab_size))
        self._n_requests += 1
        return self._n_requests - 1

    @torch.inference_mode()
    def cancel(self, number: int) -> None:
        """Between steps: drop a request that is waiting or in work; nothing happens if it is neither."""
        self._waiting = deque(row for row in self._waiting if row.number != number)
        staying = [place for place, row in enumerate(self._going) if row.number != number]
        if len(staying) < len(self._going):
            self._keep(staying)

    def run(self) -> Iterator[tuple[int, Answer]]:
        """Work until nothing is waiting; (number, answer) of each request as it ends. More may be added meanwhile."""
        while self._waiting or self._going:
            yield from self.step().items()

    @torch.inference_mode()
    def step(self) -> dict[int, Answer]:
        """Let waiting requests in and write one token to every row; the answers that this has ended."""
        try:
            return self._step()
        except BaseException:
            self._waiting.clear()
            self._going = []
            self._rows.keep([])
            raise

    def _step(self) -> dict[int, Answer]:
        self._admit()
        if not self._going:
            return {}
        tokens = self._choose()
        found = self._logits.log_softmax(-1).gather(1, tokens.unsqueeze(1)).squeeze(1)  # (B,)
        logprobs = found.tolist()
        if not all(map(math.isfinite, logprobs)):
            refuse_what_is_not_finite(found, self._name)
        ended, staying = {}, []
        for place, (token, logprob) in enumerate(zip(tokens.tolist(), logprobs, strict=True)):
            row = self._going[place]
            reason, text = row.take(token, logprob, self._eos_id)
            if self._stream is not None:
                self._stream(Piece(request=row.number, token=token, logprob=logprob, text=text))
            if reason is None:
                staying.append(place)
            else:
                ended[row.number] = row.answer(reason)
        order = self._keep(staying)
        if order:
            self._logits = self._rows.step(tokens if len(order) == len(tokens) else tokens[order]).float()
        return ended

    def _admit(self) -> None:
        n_free = min(self._max_rows - len(self._going), len(self._waiting))
        if n_free:
            new = [self._waiting.popleft() for _ in range(n_free)]
            logits = self._rows.add([row.request.prompt for row in new]).float()
            self._logits = torch.cat((self._logits, logits)) if self._going else logits
            self._going += new

    def _choose(self) -> Tensor:
        """The next token of each row, (B,): rows of one setting together.

        Raises `ScoresError` where a row's scores are not finite and it draws; a greedy row's token then has a
        log-probability that is not a number.
        """
        if all(row.is_greedy for row in self._going):
            return _likeliest(self._logits)
        refuse_what_is_not_finite(self._logits.logsumexp(-1), self._name)
        settings: dict[Sampling, list[int]] = {}
        for place, row in enumerate(self._going):
            settings.setdefault(row.request.sampling, []).append(place)
        device = self._logits.device
        tokens = torch.empty(len(self._going), dtype=torch.int64, device=device)
        for sampling, places in settings.items():
            rows = [self._going[place] for place in places]
            draws = torch.tensor([row.draw() for row in rows], dtype=torch.float64, device=device)
            seen = None
            if sampling.penalizes:
                seen = torch.stack([row.seen for row in rows if row.seen is not None]).to(device)
            logits = self._logits if len(settings) == 1 else self._logits[places]
            tokens[places] = sampling.choose(logits, draws, seen)
        return tokens

    def _keep(self, staying: Sequence[int]) -> list[int]:
        """Drop all rows but those at the places `staying`; the order of what stays, with as few moved as possible."""
        if len(staying) == len(self._going):
            return list(staying)
        n, stays = len(staying), set(staying)
        behind = [place for place in staying if place >= n]
        order = [place if place in stays else behind.pop() for place in range(n)]
        self._rows.keep(order)
        self._going = [self._going[place] for place in order]
        if self._logits.shape[0] and order:
            self._logits = self._logits[order]
        return order


class _Row:
    """A request in work: what has been written, and its draws."""

    def __init__(self, number: int, request: Request, text: TextStream | None, vocab_size: int) -> None:
        self.number, self.request, self._text = number, request, text
        self._tokens: list[int] = []
        self._logprobs: list[float] = []
        self._written: list[str] = []
        draws = request.sampling.temperature > 0
        self.is_greedy = not draws and not request.sampling.penalizes
        self._draws = [] if not draws else uniforms(request.seed, request.row, request.max_new_tokens)
        self.seen: Tensor | None = None  # (V,) bool, if the setting penalizes
        if request.sampling.penalizes:
            self.seen = torch.zeros(vocab_size, dtype=torch.bool)
            self.seen[list(request.prompt)] = True

    def draw(self) -> float:
        """The uniform number of the next token."""
        return self._draws[len(self._tokens)] if self._draws else 0.0

    def take(self, token: int, logprob: float, eos_id: int | None) -> tuple[Reason | None, str]:
        """Note a token; (why this was the last one, or None; the text that is now certain)."""
        self._tokens.append(token)
        self._logprobs.append(logprob)
        if self.seen is not None:
            self.seen[token] = True
        text = "" if self._text is None else self._text.add(token)
        reason: Reason | None = None
        if token == eos_id:
            reason = "eos"
        elif self._text is not None and self._text.is_stopped:
            reason = "stop"
        elif len(self._tokens) == self.request.max_new_tokens:
            reason = "length"
        if reason is not None and self._text is not None:
            text += self._text.finish()
        self._written.append(text)
        return reason, text

    def answer(self, reason: Reason) -> Answer:
        text = None if self._text is None else "".join(self._written)
        return Answer(tokens=tuple(self._tokens), logprobs=tuple(self._logprobs), reason=reason, text=text)


def answer(
    module: LanguageModel,
    requests: Sequence[Request],
    *,
    eos_id: int | None = None,
    max_rows: int = 64,
    vocabulary: Vocabulary | None = None,
    stream: Callable[[Piece], None] | None = None,
    dtype: torch.dtype | None = None,
    name: str = "the model",
) -> list[Answer]:
    """The answers to `requests`, in their order; arguments as in `Batcher`, which takes requests at any time."""
    n_rows = max(1, min(max_rows, len(requests)))
    batcher = Batcher(
        module, eos_id=eos_id, max_rows=n_rows, vocabulary=vocabulary, stream=stream, dtype=dtype, name=name
    )
    for request in requests:
        batcher.submit(request)
    answers = dict(batcher.run())
    return [answers[number] for number in range(len(requests))]


def _likeliest(logits: Tensor) -> Tensor:
    """`logits.argmax(-1)`, (B,), the first of equals; of many rows by blocks, whose maxima are found faster."""
    n_rows, vocab_size = logits.shape
    if n_rows < _MANY_ROWS or vocab_size % _BLOCK:
        return logits.argmax(-1)
    blocks = logits.view(n_rows, -1, _BLOCK)
    block = blocks.amax(-1).argmax(-1)  # (B,)
    place = blocks[torch.arange(n_rows, device=logits.device), block].argmax(-1)  # (B,)
    return block * _BLOCK + place


def _check(length: int, max_positions: int, max_rows: int, chunk: int) -> None:
    wrong = [f"{name}={n} must be at least 1" for name, n in (("max_rows", max_rows), ("chunk", chunk)) if n < 1]
    if not 1 <= length <= max_positions:
        wrong.append(f"length={length} must be at least 1 and at most the model's max_positions={max_positions}")
    if wrong:
        raise ValueError("; ".join(wrong))
