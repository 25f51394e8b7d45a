"""Percentile bootstrap of a mean over prompts: how much a figure would move with another draw of prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# P prompts, R resamples


@dataclass(frozen=True, kw_only=True)
class Interval:
    mean: float
    low: float
    high: float


def mean_interval(values: Sequence[float], *, n_resamples: int, seed: int, level: float = 0.95) -> Interval:
    """The mean of `values` (one per prompt) with its percentile bootstrap interval.

    Prompts are drawn with replacement, `n_resamples` times; the interval runs between the (1-level)/2 and
    (1+level)/2 quantiles of the resampled means (Efron and Tibshirani 1993, section 13.3). It speaks of the
    choice of prompts alone: neither of another training seed nor of other samples. Raises ValueError without
    values.
    """
    if not values:
        raise ValueError("an interval needs at least one value")
    sample = np.asarray(values, dtype=np.float64)  # (P,)
    # Centred, so that values that are all alike give low = mean = high to the last bit.
    mean = float(sample.mean())
    deviations = sample - mean  # (P,)
    generator = np.random.default_rng(seed)
    resampled = np.empty(n_resamples)  # (R,)
    for start in range(0, n_resamples, 256):  # slices keep R × P indices out of memory
        stop = min(start + 256, n_resamples)
        drawn = generator.integers(0, sample.size, size=(stop - start, sample.size))
        resampled[start:stop] = deviations[drawn].mean(axis=1)
    tail = (1.0 - level) / 2.0
    low, high = np.quantile(resampled, [tail, 1.0 - tail])
    return Interval(mean=mean, low=mean + float(low), high=mean + float(high))
