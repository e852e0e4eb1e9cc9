"""What was said of a draw, as the two class distributions that PMPO's expectations are over.

Everything said comes down to three columns of weights over the n points of a draw: who is accepted, how strongly
among the accepted, and who is rejected. Labels give plain class means. Values and ranks accept the better half and
reject the worse one, ties sharing; the accepted are weighted by rank (PMPO paper, Eq. 5, p(S|y) read off ranks, so that
only the order of values matters). The rejected are not: at the smallest bounded beta the KL exactly outweighs an even
rejection, and a steeper one would push below zero what it meets. Pairs weigh by how much more was won than lost.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from valence.feedback import preferences_to_win_rates
from valence.types import Preferences

Column = Float[np.ndarray, " n"]


@dataclass(frozen=True, eq=False)
class Judgement:
    """Weights of n points, >= 0, in no particular scale; all zero where a class is empty.

    Args:
        accepted: members of the accepted class.
        strength: the same with weights by rank.
        rejected: members of the rejected class.
    """

    accepted: Column
    strength: Column
    rejected: Column

    def __len__(self) -> int:
        return len(self.accepted)


def merge(judgements: Sequence[Judgement]) -> Judgement:
    """Several tells against one reference, one after the other."""
    columns = ((item.accepted, item.strength, item.rejected) for item in judgements)
    return Judgement(*(np.concatenate(parts) for parts in zip(*columns, strict=True)))


def _numbers(values: Any, count: int, name: str) -> Column:
    try:
        column = np.array(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} must be numbers, one for each of the {count} points") from error
    if column.shape != (count,):
        raise ValueError(f"{name} must be one number for each of the {count} points, got shape {column.shape}")
    if np.isnan(column).any():
        raise ValueError(f"{name} must not be NaN; +inf is the worst there is")
    return column


def judge_values(values: Any, count: int) -> Judgement:
    """Values, lower is better. All equal: nothing is said.

    Raises:
        ValueError: not one number for each point, or NaN.
    """
    return _judge_order(_numbers(values, count, "values"))


def judge_ranks(ranks: Any, count: int) -> Judgement:
    """Ranks, 1 is best; equal ranks are ties. Any increasing numbers will do.

    Raises:
        ValueError: not one number for each point, or NaN.
    """
    return _judge_order(_numbers(ranks, count, "ranks"))


def _judge_order(column: Column) -> Judgement:
    count = len(column)
    nothing = np.zeros(count)
    if count < 2 or column.min() == column.max():
        return Judgement(nothing, nothing, nothing)
    place = np.arange(1, count + 1)
    middle = (count + 1) / 2
    by_place = np.stack([place < middle, np.maximum(np.log(middle / place), 0), place > middle]).astype(np.float64)
    _, group = np.unique(column, return_inverse=True)
    order = np.argsort(column, kind="stable")
    sums = np.stack([np.bincount(group[order], weights=row) for row in by_place])
    return Judgement(*(sums / np.bincount(group))[:, group])


def judge_labels(labels: Sequence[Any], count: int) -> Judgement:
    """Labels: +1 or True accepts, -1 or False rejects, 0 or None says nothing.

    Raises:
        ValueError: anything else, or not one for each point.
    """
    items = list(labels)
    if len(items) != count:
        raise ValueError(f"labels must be one for each of the {count} points, got {len(items)}")
    signs = np.zeros(count)
    for place, label in enumerate(items):
        if label is None:
            continue
        is_truth = isinstance(label, bool | np.bool_)
        if not is_truth and not (isinstance(label, int | float | np.number) and label in (-1, 0, 1)):
            raise ValueError(f"a label is +1, -1, 0, True, False or None, got {label!r}")
        signs[place] = (1 if label else -1) if is_truth else float(label)
    accepted = (signs > 0).astype(np.float64)
    return Judgement(accepted, accepted, (signs < 0).astype(np.float64))


def judge_pairs(pairs: Sequence[Any], count: int) -> Judgement:
    """Pairs (better, worse) of positions: a point is accepted by how much more it won than lost, or rejected.

    Points in no pair are unlabelled.

    Raises:
        ValueError: not pairs of two different positions in 0 … n - 1.
    """
    try:
        index = np.array(pairs)
        clean = index.ndim == 2 and index.shape[1] == 2 and index.dtype.kind in "iu"
    except (TypeError, ValueError):
        index, clean = np.zeros((1, 2), dtype=np.int64), False
    if not clean or index.min() < 0 or index.max() >= count or (index[:, 0] == index[:, 1]).any():
        raise ValueError(f"pairs must be (better, worse) positions of different points in 0 … {count - 1}")
    wins = np.zeros((count, count))
    np.add.at(wins, (index[:, 0], index[:, 1]), 1)
    met = wins + wins.T
    rates = preferences_to_win_rates(
        Preferences(
            win=torch.from_numpy(np.divide(wins, met, out=np.zeros_like(wins), where=met > 0))[None],
            observed=torch.from_numpy(met > 0)[None],
            present=torch.ones(1, count, dtype=torch.bool),
        )
    )
    edge = torch.where(rates.present, 2 * rates.value - 1, 0.0)[0].numpy()
    return Judgement(np.maximum(edge, 0), np.maximum(edge, 0), np.maximum(-edge, 0))
