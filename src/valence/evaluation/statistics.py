"""Few runs, honestly summed up: the interquartile mean and its stratified-bootstrap interval.

Source: Agarwal et al. 2021, "Deep reinforcement learning at the edge of the statistical precipice".
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

import numpy as np


def iqm(values: Sequence[float] | np.ndarray) -> float:
    """The mean of the middle half: a quarter of the values is left out at each end, a value in part where need be."""
    ordered = np.sort(np.asarray(values, dtype=np.float64).ravel())
    if not len(ordered):
        raise ValueError("the mean of nothing: give at least one value")
    cut = len(ordered) / 4
    # How much of each value's unit interval lies within the middle half.
    places = np.arange(len(ordered))
    weight = np.clip(np.minimum(places + 1, len(ordered) - cut) - np.maximum(places, cut), 0, 1)
    return float((weight * ordered).sum() / weight.sum())


def bootstrap_interval(
    strata: Sequence[Sequence[float]], *, level: float = 0.95, draws: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """Percentile interval of the IQM over all values, runs drawn anew with replacement within each stratum (task).

    Args:
        strata: the runs' scores of each task. One run a task gives an interval of no width: it says nothing.
    """
    generator = np.random.default_rng(seed)
    parts = [np.asarray(part, dtype=np.float64) for part in strata]
    found = [iqm(np.concatenate([generator.choice(part, len(part)) for part in parts])) for _ in range(draws)]
    low, high = np.quantile(found, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def mean_interval(values: Sequence[float | None]) -> tuple[float, float]:
    """(mean, half width of its 95% interval by the normal distribution) of the values that are there; NaN where too
    few are."""
    known = [value for value in values if value is not None]
    if len(known) < 2:
        return (known[0] if known else math.nan), math.nan
    return statistics.fmean(known), 1.96 * statistics.stdev(known) / math.sqrt(len(known))
