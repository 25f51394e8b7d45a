"""Whether a challenger takes the champion's place: the interval of its improvement, and limits on what may worsen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.promotion.paired import Improvement, improvement

# N items, S seeds
# Whether more is better; None: a change to either side is for the worse, and it can be guarded but not be the metric.
BETTER: dict[str, bool | None] = {
    "win_rate": True,
    "exact_match": True,
    "score": True,
    "bits_per_byte": False,
    "kl_to_sft": False,
    "length": None,
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
    more than its limit, in its own unit, on average. win_rate improves by the share of items won less that lost."""

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
    """Apply the rules. `findings`: what the audit or the lineage policy has against the challenger.

    A guarded metric that was not measured speaks against the challenger too.
    """
    wanted = dict.fromkeys([rules.metric, *rules.guards])
    gains = {name: _gain(name, measured[name], rules) for name in wanted if name in measured}
    main = gains[rules.metric]
    reasons = []
    if not main.low > rules.margin:
        reasons.append(
            f"{rules.metric} improves by {main.mean:+.4f} [{main.low:+.4f}, {main.high:+.4f}], and the interval does "
            f"not lie above the margin of {rules.margin:g}"
        )
    for name, limit in rules.guards.items():
        if name not in gains:
            reasons.append(
                f"{name} is guarded, but is not known of both models (a version that was registered before figures "
                "were recorded has none)"
            )
        elif BETTER[name] is None and abs(gains[name].mean) > limit:
            reasons.append(f"{name} changes by {gains[name].mean:+.4f}, more than its limit of {limit:g}")
        elif BETTER[name] is not None and -gains[name].mean > limit:
            reasons.append(f"{name} worsens by {-gains[name].mean:.4f}, more than its limit of {limit:g}")
    reasons += findings
    guards = {name: gains[name] for name in rules.guards if name in gains}
    return Decision(improvement=main, guards=guards, reasons=reasons)


def _gain(name: str, measured: Measured, rules: Rules) -> Improvement:
    """How much better the challenger is, positive where it is; without a better side, how much more it has."""
    signed: Any = -1.0 if BETTER[name] is False else 1.0
    return improvement(
        signed * measured.challenger,
        signed * measured.champion,
        weights=measured.weights,
        n_resamples=rules.n_resamples,
        level=rules.level,
        seed=rules.seed,
    )
