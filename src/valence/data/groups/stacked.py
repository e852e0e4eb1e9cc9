"""Ragged rows of numbers as the tensors that `valence.feedback` takes: rows of one length together, without padding."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence

import torch

from valence.feedback import (
    label_halves,
    preferences_to_win_rates,
    rewards_to_pairs,
    rewards_to_preferences,
    win_rates_to_rewards,
)
from valence.types import Labels, Rewards

NUMBERS = 2**20
"""At most about this many numbers in one [N, K, K] tensor."""


def stacked(rows: Sequence[Sequence[float]]) -> list[tuple[list[int], Rewards]]:
    """Rows of one length as `Rewards [N, K]` in double precision, all present, with their places in `rows`."""
    by_length: defaultdict[int, list[int]] = defaultdict(list)
    for place, row in enumerate(rows):
        by_length[len(row)].append(place)
    found = []
    for length, places in by_length.items():
        step = max(1, NUMBERS // max(1, length) ** 2)
        for chunk in (places[start : start + step] for start in range(0, len(places), step)):
            value = torch.tensor([rows[place] for place in chunk], dtype=torch.float64)
            found.append((chunk, Rewards(value, torch.ones_like(value, dtype=torch.bool))))
    return found


def signs(
    rows: Sequence[Sequence[float]], rule: Callable[[Rewards], Labels] = label_halves
) -> list[tuple[int, ...] | None]:
    """The sign of each number by a rule on its row; None for a row that the rule drops."""
    found: list[tuple[int, ...] | None] = [None] * len(rows)
    for places, rewards in stacked(rows):
        labels = rule(rewards)
        kept = labels.present.all(-1).tolist()
        for place, row, keep in zip(places, labels.sign.tolist(), kept, strict=True):
            found[place] = tuple(row) if keep else None
    return found


def spread(rows: Sequence[Sequence[float]]) -> list[tuple[float, ...]]:
    """Evenly spaced rewards in [-1, 1] in each row's order; equal numbers share the mean of their places."""
    found: list[tuple[float, ...]] = [()] * len(rows)
    for places, rewards in stacked(rows):
        even = win_rates_to_rewards(preferences_to_win_rates(rewards_to_preferences(rewards)))
        for place, row in zip(places, even.value.tolist(), strict=True):
            found[place] = tuple(row)
    return found


def ordered(rows: Sequence[Sequence[float]]) -> list[list[tuple[int, int, float]]]:
    """Each row's pairs of distinct numbers as (index of the higher, index of the lower, their gap)."""
    found: list[list[tuple[int, int, float]]] = [[] for _ in rows]
    for places, rewards in stacked(rows):
        size = rewards.value.shape[-1]
        pairs = rewards_to_pairs(rewards)
        for (better, worse), gap in zip(pairs.index.tolist(), pairs.gap.tolist(), strict=True):
            found[places[better // size]].append((better % size, worse % size, gap))
    return found
