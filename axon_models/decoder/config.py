"""What a decoder is: its sizes and which variant of each part it has; frozen, self-checking, and free of torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

from axon_models.errors import ConfigError, raise_all

BlockKind = Literal["pre_norm", "post_norm", "parallel"]
NormKind = Literal["rms", "layer"]
FeedForwardKind = Literal["swiglu", "gelu_tanh", "relu"]
PositionKind = Literal["rotary", "learned", "sinusoidal"]
ScalingKind = Literal["linear", "dynamic"]
WindowedLayers = Literal["all", "odd"]
Routing = Literal["top_k", "switch"]

_COUNTS = ("vocab_size", "d_model", "n_layers", "heads", "kv_heads", "d_feed_forward", "max_positions")
_POSITIVE = ("rope_theta", "norm_eps", "init_std", "position_scale")
_KINDS: dict[str, tuple[str, ...]] = {
    "block": get_args(BlockKind),
    "norm": get_args(NormKind),
    "feed_forward": get_args(FeedForwardKind),
    "positions": get_args(PositionKind),
    "windowed_layers": get_args(WindowedLayers),
}


@dataclass(frozen=True, kw_only=True)
class RopeScaling:
    """How rotary angles are stretched past the length that a model was trained on, `max_positions` / `factor`.

    linear: every position is divided by `factor` (Chen et al. 2023, "Extending Context Window … via Positional
    Interpolation"). dynamic: for sequences longer than the trained length the base grows with their length ("dynamic
    NTK", as in Llama's rope_scaling); shorter ones are as without scaling.
    """

    kind: ScalingKind
    factor: float

    def mistakes(self) -> list[str]:
        wrong = []
        if self.kind not in get_args(ScalingKind):
            wrong.append(_one_of("rope_scaling.kind", self.kind, get_args(ScalingKind)))
        if not isinstance(self.factor, int | float) or not 1 <= self.factor < math.inf:
            wrong.append(
                f"rope_scaling.factor={self.factor!r} must be a number of at least 1; {_where('rope_scaling')}"
            )
        return wrong


@dataclass(frozen=True, kw_only=True)
class Experts:
    """A feed-forward layer of `n` experts, of which each token uses `per_token`.

    top_k: the router's best, by its probabilities made to sum to 1 (Mixtral). switch: the best one alone, up to
    `capacity_factor` times an equal share of the tokens, the rest pass by (Switch Transformer).
    """

    n: int
    per_token: int
    routing: Routing = "top_k"
    capacity_factor: float = 1.25  # of switch alone
    router_coef: float = 0.01  # weight of the load-balancing loss

    def mistakes(self) -> list[str]:
        wrong = []
        if self.routing not in get_args(Routing):
            wrong.append(_one_of("experts.routing", self.routing, get_args(Routing)))
        if not _is_count(self.n):
            wrong.append(f"experts={self.n!r} must be a whole number of at least 1; {_where('experts')}")
        elif not _is_count(self.per_token) or self.per_token > self.n:
            wrong.append(
                f"experts_per_token={self.per_token!r} must be from 1 to experts={self.n}; {_where('experts')}"
            )
        elif self.routing == "switch" and self.per_token != 1:
            wrong.append(f"experts_per_token={self.per_token} must be 1 where a token is switched to one expert")
        for name in ("capacity_factor", "router_coef"):
            value = getattr(self, name)
            if not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
                wrong.append(f"{name}={value!r} must be a number of at least 0")
        return wrong


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """A causal language model; without any choice it is a Llama, which is what the defaults stand for.

    Raises `ConfigError` with every mistake at once: value, limit, and where to edit it.
    """

    family: str = "llama"  # whose checkpoints it reads and writes: a name of axon_models/decoder/families
    vocab_size: int
    d_model: int
    n_layers: int
    heads: int
    kv_heads: int  # heads: multi-head, 1: multi-query, between: grouped-query attention
    d_feed_forward: int
    max_positions: int  # the longest sequence
    block: BlockKind = "pre_norm"
    norm: NormKind = "rms"
    norm_eps: float = 1e-5
    feed_forward: FeedForwardKind = "swiglu"
    experts: Experts | None = None  # each of them a `feed_forward`
    positions: PositionKind = "rotary"
    position_scale: float = 1.0  # of sinusoids alone
    rope_theta: float = 10000.0
    rotary_fraction: float = 1.0  # of each head's dimensions; the rest does not turn
    rope_scaling: RopeScaling | None = None
    window: int | None = None  # a query sees the last so many positions, itself included; None: all
    windowed_layers: WindowedLayers = "all"  # or the second, fourth, … alone
    biases: bool = False  # of all products but the embedding and the output
    output_bias: bool = False
    tied_embeddings: bool = True
    pretraining_tp: int = 1  # slices in which products are computed, as on so many devices
    init_std: float = 0.02

    def __post_init__(self) -> None:
        raise_all(ConfigError, "decoder", self._mistakes())

    def _mistakes(self) -> list[str]:
        wrong = []
        for name in (*_COUNTS, "pretraining_tp", *(("window",) if self.window is not None else ())):
            if not _is_count(getattr(self, name)):
                wrong.append(f"{name}={getattr(self, name)!r} must be a whole number of at least 1; {_where(name)}")
        for name in _POSITIVE:
            value = getattr(self, name)
            if not isinstance(value, int | float) or not math.isfinite(value) or value <= 0:
                wrong.append(f"{name}={value!r} must be a positive number; {_where(name)}")
        if not 0 < self.rotary_fraction <= 1:
            wrong.append(f"rotary_fraction={self.rotary_fraction!r} must be above 0 and at most 1")
        wrong += [_one_of(name, getattr(self, name), kinds) for name, kinds in _KINDS.items() if not self._is(name)]
        for part in (self.rope_scaling, self.experts):
            wrong += part.mistakes() if part is not None else []
        return wrong or self._contradictions()

    def _is(self, name: str) -> bool:
        return getattr(self, name) in _KINDS[name]

    def _contradictions(self) -> list[str]:
        wrong = []
        if self.d_model % self.heads:
            wrong.append(f"heads={self.heads} must divide d_model={self.d_model}; {_where('heads')}")
        elif self.positions == "rotary" and (self.rotary_dim % 2 or not self.rotary_dim):
            part = "d_model/heads" if self.rotary_fraction == 1 else f"d_model/heads·{self.rotary_fraction}"
            wrong.append(
                f"{part}={self.rotary_dim} must be even, because rotary positions turn pairs; {_where('heads')}"
            )
        elif self.positions == "sinusoidal" and self.d_model % 2:
            wrong.append(f"d_model={self.d_model} must be even, because a sine goes with a cosine; {_where('d_model')}")
        if self.heads % self.kv_heads:
            wrong.append(f"kv_heads={self.kv_heads} must divide heads={self.heads}; {_where('kv_heads')}")
        if self.rope_scaling is not None and self.positions != "rotary":
            wrong.append(f"rope_scaling is for rotary positions, not {self.positions} ones; {_where('rope_scaling')}")
        for name in ("d_model", "kv_heads", "d_feed_forward"):
            if getattr(self, name) % self.pretraining_tp:
                tp = f"pretraining_tp={self.pretraining_tp}"
                wrong.append(f"{tp} must divide {name}={getattr(self, name)}; {_where('pretraining_tp')}")
        if self.experts is not None:
            wrong += self._expert_contradictions(self.experts)
        if self.output_bias and self.tied_embeddings:
            wrong.append("output_bias: only an output of its own has a bias; set tied_embeddings to false")
        return wrong

    def _expert_contradictions(self, experts: Experts) -> list[str]:
        """What routed layers are not built for."""
        kind = {"top_k": "swiglu", "switch": "relu"}[experts.routing]
        needed = {"block": "pre_norm", "feed_forward": kind, "biases": False, "pretraining_tp": 1}
        return [
            f"{name}={getattr(self, name)!r} must be {value!r} where experts are routed by {experts.routing}"
            for name, value in needed.items()
            if getattr(self, name) != value
        ]

    @property
    def head_dim(self) -> int:
        return self.d_model // self.heads

    @property
    def rotary_dim(self) -> int:
        """How many dimensions of a head turn."""
        return int(self.head_dim * self.rotary_fraction)

    @property
    def trained_positions(self) -> int:
        """The length up to which rotary angles are not stretched (⌈max_positions / factor⌉)."""
        return (
            self.max_positions
            if self.rope_scaling is None
            else math.ceil(self.max_positions / self.rope_scaling.factor)
        )

    @property
    def windows(self) -> tuple[int | None, ...]:
        """The window of each layer, None where it sees everything."""
        first = 1 if self.windowed_layers == "odd" else 0
        step = 2 if self.windowed_layers == "odd" else 1
        windowed = range(first, self.n_layers, step)
        return tuple(self.window if layer in windowed else None for layer in range(self.n_layers))

    @property
    def n_parameters(self) -> int:
        """How many numbers training changes (a tied matrix counted once)."""
        return self._outside_blocks() + self.n_layers * (self._attention() + self._feed_forwards() + self._norms())

    @property
    def n_active_parameters(self) -> int:
        """Of these, how many a token goes through: `per_token` experts of each layer."""
        if self.experts is None:
            return self.n_parameters
        return self.n_parameters - self.n_layers * (self.experts.n - self.experts.per_token) * self._one_feed_forward()

    def _outside_blocks(self) -> int:
        embeddings = self.vocab_size * self.d_model * (1 if self.tied_embeddings else 2)
        positions = self.max_positions * self.d_model if self.positions == "learned" else 0
        final_norm = 0 if self.block == "post_norm" else self._norm()
        return embeddings + positions + final_norm + (self.vocab_size if self.output_bias else 0)

    def _attention(self) -> int:
        matrices = self.d_model * self.head_dim * (2 * self.heads + 2 * self.kv_heads)
        return matrices + ((self.heads + 2 * self.kv_heads) * self.head_dim + self.d_model if self.biases else 0)

    def _one_feed_forward(self) -> int:
        n_in = 2 if self.feed_forward == "swiglu" else 1
        matrices = (n_in + 1) * self.d_model * self.d_feed_forward
        return matrices + (n_in * self.d_feed_forward + self.d_model if self.biases else 0)

    def _feed_forwards(self) -> int:
        if self.experts is None:
            return self._one_feed_forward()
        return self.experts.n * (self._one_feed_forward() + self.d_model)

    def _norms(self) -> int:
        return self._norm() * (1 if self.block == "parallel" else 2)

    def _norm(self) -> int:
        return self.d_model * (1 if self.norm == "rms" else 2)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _one_of(name: str, value: Any, allowed: tuple[str, ...]) -> str:
    return f"{name}={value!r} must be one of {', '.join(allowed)}; {_where(name.split('.')[0])}"


def _where(name: str) -> str:
    if name == "pretraining_tp":  # of checkpoints alone
        return "edit pretraining_tp in config.json"
    key = "tokenizer.vocab_size" if name == "vocab_size" else f"model.{name}"
    return f"edit {key} in params.yaml"
