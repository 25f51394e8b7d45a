"""Choosing the next token of each row."""
# B batch, V vocabulary

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Temperature 0 takes the likeliest token; top_k and top_p (nucleus, Holtzman et al. 2020) cut the tail.

    Raises `ValueError` for values out of range.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature={self.temperature} must be 0 (greedy) or a positive number")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k={self.top_k} must be at least 1, or None for no limit")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p={self.top_p} must be in (0, 1], or None for no limit")

    def choose(self, logits: Tensor, uniforms: Tensor) -> Tensor:
        """Tokens (B,) int64 from logits (B, V), by the inverse of the distribution function at uniforms (B,)."""
        if self.temperature == 0:
            return logits.argmax(-1)
        p = (logits.float() / self.temperature).softmax(-1)  # (B, V)
        if self.top_k is None and self.top_p is None:
            return _invert(p, uniforms)
        p, tokens = p.sort(dim=-1, descending=True, stable=True)
        if self.top_k is not None:
            p[:, self.top_k :] = 0
        if self.top_p is not None:
            # A token stays if those before it do not yet make up top_p (of what top_k left); the first always does.
            before = p.cumsum(-1) - p
            p[before >= self.top_p * p.sum(-1, keepdim=True)] = 0
        return tokens.gather(1, _invert(p, uniforms).unsqueeze(1)).squeeze(1)


def _invert(p: Tensor, uniforms: Tensor) -> Tensor:
    """The first place whose cumulated p (B, V, not necessarily of sum 1) exceeds uniforms (B,) of the total: (B,)."""
    cumulated = p.cumsum(-1, dtype=torch.float64)  # a token of probability 0 adds nothing, so it is never first
    return torch.searchsorted(cumulated, uniforms.unsqueeze(1) * cumulated[:, -1:], right=True).squeeze(1)


def uniforms(seed: int, row: int, n: int) -> list[float]:
    """n numbers in [0, 1) that depend on (seed, row) alone; fewer of them are a prefix of more."""
    stream = random.Random(f"{seed}:{row}")
    return [stream.random() for _ in range(n)]
