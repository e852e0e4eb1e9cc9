"""How often one model's completions beat another's, with an interval, and what length has to do with it.

A tie is half a win. The interval is Wilson's on the mean score: right for verdicts of 0 and 1, too wide with ties. The
length-controlled rate is what a logistic fit of the verdicts on the difference in length gives at equal lengths.

Source: Wilson 1927; the length control follows Dubois et al. 2024, "Length-controlled AlpacaEval", with the length term
alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class WinRate:
    """Of the first model.

    Args:
        rate: mean verdict, a tie a half.
        low, high: its 95% interval.
        ties: share of verdicts that are 1/2.
        length_controlled: the rate at equal lengths; None where lengths never differ.
        judged: verdicts in all.
    """

    rate: float
    low: float
    high: float
    ties: float
    length_controlled: float | None
    judged: int


def wilson(rate: float, count: int, *, z: float = 1.96) -> tuple[float, float]:
    """The interval of a share of `count`."""
    middle = (rate + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(rate * (1 - rate) / count + z * z / (4 * count * count))
    return max(0.0, middle - half), min(1.0, middle + half)


def win_rate(verdicts: Sequence[float], lengths: Sequence[tuple[int, int]]) -> WinRate:
    """Sum up P(first is better) of each comparison; `lengths` are the two completions', in words.

    Raises:
        ValueError: there is no verdict, or not as many lengths.
    """
    if not verdicts or len(verdicts) != len(lengths):
        raise ValueError(f"{len(verdicts)} verdicts and {len(lengths)} pairs of lengths: give one of each, and some")
    rate = float(np.mean(verdicts))
    low, high = wilson(rate, len(verdicts))
    ties = float(np.mean(np.asarray(verdicts) == 0.5))
    return WinRate(rate, low, high, ties, _at_equal_length(verdicts, lengths), len(verdicts))


def _at_equal_length(verdicts: Sequence[float], lengths: Sequence[tuple[int, int]]) -> float | None:
    """sigmoid(a) of the fit sigmoid(a + b d), d the scaled difference in length; a little ridge keeps it finite."""
    gap = np.asarray([one - two for one, two in lengths], dtype=np.float64)
    if not gap.std() > 0:
        return None
    rows = np.stack([np.ones_like(gap), np.tanh(gap / gap.std())], 1)
    wanted, found = np.asarray(verdicts, dtype=np.float64), np.zeros(2)
    for _ in range(50):
        chance = 1 / (1 + np.exp(-rows @ found))
        slope = rows.T @ (wanted - chance) - 1e-3 * found
        curve = rows.T @ (rows * (chance * (1 - chance))[:, None]) + 1e-3 * np.eye(2)
        step = np.linalg.solve(curve, slope)
        found = found + step
        if np.abs(step).max() < 1e-10:
            break
    return float(1 / (1 + math.exp(-found[0])))
