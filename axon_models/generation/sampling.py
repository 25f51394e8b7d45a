"""Choosing the next token of each row."""
# B batch, V vocabulary

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
from torch import Tensor

from axon_models.errors import ScoresError


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How a token is chosen; the settings act in the order in which they stand here, as in `transformers`.

    repetition_penalty: scores of tokens already in prompt or answer are divided by it if positive, else multiplied
    (Keskar et al. 2019, section 4.1). temperature: scores are divided by it; 0 takes the likeliest token. top_k: only
    the k likeliest. top_p: the fewest of those left that make up this share of their probability (nucleus, Holtzman
    et al. 2020). min_p: only those at least this share of the likeliest one's probability (Nguyen et al. 2024).
    The likeliest token is never cut; of equals the one with the lower id goes first. Raises `ValueError`, which lists
    every value out of range.
    """

    repetition_penalty: float = 1.0
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None

    def __post_init__(self) -> None:
        wrong = []
        if not 0 < self.repetition_penalty < float("inf"):
            wrong.append(f"repetition_penalty={self.repetition_penalty} must be a positive number; 1 changes nothing")
        if not 0 <= self.temperature < float("inf"):
            wrong.append(f"temperature={self.temperature} must be 0 (greedy) or a positive number")
        if self.top_k is not None and self.top_k < 1:
            wrong.append(f"top_k={self.top_k} must be at least 1, or None for no limit")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            wrong.append(f"top_p={self.top_p} must be in (0, 1], or None for no limit")
        if self.min_p is not None and not 0 <= self.min_p <= 1:
            wrong.append(f"min_p={self.min_p} must be in [0, 1], or None for no limit")
        if wrong:
            raise ValueError("; ".join(wrong))

    @property
    def penalizes(self) -> bool:
        """Whether `choose` needs to know what has been seen."""
        return self.repetition_penalty != 1

    def choose(self, logits: Tensor, uniforms: Tensor, seen: Tensor | None = None) -> Tensor:
        """Tokens (B,) int64 from logits (B, V), by the inverse of the distribution function at uniforms (B,).

        `seen` (B, V) bool says which tokens a row holds already; it is read if the setting penalizes.
        """
        logits = self._penalized(logits, seen)
        if self.temperature == 0:
            return logits.argmax(-1)
        p = (logits.float() / self.temperature).softmax(-1)  # (B, V)
        if self.top_k is None and self.top_p is None and self.min_p is None:
            return _invert(p, uniforms)
        p, tokens = self._cut(p)
        return tokens.gather(1, _invert(p, uniforms).unsqueeze(1)).squeeze(1)

    def distribution(self, logits: Tensor, seen: Tensor | None = None) -> Tensor:
        """What `choose` draws from: probabilities (B, V) that sum to 1; at temperature 0 all on one token."""
        logits = self._penalized(logits, seen)
        if self.temperature == 0:
            return torch.zeros_like(logits).scatter_(1, logits.argmax(-1, keepdim=True), 1.0)
        p, tokens = self._cut((logits.float() / self.temperature).softmax(-1))
        return torch.zeros_like(p).scatter_(1, tokens, p / p.sum(-1, keepdim=True))

    def _penalized(self, logits: Tensor, seen: Tensor | None) -> Tensor:
        if not self.penalizes or seen is None:
            return logits
        penalized = torch.where(logits < 0, logits * self.repetition_penalty, logits / self.repetition_penalty)
        return torch.where(seen, penalized, logits)

    def _cut(self, p: Tensor) -> tuple[Tensor, Tensor]:
        """p (B, V) in descending order with 0 for what is cut, and the tokens in that order."""
        p, tokens = p.sort(dim=-1, descending=True, stable=True)
        if self.top_k is not None:
            p[:, self.top_k :] = 0
        if self.top_p is not None:
            # A token stays if those before it do not yet make up top_p (of what top_k left); the first always does.
            before = p.cumsum(-1) - p
            p[before >= self.top_p * p.sum(-1, keepdim=True)] = 0
        if self.min_p is not None:
            p[p < self.min_p * p[:, :1]] = 0
        return p, tokens


def _invert(p: Tensor, uniforms: Tensor) -> Tensor:
    """The first place whose cumulated p (B, V, not necessarily of sum 1) exceeds uniforms (B,) of the total: (B,)."""
    cumulated = p.cumsum(-1, dtype=torch.float64)  # a token of probability 0 adds nothing, so it is never first
    return torch.searchsorted(cumulated, uniforms.unsqueeze(1) * cumulated[:, -1:], right=True).squeeze(1)


def uniforms(seed: int, row: int, n: int) -> list[float]:
    """n numbers in [0, 1) that depend on (seed, row) alone; fewer of them are a prefix of more."""
    stream = random.Random(f"{seed}:{row}")
    return [stream.random() for _ in range(n)]


def refuse_what_is_not_finite(summary: Tensor, name: str) -> None:
    """Raise `ScoresError` unless `summary`, sums over the scores of some rows, is finite: a draw would mean nothing."""
    if not bool(torch.isfinite(summary).all()):
        raise ScoresError(
            f"{name} gives scores that are not finite (NaN or infinity), so no token can be chosen: its weights are "
            "damaged, or its training diverged. Use another model, or make this one again."
        )
