"""Whether a challenger takes the champion's place: the interval of its improvement, and limits on what may worsen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.promotion.paired import Improvement, improvement

# N items, S seeds
# Whether more is better; what is not here cannot be a metric of the gate.
BETTER = {
    "win_rate": True,
    "exact_match": True,
    "score": True,
    "reward": True,
    "bits_per_byte": False,
    "kl_to_sft": False,
    "length": False,
}


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One metric of both models on the same items: (N, S) each; `weights` (N,) where items count unequally."""

    challenger: NDArray[np.float64]
    champion: NDArray[np.float64]
    weights: NDArray[np.float64] | None = None


@dataclass(frozen=True, kw_only=True)
class Rules:
    """`metric` must improve by more than `margin` with all of its interval at `level`; no guarded metric may worsen by
    more than its limit, in its own unit, on average."""

    metric: str
    margin: float
    guards: Mapping[str, float]
    level: float = 0.95
    n_resamples: int = 2000
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Decision:
    """`reasons`: why not, one sentence each; empty if the challenger is promoted."""

    improvement: Improvement
    guards: dict[str, Improvement]
    reasons: list[str] = field(default_factory=list)

    @property
    def promotes(self) -> bool:
        return not self.reasons


def decide(measured: Mapping[str, Measured], rules: Rules, *, findings: Sequence[str] = ()) -> Decision:
    """Apply the rules. `findings`: what the audit or the lineage policy has against the challenger."""
    gains = {name: _gain(name, measured[name], rules) for name in dict.fromkeys([rules.metric, *rules.guards])}
    main = gains[rules.metric]
    reasons = []
    if not main.low > rules.margin:
        reasons.append(
            f"{rules.metric} improves by {main.mean:+.4f} [{main.low:+.4f}, {main.high:+.4f}], and the interval does "
            f"not lie above the margin of {rules.margin:g}"
        )
    for name, limit in rules.guards.items():
        worse = -gains[name].mean
        if worse > limit:
            reasons.append(f"{name} worsens by {worse:.4f}, more than its limit of {limit:g}")
    reasons += findings
    return Decision(improvement=main, guards={name: gains[name] for name in rules.guards}, reasons=reasons)


def _gain(name: str, measured: Measured, rules: Rules) -> Improvement:
    """How much better the challenger is, positive where it is, whatever the metric's direction."""
    signed: Any = 1.0 if BETTER[name] else -1.0
    return improvement(
        signed * measured.challenger,
        signed * measured.champion,
        weights=measured.weights,
        n_resamples=rules.n_resamples,
        level=rules.level,
        seed=rules.seed,
    )
