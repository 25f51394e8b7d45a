"""How much better one model is than another on the same items: a paired bootstrap over items and seeds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# N items, S seeds, R resamples

_BLOCK = 64  # resamples at a time: R × N × S indices would not fit


@dataclass(frozen=True, kw_only=True)
class Improvement:
    """The mean difference, challenger less champion, with its percentile interval."""

    mean: float
    low: float
    high: float


def improvement(
    challenger: NDArray[np.float64],
    champion: NDArray[np.float64],
    *,
    weights: NDArray[np.float64] | None = None,
    n_resamples: int,
    level: float,
    seed: int,
) -> Improvement:
    """Both (N, S): the value of each item under each seed of sampling; `weights` (N,), all alike without.

    Items are drawn with replacement, and for each drawn item its seeds, so that the interval holds both sources of
    chance (Efron and Tibshirani 1993, chapter 13; a nested draw as in Davison and Hinkley 1997, section 3.8). The
    pairing keeps what the items have in common out of it. Raises ValueError for shapes that do not agree, and for
    none at all.
    """
    if challenger.shape != champion.shape or challenger.ndim != 2 or not challenger.size:
        raise ValueError(f"two tables (items, seeds) of one shape are needed, not {challenger.shape}, {champion.shape}")
    n_items, n_seeds = challenger.shape
    difference = challenger - champion  # (N, S)
    weights = np.ones(n_items) if weights is None else weights
    mean = float(np.average(difference.mean(axis=1), weights=weights))
    generator = np.random.default_rng(seed)
    resampled = np.empty(n_resamples)  # (R,)
    for start in range(0, n_resamples, _BLOCK):
        n = min(_BLOCK, n_resamples - start)
        items = generator.integers(0, n_items, size=(n, n_items))
        seeds = generator.integers(0, n_seeds, size=(n, n_items, n_seeds))
        values = difference[items[..., None], seeds].mean(axis=2)  # (n, N)
        drawn = weights[items]
        resampled[start : start + n] = (values * drawn).sum(axis=1) / drawn.sum(axis=1)
    tail = (1.0 - level) / 2.0
    low, high = np.quantile(resampled, [tail, 1.0 - tail])
    return Improvement(mean=mean, low=float(low), high=float(high))
