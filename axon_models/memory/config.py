"""The sizes of a Transformer-XL: frozen, self-checking, and free of torch, so that reading them is cheap."""

from __future__ import annotations

import math
from dataclasses import dataclass

from axon_models.errors import ConfigError, raise_all

_COUNTS = ("vocab_size", "d_model", "n_layers", "heads", "d_feed_forward", "max_positions", "segment_length")
_POSITIVE = ("norm_eps", "init_std")


@dataclass(frozen=True, kw_only=True)
class TransformerXLConfig:
    """Sizes of a Transformer-XL.

    A text is read in segments of `segment_length` tokens; `memory_length` is how many states a layer keeps of earlier
    ones, in tokens. `max_positions`: the longest row that it is asked to read; no weight depends on any of the three.
    Raises `ConfigError` with every mistake at once: value, limit, and where to edit it.
    """

    vocab_size: int
    d_model: int
    n_layers: int
    heads: int
    d_feed_forward: int
    max_positions: int
    segment_length: int
    memory_length: int
    norm_eps: float = 1e-5
    tied_embeddings: bool = True
    init_std: float = 0.02

    def __post_init__(self) -> None:
        raise_all(ConfigError, "transformer_xl", self._mistakes())

    def _mistakes(self) -> list[str]:
        wrong = []
        for name, least in {**dict.fromkeys(_COUNTS, 1), "memory_length": 0}.items():
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                wrong.append(f"{name}={value!r} must be a whole number of at least {least}; {_where(name)}")
        for name in _POSITIVE:
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value <= 0:
                wrong.append(f"{name}={value!r} must be a positive number; {_where(name)}")
        if not isinstance(self.tied_embeddings, bool):
            wrong.append(f"tied_embeddings={self.tied_embeddings!r} must be true or false; {_where('tied_embeddings')}")
        if wrong:
            return wrong
        if self.d_model % self.heads:
            wrong.append(f"heads={self.heads} must divide d_model={self.d_model}; {_where('heads')}")
        for name in ("segment_length", "memory_length"):
            value = getattr(self, name)
            if value > self.max_positions:
                wrong.append(f"{name}={value} must be at most max_positions={self.max_positions}; {_where(name)}")
        if self.d_model % 2:
            reason = "because each frequency of the positions has a sine and a cosine"
            wrong.append(f"d_model={self.d_model} must be even, {reason}; {_where('d_model')}")
        return wrong

    @property
    def family(self) -> str:
        return "transformer_xl"

    @property
    def kv_heads(self) -> int:
        """As many as heads for queries: attention is multi-head."""
        return self.heads

    @property
    def experts(self) -> None:
        """A token goes through all parameters."""
        return None

    @property
    def reach(self) -> int:
        """How far back a token sees at most, itself counted: from the end of a segment to the start of its memory."""
        return min(self.segment_length + self.memory_length, self.max_positions)

    @property
    def head_dim(self) -> int:
        return self.d_model // self.heads

    @property
    def n_parameters(self) -> int:
        """How many numbers training changes (a tied matrix counted once)."""
        attention = 5 * self.d_model**2 + 2 * self.d_model  # queries, keys, values, positions, output; u and v
        feed_forward = 2 * self.d_model * self.d_feed_forward + self.d_feed_forward + self.d_model
        norms = 4 * self.d_model
        embeddings = self.vocab_size * self.d_model * (1 if self.tied_embeddings else 2)
        return embeddings + self.n_layers * (attention + feed_forward + norms)

    @property
    def n_active_parameters(self) -> int:
        """Of these, how many a token goes through: all."""
        return self.n_parameters


def _where(name: str) -> str:
    key = "tokenizer.vocab_size" if name == "vocab_size" else f"model.{name}"
    return f"edit {key} in params.yaml"
