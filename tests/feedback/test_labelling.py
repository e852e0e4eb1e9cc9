"""Rewards to labels: the bar of each rule, ties, groups without spread, and independence of order."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from valence.feedback.labelling import (
    label_batch_mean,
    label_best_worst,
    label_group_mean,
    label_halves,
    label_ranked,
    label_threshold,
    label_top_k,
)
from valence.types import Labels, Rewards

NAN = math.nan


def rewards(*rows: tuple[float, ...]) -> Rewards:
    value = torch.tensor(rows, dtype=torch.float32)
    return Rewards(value, ~value.isnan())


def dropped(before: Rewards, after: Labels) -> int:
    """How many actions were present before a rule and are not after it."""
    return int((before.present & ~after.present).sum())


def test_top_k_by_hand():
    """2 of 5 accepted, 1 rejected; the second context has too few, the third no spread."""
    given_rewards = rewards((3, 1, 5, 4, 2), (1, 2, NAN, NAN, NAN), (7, 7, 7, 7, 7))
    labels = label_top_k(given_rewards, top=2, bottom=1)
    assert labels.sign.tolist() == [[0, -1, 1, 1, 0], [0] * 5, [0] * 5]
    assert labels.present.tolist() == [[True] * 5, [False] * 5, [False] * 5]
    assert dropped(given_rewards, labels) == 7


def test_top_k_ties():
    """Bars 2 and 0: both 2s are accepted though top = 1. Second context: the 1s tie with both bars, hence 0."""
    labels = label_top_k(rewards((2, 2, 0, 1), (1, 1, 1, 2)), top=1, bottom=1)
    assert labels.sign.tolist() == [[1, 1, -1, 0], [-1, -1, -1, 1]]
    labels = label_top_k(rewards((1, 1, 1, 2)), top=2, bottom=1)
    assert labels.sign.tolist() == [[0, 0, 0, 1]]


def test_top_k_one_sided():
    labels = label_top_k(rewards((3, 1, 2)), top=0, bottom=2)
    assert labels.sign.tolist() == [[0, -1, -1]]


def test_top_k_more_than_there_are_drops_all():
    labels = label_top_k(rewards((3, 1)), top=3, bottom=0)
    assert not labels.present.any()


@pytest.mark.parametrize(("top", "bottom"), [(-1, 1), (1, -1), (0, 0)])
def test_top_k_numbers_are_validated(top, bottom):
    with pytest.raises(ValueError, match="top and bottom must be >= 0"):
        label_top_k(rewards((1, 2)), top=top, bottom=bottom)


def test_best_worst():
    labels = label_best_worst(rewards((3, 1, 2), (NAN, 0, 4)))
    assert labels.sign.tolist() == [[1, -1, 0], [0, -1, 1]]


def test_halves():
    """Even, odd (the middle beats just half: accepted), ties in the middle, ties below it, and no spread."""
    given_rewards = rewards((4, 1, 3, 2), (3, 1, 2, NAN), (1, 2, 2, 3), (3, 1, 1, 1), (5, 5, NAN, NAN))
    labels = label_halves(given_rewards)
    assert labels.sign.tolist()[:4] == [[1, -1, 1, -1], [1, -1, 1, 0], [-1, 1, 1, 1], [1, -1, -1, -1]]
    assert not labels.present[4].any() and dropped(given_rewards, labels) == 2


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(-3, 3), min_size=2, max_size=7))
def test_halves_have_both_signs_and_heed_the_order_alone(values):
    """Where there is spread: equal rewards get one sign, the best +1, the worst -1; no unlabelled ones, any scale."""
    labels = label_halves(rewards(tuple(map(float, values))))
    signs = labels.sign[0].tolist()
    if len(set(values)) < 2:
        assert not labels.present.any()
        return
    assert signs[values.index(max(values))] == 1 and signs[values.index(min(values))] == -1 and 0 not in signs
    assert len(set(zip(values, signs, strict=True))) == len(set(values))
    assert label_halves(rewards(tuple(math.exp(3 * value) for value in values))).sign[0].tolist() == signs


def test_threshold_accepts_equality_and_drops_nothing():
    given_rewards = rewards((0.5, 0.4, NAN), (0.5, 0.5, 0.5))
    labels = label_threshold(given_rewards, 0.5)
    assert labels.sign.tolist() == [[1, -1, 0], [1, 1, 1]]
    assert dropped(given_rewards, labels) == 0


def test_group_mean():
    """Mean 2: 2 is accepted. A single action and equal actions have no spread."""
    given_rewards = rewards((1, 2, 3), (9, NAN, NAN), (0.1, 0.1, 0.1))
    labels = label_group_mean(given_rewards)
    assert labels.sign.tolist() == [[-1, 1, 1], [0, 0, 0], [0, 0, 0]]
    assert dropped(given_rewards, labels) == 4


def test_a_reward_that_misses_the_mean_by_rounding_reaches_it():
    """(0.1 + 0.2 + 0.3) / 3 is 0.20000000000000004 in double precision."""
    for dtype in (torch.float32, torch.float64):
        value = torch.tensor([[0.1, 0.2, 0.3]], dtype=dtype)
        for rule in (label_group_mean, label_batch_mean):
            assert rule(Rewards(value, torch.ones(1, 3, dtype=torch.bool))).sign.tolist() == [[-1, 1, 1]]


def test_batch_mean():
    """Mean of 1, 2, 6 is 3."""
    labels = label_batch_mean(rewards((1, 2), (6, NAN)))
    assert labels.sign.tolist() == [[-1, -1], [1, 0]]
    assert dropped(rewards((0.1, 0.1)), label_batch_mean(rewards((0.1, 0.1)))) == 2
    assert not label_batch_mean(rewards((NAN, NAN))).present.any()


def test_an_advantage_of_zero_is_accepted():
    assert label_threshold(rewards((0.0, -1e-9, 2.0)), 0.0).sign.tolist() == [[1, -1, 1]]


RULES = [
    lambda given_rewards: label_top_k(given_rewards, top=2, bottom=1),
    label_best_worst,
    label_halves,
    lambda given_rewards: label_threshold(given_rewards, 1.0),
    label_group_mean,
    label_batch_mean,
    lambda given_rewards: label_threshold(given_rewards, 0.0),
]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(-3, 3), min_size=2, max_size=6), st.randoms(use_true_random=False))
def test_order_does_not_matter(values, random):
    order = list(range(len(values)))
    random.shuffle(order)
    for rule in RULES:
        labels = rule(rewards(tuple(map(float, values))))
        shuffled = rule(rewards(tuple(float(values[i]) for i in order)))
        assert shuffled.sign[0].tolist() == labels.sign[0, order].tolist()
        assert shuffled.present[0].tolist() == labels.present[0, order].tolist()


def test_label_ranked_has_classes_of_fixed_sizes_whatever_ties() -> None:
    value = torch.tensor([[1.0, 1.0, 1.0, 1.0], [3.0, 1.0, 2.0, 1.0], [0.0, 5.0, 5.0, 5.0]])
    labels = label_ranked(Rewards(value, torch.ones(3, 4, dtype=torch.bool)), top=2, bottom=2)
    assert labels.sign.tolist() == [[1, 1, -1, -1], [1, -1, 1, -1], [-1, 1, 1, -1]]
    one = label_ranked(Rewards(value[1:2], torch.ones(1, 4, dtype=torch.bool)), top=1, bottom=1)
    assert one.sign.tolist() == [[1, 0, 0, -1]]
    with pytest.raises(ValueError, match="at most 4"):
        label_ranked(Rewards(value, torch.ones(3, 4, dtype=torch.bool)), top=3, bottom=2)
