"""Decoding of many prompts at once, with static key-value buffers.

Prompts are padded at the right to one length and filled in together; then each step adds one token to every row, at
the row's own position. Lengths come from parameters, never from the batch, so a row's arithmetic is the same
whatever stands beside it, up to the rounding of differently shaped matrix products.

Training, preferences, evaluation and the gate decode by `generate`, whose bytes are part of their results. What people
wait for (`axon chat`, an endpoint) goes through `batcher.py`, which is faster and may round differently.
"""
# B rows (padded), T time, S slots, D model, V vocabulary

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from axon_models.generation.sampling import Sampling, refuse_what_is_not_finite, uniforms
from axon_models.layers.cache import KVCache
from axon_models.layers.language_model import LanguageModel

ROUNDING = 16  # rows and slots come in multiples of so many

Stream = Callable[[int, int], None]  # row, token


def _round_up(n: int) -> int:
    return -(-n // ROUNDING) * ROUNDING


@torch.inference_mode()
def generate(
    module: LanguageModel,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    repetition_penalty: float = 1.0,
    eos_id: int | None = None,
    seed: int = 0,
    first_row: int = 0,
    kv_length: int | None = None,
    prompt_length: int | None = None,
    stream: Stream | None = None,
    name: str = "the model",
) -> list[list[int]]:
    """The tokens that continue each prompt, without the prompt and with `eos_id` where it was produced.

    A row ends after `eos_id` or `max_new_tokens` tokens. How a token is chosen is told at `Sampling`. Row i draws
    from a stream that depends on (seed, first_row + i) alone, so that prompts can be dealt out over several calls.
    Buffers have `kv_length` slots (default: the model's `max_positions`), of which the first `prompt_length`
    (default: all but `max_new_tokens`, as far as prompts may be padded) are for prompts. `stream(row, token)` is
    called for every token as it is chosen. Raises `ValueError` for prompts that are empty, too long or outside the
    vocabulary, and for settings out of range, and `ScoresError`, which names the model by `name`, where its scores
    are not finite.
    """
    sampling = Sampling(
        temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, repetition_penalty=repetition_penalty
    )
    kv_length = module.config.max_positions if kv_length is None else kv_length
    if prompt_length is None:
        prompt_length = min(kv_length - max_new_tokens, module.padded_positions)
    _check(module, prompts, max_new_tokens, kv_length, prompt_length)
    if not prompts:
        return []
    rows = _Rows(module, prompts, prompt_length, max_new_tokens, seed, first_row, watches=sampling.penalizes)
    answers: list[list[int]] = [[] for _ in prompts]
    for step in range(max_new_tokens):
        refuse_what_is_not_finite(rows.logits.sum(), name)
        chosen = sampling.choose(rows.logits, rows.uniforms[:, step], rows.seen)  # (B,)
        going = []
        for place, token in enumerate(chosen.tolist()):
            row = rows.numbers[place] if place < len(rows.numbers) else None
            if row is None or answers[row][-1:] == [eos_id]:
                continue
            answers[row].append(token)
            if stream is not None:
                stream(row, token)
            if token != eos_id:
                going.append(place)
        if not going or step + 1 == max_new_tokens:
            break
        rows.advance(chosen, step, going)
    return answers


class _Rows:
    """The rows still being written: their caches, positions, uniforms, and the logits of their next token."""

    def __init__(
        self,
        module: LanguageModel,
        prompts: Sequence[Sequence[int]],
        prompt_length: int,
        max_new_tokens: int,
        seed: int,
        first_row: int,
        *,
        watches: bool,
    ) -> None:
        config, device = module.config, module.embedding.weight.device
        self.module, self.prompt_length = module, prompt_length
        self.numbers = list(range(len(prompts)))
        n_rows, n_fill = _round_up(len(prompts)), _round_up(len(prompts)) - len(prompts)
        padded = [[*prompt, *[0] * (prompt_length - len(prompt))] for prompt in prompts]
        tokens = torch.tensor(padded + [[0] * prompt_length] * n_fill, device=device)  # (B, T)
        self.lengths = torch.tensor([len(prompt) for prompt in prompts] + [1] * n_fill, device=device)  # (B,)
        draws = [uniforms(seed, first_row + row, max_new_tokens) for row in self.numbers]
        draws += [[0.0] * max_new_tokens] * n_fill
        self.uniforms = torch.tensor(draws, dtype=torch.float64, device=device)  # (B, max_new_tokens)
        self.seen = _seen(prompts, n_rows, config.vocab_size).to(device) if watches else None  # (B, V)
        self.slots = torch.arange(_round_up(prompt_length + max_new_tokens), device=device)  # (S,)
        self.cache = KVCache(
            n_layers=config.n_layers,
            batch=n_rows,
            length=self.slots.shape[0],
            kv_heads=config.kv_heads,
            head_dim=config.head_dim,
            dtype=module.embedding.weight.dtype,
            device=device,
        )
        hidden = module.hidden(tokens, cache=self.cache)  # (B, T, D)
        last = hidden[torch.arange(n_rows, device=device), self.lengths - 1]  # (B, D)
        self.logits = F.linear(last, module.output_weight)  # (B, V)

    def advance(self, chosen: Tensor, step: int, going: list[int]) -> None:
        """Write the `chosen` tokens (B,) and compute the logits after them; keep only the rows `going` if that pays."""
        if _round_up(len(going)) < chosen.shape[0]:
            chosen = self._keep(chosen, going)
        if self.seen is not None:
            self.seen.scatter_(1, chosen.unsqueeze(1), True)
        positions = (self.lengths + step).unsqueeze(1)  # (B, 1)
        # The furthest that any row of such prompts can be, so that the products' shapes do not depend on the rows.
        n_slots = _round_up(self.prompt_length + step + 1)
        mask = (self.slots[:n_slots] <= positions)[:, None, None]  # (B, 1, 1, S)
        hidden = self.module.hidden(chosen.unsqueeze(1), positions=positions, mask=mask, cache=self.cache)  # (B, 1, D)
        self.logits = F.linear(hidden.squeeze(1), self.module.output_weight)  # (B, V)

    def _keep(self, chosen: Tensor, going: list[int]) -> Tensor:
        places = going + [going[0]] * (_round_up(len(going)) - len(going))
        kept = torch.tensor(places, device=chosen.device)
        self.numbers = [self.numbers[place] for place in going]
        self.lengths, self.uniforms = self.lengths[kept], self.uniforms[kept]
        self.seen = None if self.seen is None else self.seen[kept]
        self.cache.keep_rows(kept)
        return chosen[kept]


def _seen(prompts: Sequence[Sequence[int]], n_rows: int, vocab_size: int) -> Tensor:
    """(B, V) bool: the tokens of each prompt; rows that only pad have none."""
    seen = torch.zeros(n_rows, vocab_size, dtype=torch.bool)
    for row, prompt in enumerate(prompts):
        seen[row, list(prompt)] = True
    return seen


def _check(
    module: LanguageModel, prompts: Sequence[Sequence[int]], max_new_tokens: int, kv_length: int, prompt_length: int
) -> None:
    vocab_size, max_positions = module.config.vocab_size, module.config.max_positions
    wrong = []
    if max_new_tokens < 1:
        wrong.append(f"max_new_tokens={max_new_tokens} must be at least 1")
    if kv_length > max_positions:
        wrong.append(f"kv_length={kv_length} must be at most the model's max_positions={max_positions}")
    if prompt_length < 1 or prompt_length + max_new_tokens > kv_length:
        wrong.append(
            f"prompt_length={prompt_length} must be at least 1 and leave max_new_tokens={max_new_tokens} "
            f"of kv_length={kv_length}"
        )
    elif prompt_length > module.padded_positions:
        wrong.append(
            f"prompt_length={prompt_length} must be at most {module.padded_positions}, the length up to which this "
            "model's rope_scaling says the same of padded prompts; use Batcher, which pads none"
        )
    for row, prompt in enumerate(prompts):
        if not prompt:
            wrong.append(f"prompt {row} is empty; give at least one token")
        elif len(prompt) > prompt_length:
            wrong.append(f"prompt {row} has {len(prompt)} tokens, more than prompt_length={prompt_length}")
        elif min(prompt) < 0 or max(prompt) >= vocab_size:
            wrong.append(f"prompt {row} has a token outside 0 … {vocab_size - 1}")
    if wrong:
        raise ValueError("cannot generate:\n" + "\n".join(f"  - {mistake}" for mistake in wrong))
