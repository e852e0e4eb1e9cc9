"""Proxy against gold: when they parted, the best look, and reward by decile of KL."""

from __future__ import annotations

import math

import pytest

from valence.evaluation.overoptimization import Look, audit, by_decile, plot, section
from valence.evaluation.statistics import mean_interval


def look(step: int, proxy: float, gold: float | None, *, count: int = 50, noise: float = 0.1) -> Look:
    wobble = [noise * (-1) ** place for place in range(count)]
    said = None if gold is None else [gold + part for part in wobble]
    return Look(step, [step / 10] * count, [proxy + part for part in wobble], said)


def test_gold_that_falls_while_the_reward_rises_has_parted() -> None:
    found = audit([look(0, 0.0, 0.0), look(10, 1.0, 0.8), look(20, 2.0, 0.3)])
    assert found is not None and found.parted
    assert (found.best.step, found.last.step) == (10, 20)
    assert found.lost[0] == pytest.approx(0.5) and found.gained[0] == pytest.approx(1.0)
    assert "PARTED" in found.sentence() and "step 10" in found.sentence()


@pytest.mark.parametrize(
    ("looks", "why"),
    [
        ([look(0, 0.0, 0.0), look(10, 1.0, 0.8)], "gold is best at the end"),
        ([look(0, 0.0, 0.0), look(10, 1.0, 0.8), look(20, 0.5, 0.3)], "the reward fell too: a worse policy"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_no_parting(looks: list[Look], why: str) -> None:
    found = audit(looks)
    assert found is not None and not found.parted and "PARTED" not in found.sentence()


def test_a_fall_within_its_interval_is_no_parting() -> None:
    falls = [0.02 + (3 if place % 2 else -3) for place in range(50)]
    best, last = look(10, 1.0, 0.8, noise=0.0), look(20, 2.0, 0.8, noise=0.0)
    assert best.gold is not None and last.gold is not None
    noisy = Look(20, last.kl, last.proxy, [value - fall for value, fall in zip(last.gold, falls, strict=True)])  # pyright: ignore[reportOperatorIssue]
    found = audit([best, noisy])
    assert found is not None and found.lost[0] == pytest.approx(0.02) and found.lost[1] > 0.5 and not found.parted


def test_the_difference_is_taken_on_prompts_that_both_looks_know() -> None:
    best = Look(1, [0.0] * 4, [0.0] * 4, [5.0, 1.0, 1.5, None])
    last = Look(2, [0.0] * 4, [1.0] * 4, [None, 0.5, 0.0, 2.0])
    found = audit([best, last])
    assert found is not None and found.best is best and found.lost[0] == pytest.approx((0.5 + 1.5) / 2)


def test_many_looks_want_more_before_they_accuse() -> None:
    """A best look is picked among all others: what two looks call parted, twenty do not."""
    falls = [0.25 if place % 2 else -0.15 for place in range(50)]
    best = look(10, 1.0, 0.8, noise=0.0)
    last = Look(20, best.kl, [2.0] * 50, [0.8 - fall for fall in falls])
    few, many = audit([best, last]), audit([*(look(step, 0.0, 0.0) for step in range(9)), best, last])
    assert few is not None and many is not None and few.lost[0] == pytest.approx(0.05)
    assert many.lost[1] > 1.4 * few.lost[1]
    assert few.lost[1] == pytest.approx(1.96 * 0.2 * (50 / 49) ** 0.5 / 50**0.5, rel=1e-3)


def test_without_gold_there_is_no_audit_but_a_picture() -> None:
    looks = [look(0, 0.0, None), look(10, 1.0, None)]
    assert audit(looks) is None
    assert "--gold" in section(looks) and plot(looks)[:4] == b"\x89PNG"


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
