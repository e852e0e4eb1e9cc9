"""Reward against gold: when they diverged, the best evaluation, and reward by decile of KL."""

from __future__ import annotations

import math

import pytest

from valence.evaluation.overoptimization import EvaluationPoint, audit, by_decile, figure, section
from valence.evaluation.statistics import mean_interval


def point(step: int, proxy: float, gold: float | None, *, count: int = 50, noise: float = 0.1) -> EvaluationPoint:
    wobble = [noise * (-1) ** place for place in range(count)]
    golds = None if gold is None else [gold + part for part in wobble]
    return EvaluationPoint(step, [step / 10] * count, [proxy + part for part in wobble], golds)


def test_gold_that_falls_while_the_reward_rises_diverged() -> None:
    found = audit([point(0, 0.0, 0.0), point(10, 1.0, 0.8), point(20, 2.0, 0.3)])
    assert found is not None and found.diverged
    assert (found.best.step, found.last.step) == (10, 20)
    assert found.lost[0] == pytest.approx(0.5) and found.gained[0] == pytest.approx(1.0)
    assert "DIVERGED" in found.sentence() and "step 10" in found.sentence()


@pytest.mark.parametrize(
    ("points", "why"),
    [
        ([point(0, 0.0, 0.0), point(10, 1.0, 0.8)], "gold is best at the end"),
        ([point(0, 0.0, 0.0), point(10, 1.0, 0.8), point(20, 0.5, 0.3)], "the reward fell too: a worse policy"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_no_divergence(points: list[EvaluationPoint], why: str) -> None:
    found = audit(points)
    assert found is not None and not found.diverged and "DIVERGED" not in found.sentence()


def test_a_fall_within_its_interval_is_no_divergence() -> None:
    falls = [0.02 + (3 if place % 2 else -3) for place in range(50)]
    best, last = point(10, 1.0, 0.8, noise=0.0), point(20, 2.0, 0.8, noise=0.0)
    assert best.gold is not None and last.gold is not None
    noisy = EvaluationPoint(
        20, last.kl, last.proxy, [value - fall for value, fall in zip(last.gold, falls, strict=True)]
    )  # pyright: ignore[reportOperatorIssue]
    found = audit([best, noisy])
    assert found is not None and found.lost[0] == pytest.approx(0.02) and found.lost[1] > 0.5 and not found.diverged


def test_the_difference_is_taken_on_prompts_that_both_evaluations_know() -> None:
    best = EvaluationPoint(1, [0.0] * 4, [0.0] * 4, [5.0, 1.0, 1.5, None])
    last = EvaluationPoint(2, [0.0] * 4, [1.0] * 4, [None, 0.5, 0.0, 2.0])
    found = audit([best, last])
    assert found is not None and found.best is best and found.lost[0] == pytest.approx((0.5 + 1.5) / 2)


def test_more_evaluations_need_stronger_evidence() -> None:
    """The best is chosen among all evaluations: what two of them call a divergence, twenty do not."""
    falls = [0.25 if place % 2 else -0.15 for place in range(50)]
    best = point(10, 1.0, 0.8, noise=0.0)
    last = EvaluationPoint(20, best.kl, [2.0] * 50, [0.8 - fall for fall in falls])
    few, many = audit([best, last]), audit([*(point(step, 0.0, 0.0) for step in range(9)), best, last])
    assert few is not None and many is not None and few.lost[0] == pytest.approx(0.05)
    assert many.lost[1] > 1.4 * few.lost[1]
    assert few.lost[1] == pytest.approx(1.96 * 0.2 * (50 / 49) ** 0.5 / 50**0.5, rel=1e-3)


def test_without_gold_there_is_no_audit_but_a_picture() -> None:
    points = [point(0, 0.0, None), point(10, 1.0, None)]
    assert audit(points) is None
    assert "no gold reward was given" in section(points) and 'src="data:image/png;base64,iVBORw0KGgo' in section(points)
    assert len(figure(points).axes) == 2


def test_the_figure_shows_both_rewards_against_the_root_of_kl_and_the_deciles() -> None:
    points = [point(0, 0.0, 5.0), point(40, 1.0, None), point(90, 2.0, 3.0)]
    left, right, gold = figure(points).axes
    lines = [axis.containers[0].lines[0] for axis in (left, right, gold)]
    assert lines[0].get_xdata() == pytest.approx([0, 2, 3]) and lines[0].get_ydata() == pytest.approx([0, 1, 2])
    # An evaluation without gold has no point on gold's curve.
    assert lines[2].get_xdata() == pytest.approx([0, 3]) and lines[2].get_ydata() == pytest.approx([5, 3])
    # Ten groups of the last evaluation's samples, all of one KL.
    assert lines[1].get_xdata() == pytest.approx([9] * 10)
    assert lines[1].get_ydata() == pytest.approx([row["reward"] for row in by_decile(points[-1].kl, points[-1].proxy)])
    assert left.get_xlabel() == "√KL(π‖π_0), √nats"
    assert (left.get_ylabel(), gold.get_ylabel()) == ("reward learned from", "gold")
    # The error bars are half the interval, above and below.
    (_, half), (bar, *_) = mean_interval(points[2].proxy), left.containers[0].lines[2]
    assert bar.get_segments()[2][:, 1] == pytest.approx([2 - half, 2 + half])


def test_deciles_hold_everyone_once_in_order_of_kl() -> None:
    kl = [float((7 * place) % 25) for place in range(25)]
    rows = by_decile(kl, [2 * value for value in kl])
    assert len(rows) == 10 and sum(row["count"] for row in rows) == 25
    assert [row["kl"] for row in rows] == sorted(row["kl"] for row in rows)
    assert all(row["reward"] == pytest.approx(2 * row["kl"]) for row in rows)
    assert sum(row["count"] for row in by_decile(kl, [None, *kl[1:]])) == 24
    assert by_decile([], []) == []


def test_mean_interval_by_hand() -> None:
    mean, half = mean_interval([1.0, None, 3.0])
    assert mean == 2.0 and half == pytest.approx(1.96 * math.sqrt(2) / math.sqrt(2))
    assert math.isnan(mean_interval([])[0]) and mean_interval([4.0])[0] == 4.0
    assert math.isnan(mean_interval([4.0])[1])
