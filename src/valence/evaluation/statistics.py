"""Intervals: of a mean, and of how often one model's completions beat another's, also corrected for length.

The win rate's interval is Wilson's (1927) for the mean verdict: right for verdicts of 0 and 1, too wide with ties. The
corrected rate is the value at equal lengths of a logistic fit of the verdicts on the length difference, as in Dubois et
al. 2024, "Length-controlled AlpacaEval", with the length term alone.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


def mean_interval(values: Sequence[float | None]) -> tuple[float, float]:
    """(mean, half the width of its 95% interval by the normal distribution), without the missing values.

    Both are NaN without values; the half width is NaN for one value.
    """
    known = [value for value in values if value is not None]
    if len(known) < 2:
        return (known[0] if known else math.nan), math.nan
    return statistics.fmean(known), 1.96 * statistics.stdev(known) / math.sqrt(len(known))


@dataclass(frozen=True)
class WinRate:
    """The win rate of the first model.

    Args:
        rate: mean verdict; a tie counts 1/2.
        low, high: 95% interval of `rate`.
        ties: share of verdicts that are 1/2.
        length_controlled: the rate at equal lengths; None where lengths never differ.
        judged: number of verdicts.
    """

    rate: float
    low: float
    high: float
    ties: float
    length_controlled: float | None
    judged: int

    def sentence(self, first: str, second: str) -> str:
        """The win rate in words."""
        control = "" if self.length_controlled is None else f", {self.length_controlled:.1%} at equal length"
        interval = f"[{self.low:.1%}, {self.high:.1%}]"
        return f"{first} beats {second}: {self.rate:.1%} {interval} of {self.judged:,}, ties {self.ties:.1%}{control}"


def wilson(rate: float, count: int, *, z: float = 1.96) -> tuple[float, float]:
    """Wilson's interval of a share `rate` of `count`."""
    middle = (rate + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(rate * (1 - rate) / count + z * z / (4 * count * count))
    return max(0.0, middle - half), min(1.0, middle + half)


def win_rate(verdicts: Sequence[float], lengths: Sequence[tuple[int, int]]) -> WinRate:
    """Summarise comparisons.

    Args:
        verdicts: P(first is better) of each.
        lengths: the lengths of the first and the second completion of each, in words.
    Raises:
        ValueError: there is no verdict, or another number of lengths.
    """
    if not verdicts or len(verdicts) != len(lengths):
        raise ValueError(f"{len(verdicts)} verdicts and {len(lengths)} pairs of lengths: give one each per comparison")
    rate = float(np.mean(verdicts))
    low, high = wilson(rate, len(verdicts))
    ties = float(np.mean(np.asarray(verdicts) == 0.5))
    return WinRate(rate, low, high, ties, _at_equal_length(verdicts, lengths), len(verdicts))


def _at_equal_length(verdicts: Sequence[float], lengths: Sequence[tuple[int, int]]) -> float | None:
    """sigmoid(a) of the fit sigmoid(a + b d) by Newton's method, d the scaled length difference; a small ridge penalty
    keeps the fit finite."""
    gap = np.asarray([one - two for one, two in lengths], dtype=np.float64)
    if not gap.std() > 0:
        return None
    rows = np.stack([np.ones_like(gap), np.tanh(gap / gap.std())], 1)
    target, coefficients = np.asarray(verdicts, dtype=np.float64), np.zeros(2)
    for _ in range(50):
        fitted = 1 / (1 + np.exp(-rows @ coefficients))
        gradient = rows.T @ (target - fitted) - 1e-3 * coefficients
        hessian = rows.T @ (rows * (fitted * (1 - fitted))[:, None]) + 1e-3 * np.eye(2)
        step = np.linalg.solve(hessian, gradient)
        coefficients = coefficients + step
        if np.abs(step).max() < 1e-10:
            break
    return float(1 / (1 + math.exp(-coefficients[0])))
