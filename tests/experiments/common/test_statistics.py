"""The interquartile mean and its bootstrap interval, by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from experiments.common.statistics import bootstrap_interval, iqm


@pytest.mark.parametrize(
    ("values", "mean"),
    [
        ([0.0, 1.0, 2.0, 100.0], 1.5),  # the outer quarter at each end is one value
        ([5.0], 5.0),
        # of three values, three quarters of one are cut at each end: (0.25 * 0 + 1 * 3 + 0.25 * 9) / 1.5
        ([9.0, 0.0, 3.0], 3.5),
        # of five, five quarters: (0.75 * 1 + 2 + 0.75 * 3) / 2.5
        ([-50.0, 1.0, 2.0, 3.0, 70.0], 2.0),
    ],
)
def test_iqm_by_hand(values: list[float], mean: float) -> None:
    assert math.isclose(iqm(values), mean)


def test_iqm_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        iqm([])


def test_one_run_has_an_interval_without_width() -> None:
    assert bootstrap_interval([[3.0]]) == (3.0, 3.0)


def test_interval_of_many_runs_is_that_of_a_normal_mean() -> None:
    # The IQM of n normal values has standard error 1.09 / sqrt(n) or so; the interval is near +-1.96 of them.
    values = np.random.default_rng(0).normal(size=400)
    low, high = bootstrap_interval([list(values)])
    assert low < iqm(values) < high
    assert 0.85 < (high - low) / (2 * 1.96 * 1.09 / 20) < 1.15


def test_strata_keep_their_sizes() -> None:
    # Each task has one value: whatever is drawn, both are there.
    assert bootstrap_interval([[0.0], [10.0]]) == (5.0, 5.0)
    low, high = bootstrap_interval([[0.0, 0.0], [10.0, 10.0]])
    assert low == high == 5.0
