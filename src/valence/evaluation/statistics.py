"""The mean of a sample with its interval."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence


def mean_interval(values: Sequence[float | None]) -> tuple[float, float]:
    """(mean, half the width of its 95% interval by the normal distribution), without the missing values.

    Both are NaN without values; the half width is NaN for one value.
    """
    known = [value for value in values if value is not None]
    if len(known) < 2:
        return (known[0] if known else math.nan), math.nan
    return statistics.fmean(known), 1.96 * statistics.stdev(known) / math.sqrt(len(known))
