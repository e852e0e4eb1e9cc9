"""Feedback of one kind into another, by hand. NaN stands wherever nothing is."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from valence.feedback.conversions import (
    keep_best_worst,
    labels_to_preferences,
    labels_to_rewards,
    preferences_to_self_play,
    preferences_to_win_rates,
    reward_statistics,
    rewards_to_preferences,
    signs,
    standardize,
    win_rates_to_rewards,
)
from valence.types import Labels, Preferences, Rewards

NAN = math.nan


def rewards(*rows: tuple[float, ...]) -> Rewards:
    value = torch.tensor(rows)
    return Rewards(value, ~value.isnan())


def preferences(*comparisons: tuple[int, int, float], size: int = 3) -> Preferences:
    """One context; (i, j, P(i beats j)) recorded in that direction only, NaN elsewhere."""
    win = torch.full((1, size, size), NAN)
    for first, second, chance in comparisons:
        win[0, first, second] = chance
    return Preferences(win, ~win.isnan(), torch.ones(1, size, dtype=torch.bool))


def test_labels_to_rewards():
    labels = Labels(torch.tensor([[1, -1, 0, 1]]), torch.tensor([[True, True, True, False]]))
    converted = labels_to_rewards(labels)
    assert converted.value.tolist() == [[1.0, -1.0, 0.0, 0.0]]
    assert converted.present.tolist() == [[True, True, False, False]]


def test_rewards_to_preferences_keeps_order_ties_and_margins():
    converted = rewards_to_preferences(rewards((2.0, 0.5, 0.5, NAN)))
    assert converted.win[0, :3, :3].tolist() == [[0.5, 1, 1], [0, 0.5, 0.5], [0, 0.5, 0.5]]
    assert converted.margin is not None and converted.margin[0, 0, 1] == 1.5 and converted.margin[0, 1, 0] == -1.5
    expected = torch.zeros(4, 4, dtype=torch.bool)
    expected[:3, :3] = ~torch.eye(3, dtype=torch.bool)
    assert torch.equal(converted.observed[0], expected)


def test_labels_to_preferences_within_contexts():
    """Context 0: accepted 0 beats rejected 1; unlabelled 2 is left out. Context 1 has one sign: nothing."""
    labels = Labels(torch.tensor([[1, -1, 0], [1, 1, 1]]), torch.tensor([[True] * 3, [True, True, False]]))
    converted = labels_to_preferences(labels)
    assert converted.win[0, 0, 1] == 1 and converted.win[0, 1, 0] == 0
    assert converted.observed.nonzero().tolist() == [[0, 0, 1], [0, 1, 0]]
    assert converted.present.tolist() == [[True, True, False], [False, False, False]]


def test_labels_across_contexts_are_refused_with_the_reason():
    labels = Labels(torch.tensor([[1, -1], [-1, 1]]), torch.tensor([[True, False], [True, False]]))
    with pytest.raises(ValueError, match="no prompt has both"):
        labels_to_preferences(labels)


def test_win_rates():
    """0 beats 1 surely and 2 at 1/2: 3/4. 1: 0 against 0. 2: 1/2. 3 was never compared, 4 is absent."""
    judged = preferences((0, 1, 1.0), (0, 2, 0.5), (4, 0, 1.0), size=5)
    judged = Preferences(judged.win, judged.observed, torch.tensor([[True, True, True, True, False]]))
    rates = preferences_to_win_rates(judged)
    assert rates.value[0, :3].tolist() == [0.75, 0.0, 0.5]
    assert rates.present.tolist() == [[True, True, True, False, False]]


def test_win_rates_average_two_directions():
    """P(0 beats 1) = 0.9, and P(1 beats 0) = 0.3, i.e. 0.7 for 0: 0.8."""
    rates = preferences_to_win_rates(preferences((0, 1, 0.9), (1, 0, 0.3), size=2))
    assert rates.value[0].tolist() == pytest.approx([0.8, 0.2])


def test_win_rates_to_rewards():
    """A bare pair becomes +1 and -1; ranks 1, 2, 2 spread over [-1, 1]: win rates 1, 1/4, 1/4."""
    ranked = rewards((1.0, 0.0, NAN), (-1.0, -2.0, -2.0))
    spread = win_rates_to_rewards(preferences_to_win_rates(rewards_to_preferences(ranked)))
    assert spread.value.tolist() == [[1.0, -1.0, 0.0], [1.0, -0.5, -0.5]]
    assert torch.equal(spread.present, ranked.present)


def test_standardize_by_hand():
    """1, 3, NaN, 5: mean 3, variance 8/3."""
    given_rewards = rewards((1.0, 3.0), (NAN, 5.0))
    mean, std = reward_statistics(given_rewards)
    assert (mean, std) == (3.0, pytest.approx(math.sqrt(8 / 3)))
    scaled = standardize(given_rewards, mean, std)
    assert scaled.value.flatten().tolist() == pytest.approx([-2 / std, 0.0, 0.0, 2 / std])
    assert torch.equal(scaled.present, given_rewards.present)
    fixed = standardize(given_rewards, 1.0, 2.0)
    assert fixed.value.tolist() == [[0.0, 1.0], [0.0, 2.0]]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(-1000, 1000), min_size=2, max_size=20), st.sampled_from([1e-3, 1.0, 1e3]))
def test_standardized_rewards_have_mean_0_and_variance_1_or_no_spread(values, unit):
    given_rewards = rewards(tuple(value * unit for value in values))
    scaled = standardize(given_rewards, *reward_statistics(given_rewards))
    assert scaled.value.mean().item() == pytest.approx(0, abs=1e-3)
    expected = 1.0 if len(set(values)) > 1 else 0.0
    assert scaled.value.std(correction=0).item() == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("value", [0.1, -7.3, 1e6])
def test_rewards_without_spread_become_zero(value):
    """The float mean of three 0.1 is not 0.1: the difference must not be blown up to a spread."""
    same = rewards((value, value, value))
    assert standardize(same, *reward_statistics(same)).value.tolist() == [[0.0, 0.0, 0.0]]


def test_statistics_need_a_reward():
    with pytest.raises(ValueError, match="no reward is present"):
        reward_statistics(rewards((NAN, NAN)))


def test_self_play_by_hand() -> None:
    """A beats B surely and C three times of four, B and C are even: (1 + 1/2) / 3, -1/3, -1/6; D was never compared."""
    win = torch.zeros(1, 4, 4)
    win[0, 0, 1], win[0, 0, 2], win[0, 1, 2] = 1.0, 0.75, 0.5
    observed = torch.zeros(1, 4, 4, dtype=torch.bool)
    observed[0, 0, 1] = observed[0, 0, 2] = observed[0, 1, 2] = True
    found = preferences_to_self_play(Preferences(win, observed, torch.ones(1, 4, dtype=torch.bool)))
    torch.testing.assert_close(found.value[0, :3], torch.tensor([0.5, -1 / 3, -1 / 6]))
    assert found.present.tolist() == [[True, True, True, False]]


def test_best_and_worst_alone() -> None:
    """Ties go to the first; what is absent or says nothing is dropped."""
    value = torch.tensor([[1.0, 3.0, 3.0, 1.0], [2.0, 2.0, 2.0, 9.0], [5.0, torch.nan, 4.0, 6.0]])
    present = torch.tensor([[True] * 4, [True, True, True, False], [True, False, True, True]])
    found = keep_best_worst(Rewards(value, present))
    assert found.present.int().tolist() == [[1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 1, 1]]


def test_signs_by_hand() -> None:
    present = torch.tensor([[True, True, True], [True, True, False]])
    labels = Labels(torch.tensor([[1, -1, 0], [-1, 1, 1]]), present)
    assert signs(labels).tolist() == [[1, -1, 0], [-1, 1, 0]]
    # The mean of the present rewards is 1; NaN stands where nothing is.
    rewards = Rewards(torch.tensor([[2.0, 1.0, 0.0], [3.0, -1.0, float("nan")]]), present)
    assert signs(rewards).tolist() == [[1, 0, -1], [1, -1, 0]]
    win = torch.full((2, 3, 3), 0.5)
    observed = torch.zeros(2, 3, 3, dtype=torch.bool)
    for n, i, j, chance in ((0, 0, 1, 0.9), (0, 1, 2, 0.6), (1, 0, 1, 0.5)):
        win[n, i, j], win[n, j, i] = chance, 1 - chance
        observed[n, i, j] = observed[n, j, i] = True
    # Context 0: edges +0.8, -0.8 + 0.2, -0.2; context 1 is a tie.
    assert signs(Preferences(win, observed, present)).tolist() == [[1, -1, -1], [0, 0, 0]]
