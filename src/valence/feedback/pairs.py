"""Feedback to `Pairs`: one row per compared pair of a context's actions, better first.

Shape legend: see `valence.types`.
"""

from __future__ import annotations

import torch

from valence.feedback.conversions import reciprocal, rewards_to_preferences
from valence.types import Pairs, Preferences, Rewards


def preferences_to_pairs(preferences: Preferences, *, keep_ties: bool = False) -> Pairs:
    """The observed pairs, winner first; `gap` is the margin where given and finite, else 2 P(win) - 1.

    Where both directions were recorded, they are averaged. Ties (P = 1/2) are dropped unless `keep_ties`. Lossy for
    objectives that read only the order (DPO, IPO): how sure the annotator was is in `gap` alone.
    """
    win, known = reciprocal(preferences.win, preferences.observed, preferences.present, total=1.0)
    gap = 2 * win - 1
    if preferences.margin is not None:
        finite = preferences.observed & preferences.margin.isfinite()
        margin, has_margin = reciprocal(preferences.margin, finite, preferences.present, total=0.0)
        gap = torch.where(has_margin, margin, gap)
    num_contexts, num_actions = preferences.present.shape
    first, second = torch.triu_indices(num_actions, num_actions, offset=1, device=win.device)
    lead, gap, known = win[:, first, second] - 0.5, gap[:, first, second], known[:, first, second]
    keep = known if keep_ties else known & (lead != 0)
    swap = lead < 0
    offset = torch.arange(num_contexts, device=win.device)[:, None] * num_actions
    better = offset + torch.where(swap, second, first)
    worse = offset + torch.where(swap, first, second)
    return Pairs(torch.stack([better[keep], worse[keep]], dim=-1), torch.where(swap, -gap, gap)[keep])


def rewards_to_pairs(rewards: Rewards, *, keep_ties: bool = False) -> Pairs:
    """All pairs of each context's present actions, higher first; `gap` is the reward difference. Lossless with ties.

    A context with K actions gives K (K - 1) / 2 pairs, so it weighs more than one with two.
    """
    return preferences_to_pairs(rewards_to_preferences(rewards), keep_ties=keep_ties)
