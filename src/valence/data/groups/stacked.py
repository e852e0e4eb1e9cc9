"""Ragged rows of numbers as tensors for `valence.feedback`: rows of one length together, without padding."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence

import torch

from valence.feedback.conversions import preferences_to_win_rates, rewards_to_preferences, win_rates_to_rewards
from valence.feedback.labelling import label_halves
from valence.feedback.pairs import rewards_to_pairs
from valence.types import Labels, Rewards

NUMBERS = 2**20
"""The most numbers in one [N, K, K] tensor, about."""


def stacked(rows: Sequence[Sequence[float]]) -> Iterator[tuple[list[int], Rewards]]:
    """For each length: the places of its rows in `rows`, and the rows as `Rewards [N, K]` in double precision."""
    by_length: defaultdict[int, list[int]] = defaultdict(list)
    for place, row in enumerate(rows):
        by_length[len(row)].append(place)
    for length, places in by_length.items():
        step = max(1, NUMBERS // max(1, length) ** 2)
        for chunk in (places[start : start + step] for start in range(0, len(places), step)):
            value = torch.tensor([rows[place] for place in chunk], dtype=torch.float64)
            yield chunk, Rewards(value, torch.ones_like(value, dtype=torch.bool))


def signs(
    rows: Sequence[Sequence[float]], rule: Callable[[Rewards], Labels] = label_halves
) -> list[tuple[int, ...] | None]:
    """The signs of each row by `rule`; None for a row that the rule drops."""
    converted: dict[int, tuple[int, ...] | None] = {}
    for places, rewards in stacked(rows):
        labels = rule(rewards)
        both = zip(labels.sign.tolist(), labels.present.all(-1).tolist(), strict=True)
        converted |= dict(zip(places, (tuple(row) if keep else None for row, keep in both), strict=True))
    return [converted[place] for place in range(len(rows))]


def spread(rows: Sequence[Sequence[float]]) -> list[tuple[float, ...]]:
    """Evenly spaced rewards in [-1, 1] in the order of each row; equal numbers get the mean of their rewards."""
    converted: dict[int, tuple[float, ...]] = {}
    for places, rewards in stacked(rows):
        even = win_rates_to_rewards(preferences_to_win_rates(rewards_to_preferences(rewards)))
        converted |= dict(zip(places, map(tuple, even.value.tolist()), strict=True))
    return [converted[place] for place in range(len(rows))]


def ordered(rows: Sequence[Sequence[float]]) -> list[list[tuple[int, int, float]]]:
    """The pairs of distinct numbers of each row as (index of the higher, index of the lower, their gap)."""
    converted: list[list[tuple[int, int, float]]] = [[] for _ in rows]
    for places, rewards in stacked(rows):
        size = rewards.value.shape[-1]
        pairs = rewards_to_pairs(rewards)
        for (better, worse), gap in zip(pairs.index.tolist(), pairs.gap.tolist(), strict=True):
            converted[places[better // size]].append((better % size, worse % size, gap))
    return converted
