"""The sizes of a decoder: frozen, self-checking, and free of torch, so that reading them is cheap."""

from __future__ import annotations

import math
from dataclasses import dataclass

from axon_models.errors import ConfigError, raise_all

_COUNTS = ("vocab_size", "d_model", "n_layers", "heads", "kv_heads", "d_feed_forward", "max_positions")
_POSITIVE = ("rope_theta", "norm_eps", "init_std")


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """Sizes of a pre-norm decoder with rotary positions, grouped-query attention and a gated feed-forward.

    Raises `ConfigError` with every mistake at once: value, limit, and where to edit it.
    """

    vocab_size: int
    d_model: int
    n_layers: int
    heads: int
    kv_heads: int
    d_feed_forward: int
    max_positions: int
    rope_theta: float = 10000.0
    norm_eps: float = 1e-5
    tied_embeddings: bool = True
    init_std: float = 0.02

    def __post_init__(self) -> None:
        raise_all(ConfigError, "decoder", self._mistakes())

    def _mistakes(self) -> list[str]:
        wrong = []
        for name in _COUNTS:
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                wrong.append(f"{name}={value!r} must be a whole number of at least 1; {_where(name)}")
        for name in _POSITIVE:
            value = getattr(self, name)
            if not isinstance(value, int | float) or not math.isfinite(value) or value <= 0:
                wrong.append(f"{name}={value!r} must be a positive number; {_where(name)}")
        if wrong:
            return wrong
        if self.d_model % self.heads:
            wrong.append(f"heads={self.heads} must divide d_model={self.d_model}; {_where('heads')}")
        elif self.head_dim % 2:
            wrong.append(
                f"d_model/heads={self.head_dim} must be even, because rotary positions turn pairs; {_where('heads')}"
            )
        if self.heads % self.kv_heads:
            wrong.append(f"kv_heads={self.kv_heads} must divide heads={self.heads}; {_where('kv_heads')}")
        return wrong

    @property
    def head_dim(self) -> int:
        return self.d_model // self.heads

    @property
    def n_parameters(self) -> int:
        """How many numbers training changes (a tied matrix counted once)."""
        attention = self.d_model * self.head_dim * (2 * self.heads + 2 * self.kv_heads)
        feed_forward = 3 * self.d_model * self.d_feed_forward
        norms = 2 * self.d_model
        embeddings = self.vocab_size * self.d_model * (1 if self.tied_embeddings else 2)
        return embeddings + self.n_layers * (attention + feed_forward + norms) + self.d_model


def _where(name: str) -> str:
    key = "tokenizer.vocab_size" if name == "vocab_size" else f"model.{name}"
    return f"edit {key} in params.yaml"
