"""Rewards to accept / reject labels. All rules are lossy: how much better one action is than another is forgotten.

In every rule with one bar, a reward equal to the bar is accepted (`>=`; `label_top_k` has two bars). The labels do not
depend on the order of a context's actions, except in `label_ranked`. Where a rule compares actions with each other, a
group whose rewards are all equal is dropped: `present` is False.

Shape legend: see `valence.types`.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from valence.feedback.conversions import has_spread, preferences_to_win_rates, rewards_to_preferences
from valence.types import Labels, Rewards


def label_top_k(rewards: Rewards, *, top: int, bottom: int) -> Labels:
    """Accept each context's `top` best actions, reject its `bottom` worst, leave the rest unlabelled. Lossy.

    Actions that tie with the last one accepted are accepted too (and likewise rejected), so that order does not
    matter; an action that ties with both bars is unlabelled. Contexts with fewer than `top + bottom` actions, or
    without spread, are dropped. ValueError if a number is negative or both are 0.
    """
    if top < 0 or bottom < 0 or top + bottom == 0:
        raise ValueError(f"top and bottom must be >= 0 and not both 0, got top={top}, bottom={bottom}")
    value, present = rewards.value, rewards.present
    keep = present & (has_spread(rewards) & (present.sum(-1, keepdim=True) >= top + bottom))
    accepted = keep & (value >= _kth_largest(value, present, top))
    rejected = keep & (-value >= _kth_largest(-value, present, bottom))
    return Labels(accepted.long() - rejected.long(), keep)


def label_ranked(rewards: Rewards, *, top: int, bottom: int) -> Labels:
    """Accept exactly `top` and reject exactly `bottom` actions of each context; ties go by their order. Lossy.

    For actions drawn at random, all present, where the share of each class must be known beforehand. Identical actions
    (bins have many) may be accepted once and rejected once, and then cancel. ValueError if a number is negative, or if
    both together are more than there are actions.
    """
    number = rewards.value.shape[-1]
    if top < 0 or bottom < 0 or top + bottom > number:
        raise ValueError(f"top and bottom must be >= 0 and at most {number} together, got top={top}, bottom={bottom}")
    rank = rewards.value.sort(dim=-1, descending=True, stable=True).indices.argsort(dim=-1)
    sign = (rank < top).long() - (rank >= number - bottom).long()
    return Labels(torch.where(rewards.present, sign, 0), rewards.present)


def label_best_worst(rewards: Rewards) -> Labels:
    """Accept each context's best action and reject its worst: `label_top_k` with one of each. Lossy."""
    return label_top_k(rewards, top=1, bottom=1)


def label_halves(rewards: Rewards) -> Labels:
    """Accept each context's better half and reject the worse one (for rankings too). Lossy.

    An action is accepted if it beats at least half of its context's others, where a tie counts half, and else rejected:
    (3, 2, 1) gives +1, +1, -1, as by the mean, and (1, 2, 2, 3) gives -1, +1, +1, +1. Only the order matters, tied
    actions have the same label, and a context with spread has both labels. A group without spread is dropped.
    """
    rates = preferences_to_win_rates(rewards_to_preferences(rewards))
    return _split(rates.value, 0.5, rates.present & has_spread(rates))


def label_threshold(rewards: Rewards, threshold: float) -> Labels:
    """Accept rewards of at least `threshold` (the reward's unit), reject the others. Lossy; drops nothing."""
    return _split(rewards.value, threshold, rewards.present)


def label_group_mean(rewards: Rewards) -> Labels:
    """Accept rewards of at least their context's mean. Lossy; a group without spread is dropped.

    A reward that is below the mean by rounding alone is accepted, as 0.2 is among (0.1, 0.2, 0.3).
    """
    value = torch.where(rewards.present, rewards.value, 0)
    mean = value.sum(-1, keepdim=True) / rewards.present.sum(-1, keepdim=True).clamp(min=1)
    return _split(rewards.value, mean - _rounding(value), rewards.present & has_spread(rewards))


def label_batch_mean(rewards: Rewards) -> Labels:
    """Accept rewards of at least the batch's mean, rounding aside. Lossy; a batch without spread is dropped."""
    known = rewards.value[rewards.present]
    if known.numel() == 0 or known.min() == known.max():
        return Labels(torch.zeros_like(rewards.present, dtype=torch.long), torch.zeros_like(rewards.present))
    return _split(rewards.value, known.mean() - _rounding(known), rewards.present)


def _split(value: Tensor, bar: Tensor | float, present: Bool[Tensor, "N K"]) -> Labels:
    sign = torch.where(value >= bar, 1, -1)
    return Labels(torch.where(present, sign, 0), present)


def _rounding(value: Float[Tensor, "... K"]) -> Float[Tensor, "... 1"]:
    """How far the computed mean of these values can be from their true mean by rounding alone."""
    return 4 * torch.finfo(value.dtype).eps * value.abs().amax(-1, keepdim=True)


def _kth_largest(value: Float[Tensor, "N K"], present: Bool[Tensor, "N K"], k: int) -> Float[Tensor, "N 1"]:
    """The k-th largest present value of each context; +inf (no value is as large) for k = 0 or k > K."""
    if k == 0 or k > value.shape[-1]:
        return torch.full_like(value[:, :1], torch.inf)
    return torch.where(present, value, -torch.inf).topk(k, dim=-1).values[:, -1:]
