"""Summaries of few runs: the interquartile mean and its stratified-bootstrap interval.

Source: Agarwal et al. 2021, "Deep reinforcement learning at the edge of the statistical precipice".
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def iqm(values: Sequence[float] | np.ndarray) -> float:
    """The interquartile mean (IQM): a quarter of the values is dropped at each end, the last of them in part.

    Raises:
        ValueError: there are no values.
    """
    ordered = np.sort(np.asarray(values, dtype=np.float64).ravel())
    if not len(ordered):
        raise ValueError("`values` is empty: give at least one value")
    cut = len(ordered) / 4
    # The share of each value that lies within the middle half.
    places = np.arange(len(ordered))
    weight = np.clip(np.minimum(places + 1, len(ordered) - cut) - np.maximum(places, cut), 0, 1)
    return float((weight * ordered).sum() / weight.sum())


def bootstrap_interval(
    strata: Sequence[Sequence[float]], *, level: float = 0.95, draws: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """Percentile interval of the IQM over all values: runs are drawn with replacement within each stratum (task).

    Args:
        strata: the scores of each task's runs. With one run per task the interval has no width and means nothing.
        level: probability that the interval covers.
        draws: bootstrap samples.
    """
    generator = np.random.default_rng(seed)
    scores = [np.asarray(task, dtype=np.float64) for task in strata]
    means = [iqm(np.concatenate([generator.choice(task, len(task)) for task in scores])) for _ in range(draws)]
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
