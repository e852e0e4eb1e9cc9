"""Win rates by hand, and what length explains of them."""

from __future__ import annotations

import math
import random

import pytest

from valence.evaluation.statistics import wilson, win_rate


def test_a_rate_by_hand() -> None:
    """Two wins, a tie and a loss: 2.5 of 4; Wilson's interval of 5 in 10 is 0.2366 to 0.7634."""
    found = win_rate([1.0, 1.0, 0.5, 0.0], [(3, 3)] * 4)
    assert (found.rate, found.ties, found.judged, found.length_controlled) == (0.625, 0.25, 4, None)
    assert wilson(0.5, 10) == pytest.approx((0.2366, 0.7634), abs=1e-4)
    assert found.low < 0.625 < found.high
    low, high = wilson(1.0, 3)
    assert low < 0.5 and high == pytest.approx(1.0)


def test_wins_by_length_alone_are_none_at_equal_length() -> None:
    """A judge of length against a model that is longer two times of three."""
    draw = random.Random(0)
    gaps = [draw.choice([4, 4, -4]) + draw.randint(-3, 3) for _ in range(600)]
    verdicts = [float(draw.random() < 1 / (1 + math.exp(-gap))) for gap in gaps]
    found = win_rate(verdicts, [(20 + gap, 20) for gap in gaps])
    assert found.rate > 0.6 and found.length_controlled == pytest.approx(0.5, abs=0.08)
    # One that does not look at length keeps its rate.
    verdicts = [float(draw.random() < 0.7) for _ in gaps]
    found = win_rate(verdicts, [(20 + gap, 20) for gap in gaps])
    assert found.length_controlled == pytest.approx(found.rate, abs=0.05)


def test_nothing_to_sum_up_is_refused() -> None:
    for verdicts, lengths in (([], []), ([1.0], [])):
        with pytest.raises(ValueError, match="verdicts and"):
            win_rate(verdicts, lengths)
