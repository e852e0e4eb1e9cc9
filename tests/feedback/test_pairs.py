"""Feedback into pairs: better first, gaps, ties, both directions, and positions in the flattened actions."""

from __future__ import annotations

import math

import torch

from valence.feedback.pairs import preferences_to_pairs, rewards_to_pairs
from valence.types import Pairs, Preferences, Rewards

NAN = math.nan


def rows(pairs: Pairs) -> list[tuple[int, int, float]]:
    return sorted(
        (first, second, round(gap, 6))
        for (first, second), gap in zip(pairs.index.tolist(), pairs.gap.tolist(), strict=True)
    )


def rewards(*values: tuple[float, ...]) -> Rewards:
    value = torch.tensor(values)
    return Rewards(value, ~value.isnan())


def preferences(win: list, margin: list | None = None) -> Preferences:
    chance = torch.tensor([win])
    return Preferences(
        chance,
        ~chance.isnan(),
        torch.ones(chance.shape[:2], dtype=torch.bool),
        None if margin is None else torch.tensor([margin]),
    )


def test_rewards_to_pairs():
    """Context 0: 2 > 0.5 twice and a tie. Context 1, whose actions are 3, 4, 5: 5 > 4, and 3 is absent."""
    given_rewards = rewards((2.0, 0.5, 0.5), (NAN, 1.0, 4.0))
    ordered = [(0, 1, 1.5), (0, 2, 1.5), (5, 4, 3.0)]
    assert rows(rewards_to_pairs(given_rewards)) == ordered
    assert rows(rewards_to_pairs(given_rewards, keep_ties=True)) == [*ordered[:2], (1, 2, 0.0), ordered[2]]


def test_preferences_to_pairs_from_either_direction():
    """Recorded: P(0 beats 1) = 1/4 only; P(2 beats 0) = 1 only; 1 against 2 never."""
    pairs = preferences_to_pairs(preferences([[NAN, 0.25, NAN], [NAN, NAN, NAN], [1.0, NAN, NAN]]))
    assert rows(pairs) == [(1, 0, 0.5), (2, 0, 1.0)]


def test_conflicting_directions_are_averaged():
    """0.9 and 1 - 0.3: 0.8, gap 0.6."""
    assert rows(preferences_to_pairs(preferences([[NAN, 0.9], [0.3, NAN]]))) == [(0, 1, 0.6)]


def test_margins_replace_gaps_where_given():
    """P(1 beats 0) with a margin of -2 for (0, 1); no margin for (0, 2)."""
    judged = preferences([[NAN, 0.0, 1.0], [NAN, NAN, NAN], [NAN, NAN, NAN]], [[NAN, -2.0, NAN], [NAN] * 3, [NAN] * 3])
    assert rows(preferences_to_pairs(judged)) == [(0, 2, 1.0), (1, 0, 2.0)]


def test_ties_are_dropped_unless_kept():
    judged = preferences([[NAN, 0.5], [NAN, NAN]])
    assert rows(preferences_to_pairs(judged)) == []
    assert rows(preferences_to_pairs(judged, keep_ties=True)) == [(0, 1, 0.0)]


def test_absent_actions_are_in_no_pair():
    judged = preferences([[NAN, 1.0], [NAN, NAN]])
    judged = Preferences(judged.win, judged.observed, torch.tensor([[True, False]]))
    assert rows(preferences_to_pairs(judged, keep_ties=True)) == []


def test_pairs_of_a_slice_of_contexts_are_renumbered():
    pairs = rewards_to_pairs(rewards((2.0, 1.0), (1.0, 2.0), (5.0, 3.0)))
    assert rows(pairs.select(slice(1, 3), num_actions=2, num_contexts=3)) == [(1, 0, 1.0), (2, 3, 2.0)]
