"""Feedback on a draw as weights over its points: the accepted and the rejected class of PMPO's expectations.

Labels give equal weights within a class. Values and ranks accept the better half and reject the worse half; ties share.
The accepted are weighted by rank (PMPO paper, Eq. 5, with p(S|y) taken from ranks, so that only the order of values
matters). The rejected have equal weights: at the smallest bounded beta the KL exactly outweighs them, and unequal ones
would leave some points with a negative weight. Pairs weigh a point by its wins less its losses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from valence.feedback.conversions import preferences_to_win_rates
from valence.types import Preferences

Column = Float[np.ndarray, " n"]


@dataclass(frozen=True, eq=False)
class Judgement:
    """Weights of n points, >= 0, unnormalised; all zero where a class is empty.

    Args:
        accepted: weight in the accepted class.
        strength: weight in the accepted class, by rank.
        rejected: weight in the rejected class.
    """

    accepted: Column
    strength: Column
    rejected: Column

    def __len__(self) -> int:
        return len(self.accepted)


def merge(judgements: Sequence[Judgement]) -> Judgement:
    """The judgements of several calls of `tell`, one after the other."""
    columns = ((item.accepted, item.strength, item.rejected) for item in judgements)
    return Judgement(*(np.concatenate(parts) for parts in zip(*columns, strict=True)))


def judge_values(values: Any, count: int, *, name: str = "values") -> Judgement:
    """Values: lower is better. Where all are equal, no point is accepted or rejected.

    Raises:
        ValueError: not one number for each point, or NaN; the message calls the numbers `name`.
    """
    try:
        column = np.array(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"`{name}` must be numbers, one number for each of the {count} points") from error
    if column.shape != (count,):
        raise ValueError(f"`{name}` must be one number for each of the {count} points, got shape {column.shape}")
    if np.isnan(column).any():
        raise ValueError(f"`{name}` holds a NaN: give +inf for the worst")
    if count < 2 or column.min() == column.max():
        return Judgement(np.zeros(count), np.zeros(count), np.zeros(count))
    place = np.arange(1, count + 1)
    middle = (count + 1) / 2
    by_place = np.stack([place < middle, np.maximum(np.log(middle / place), 0), place > middle]).astype(np.float64)
    _, group = np.unique(column, return_inverse=True)
    order = np.argsort(column, kind="stable")
    sums = np.stack([np.bincount(group[order], weights=row) for row in by_place])
    return Judgement(*(sums / np.bincount(group))[:, group])


judge_ranks = partial(judge_values, name="ranks")
"""Ranks: 1 is best; equal ranks are ties. They are judged as values are."""


def judge_labels(labels: Sequence[Any], count: int) -> Judgement:
    """Labels: +1 or True accepts, -1 or False rejects, 0 or None is no opinion.

    Raises:
        ValueError: another label, or not one label for each point.
    """
    items = list(labels)
    if len(items) != count:
        raise ValueError(f"`labels` must be one label for each of the {count} points, got {len(items)}")
    signs = np.array([_sign(label) for label in items])
    accepted = (signs > 0).astype(np.float64)
    return Judgement(accepted, accepted, (signs < 0).astype(np.float64))


def _sign(label: Any) -> int:
    if isinstance(label, bool | np.bool_):
        return 1 if label else -1
    if label is None or (isinstance(label, int | float | np.number) and label in (-1, 0, 1)):
        return int(label or 0)
    raise ValueError(f"`labels` holds {label!r}: a label is +1, -1, 0, True, False or None")


def judge_pairs(pairs: Sequence[Any], count: int) -> Judgement:
    """Pairs (better, worse) of indices: a point that won more than it lost is accepted by its margin, else rejected.

    Points in no pair are unlabelled.

    Raises:
        ValueError: not pairs of two different indices in 0 … n - 1.
    """
    try:
        index = np.array(pairs)
        valid = index.ndim == 2 and index.shape[1] == 2 and index.dtype.kind in "iu"
    except (TypeError, ValueError):
        index, valid = np.zeros((1, 2), dtype=np.int64), False
    if not valid or index.min() < 0 or index.max() >= count or (index[:, 0] == index[:, 1]).any():
        raise ValueError(f"`pairs` must be (better, worse) indices of two different points, from 0 to {count - 1}")
    wins = np.zeros((1, count, count))
    np.add.at(wins[0], (index[:, 0], index[:, 1]), 1)
    met = wins + wins.swapaxes(1, 2)
    win, observed = torch.from_numpy(wins / np.maximum(met, 1)), torch.from_numpy(met > 0)
    rates = preferences_to_win_rates(Preferences(win, observed, torch.ones(1, count, dtype=torch.bool)))
    margin = torch.where(rates.present, 2 * rates.value - 1, 0.0)[0].numpy()
    won = np.maximum(margin, 0)
    return Judgement(won, won, np.maximum(-margin, 0))
