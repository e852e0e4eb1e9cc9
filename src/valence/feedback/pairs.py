"""Feedback to `Pairs`: one row per compared pair of a context's actions, better first.

Shape legend: see `valence.types`.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from valence.feedback.conversions import rewards_to_preferences
from valence.types import Pairs, Preferences, Rewards


def preferences_to_pairs(preferences: Preferences, *, keep_ties: bool = False) -> Pairs:
    """The observed pairs, winner first; `gap` is the margin where given and finite, else 2 P(win) - 1.

    Where both directions were recorded, they are averaged. Ties (P = 1/2) are dropped unless `keep_ties`. Lossy for
    objectives that read only the order (DPO, IPO): how sure the annotator was is in `gap` alone.
    """
    first, second = _upper_pairs(preferences.present.shape[-1], preferences.present.device)
    win, known = _merge(preferences.win, preferences.observed, first, second, total=1.0)
    gap = 2 * win - 1
    if preferences.margin is not None:
        finite = preferences.observed & preferences.margin.isfinite()
        margin, has_margin = _merge(preferences.margin, finite, first, second, total=0.0)
        gap = torch.where(has_margin, margin, gap)
    known = known & preferences.present[:, first] & preferences.present[:, second]
    return _collect(win - 0.5, gap, known, first, second, preferences.present.shape[-1], keep_ties)


def rewards_to_pairs(rewards: Rewards, *, keep_ties: bool = False) -> Pairs:
    """All pairs of each context's present actions, higher first; `gap` is the reward difference. Lossless with ties.

    A context with K actions gives K (K - 1) / 2 pairs, so it weighs more than one with two.
    """
    return preferences_to_pairs(rewards_to_preferences(rewards), keep_ties=keep_ties)


def _upper_pairs(num_actions: int, device: torch.device) -> tuple[Int[Tensor, " M"], Int[Tensor, " M"]]:
    """All i < j of a context."""
    first, second = torch.triu_indices(num_actions, num_actions, offset=1, device=device)
    return first, second


def _merge(
    value: Float[Tensor, "N K K"],
    observed: Bool[Tensor, "N K K"],
    first: Int[Tensor, " M"],
    second: Int[Tensor, " M"],
    *,
    total: float,
) -> tuple[Float[Tensor, "N M"], Bool[Tensor, "N M"]]:
    """The value of first over second, from either direction or the mean of both: value[i, j] + value[j, i] = total."""
    forth, back = observed[:, first, second], observed[:, second, first]
    summed = torch.where(forth, value[:, first, second], 0) + torch.where(back, total - value[:, second, first], 0)
    return summed / (forth.long() + back.long()).clamp(min=1), forth | back


def _collect(
    lead: Float[Tensor, "N M"],
    gap: Float[Tensor, "N M"],
    known: Bool[Tensor, "N M"],
    first: Int[Tensor, " M"],
    second: Int[Tensor, " M"],
    num_actions: int,
    keep_ties: bool,
) -> Pairs:
    """Flatten to `Pairs`; where `lead` < 0 the second action is better and the pair is swapped."""
    keep = known if keep_ties else known & (lead != 0)
    swap = lead < 0
    offset = torch.arange(lead.shape[0], device=lead.device)[:, None] * num_actions
    better = offset + torch.where(swap, second, first)
    worse = offset + torch.where(swap, first, second)
    signed = torch.where(swap, -gap, gap)
    return Pairs(torch.stack([better[keep], worse[keep]], dim=-1), signed[keep])
