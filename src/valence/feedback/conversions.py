"""One kind of feedback to another. Each docstring says whether the conversion is lossy.

Values at absent actions, NaN included, are never read.

Shape legend: see `valence.types`.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from valence.types import Feedback, Labels, Preferences, Rewards


def labels_to_rewards(labels: Labels) -> Rewards:
    """+1 for accepted, -1 for rejected. Lossy: unlabelled actions are dropped."""
    present = labels.present & (labels.sign != 0)
    value = torch.where(present, labels.sign, 0).to(torch.get_default_dtype())
    return Rewards(value, present)


def rewards_to_preferences(rewards: Rewards) -> Preferences:
    """All comparisons within each context, with the reward difference as `margin` (so nothing is lost).

    The higher reward wins with probability 1; a tie gives 1/2 to both.
    """
    value = torch.where(rewards.present, rewards.value, 0)
    margin = value[:, :, None] - value[:, None, :]
    return Preferences((margin.sign() + 1) / 2, both_present(rewards.present), rewards.present, margin)


def labels_to_preferences(labels: Labels) -> Preferences:
    """Within a context, every accepted action beats every rejected one. Lossy.

    Lost: unlabelled actions, and contexts with labels of one sign. ValueError if no context has both signs.
    """
    accepted = labels.present & (labels.sign > 0)
    rejected = labels.present & (labels.sign < 0)
    beats = accepted[:, :, None] & rejected[:, None, :]
    if not beats.any():
        raise ValueError(
            "these labels cannot become preferences: no prompt has both an accepted and a rejected action, and "
            "actions of different prompts cannot be compared; use a method for labels (pmpo, kto, dro)"
        )
    observed = beats | beats.mT
    return Preferences(beats.to(torch.get_default_dtype()), observed, observed.any(-1))


def preferences_to_win_rates(preferences: Preferences) -> Rewards:
    """Each action's mean probability of winning over the opponents it was compared with. Lossy.

    A comparison counts for both sides, whichever direction was recorded. Actions never compared are dropped.
    """
    win, known = reciprocal(preferences.win, preferences.observed, preferences.present, total=1.0)
    count = known.sum(-1)
    value = torch.where(known, win, 0).sum(-1) / count.clamp(min=1)
    return Rewards(value, preferences.present & (count > 0))


def win_rates_to_rewards(win_rates: Rewards) -> Rewards:
    """Win rates in [0, 1] to rewards in [-1, 1]: a pair becomes +1 and -1, a ranking is spread evenly. Lossless.

    The scale is arbitrary: an order does not say how much better one action is than the next.
    """
    return replace(win_rates, value=torch.where(win_rates.present, 2 * win_rates.value - 1, 0))


def preferences_to_self_play(preferences: Preferences) -> Rewards:
    """Rewards of self-play, l(y) = 2 P(y beats a sample) - 1, from comparisons of the samples with each other. Lossy.

    l_i = sum_j (2 P(y_i beats y_j) - 1) / (1 + number of opponents): the action's tie with itself counts. The gap of
    two actions' rewards then has the right size for REBEL. With a mean over the opponents alone, the comparison of the
    two with each other would count double, and the regression would give K / (K - 1) times E[l].

    Source: REBEL paper, appendix D.2, with the factor 2 and the shift that its text drops for binary votes.
    """
    win, known = reciprocal(preferences.win, preferences.observed, preferences.present, total=1.0)
    edge = torch.where(known, 2 * win - 1, 0).sum(-1)
    return Rewards(edge / (1 + known.sum(-1)), preferences.present & known.any(-1))


def keep_best_worst(rewards: Rewards) -> Rewards:
    """Each context's highest and lowest reward alone (best of N against worst of N); ties go to the first. Lossy.

    A context without spread is dropped.
    """
    high = torch.where(rewards.present, rewards.value, -torch.inf).argmax(-1, keepdim=True)
    low = torch.where(rewards.present, rewards.value, torch.inf).argmin(-1, keepdim=True)
    kept = torch.zeros_like(rewards.present).scatter(-1, torch.cat([high, low], -1), True)
    return replace(rewards, present=kept & rewards.present & has_spread(rewards))


def signs(feedback: Feedback) -> Float[Tensor, "N K"]:
    """+1 for the better actions, -1 for the worse, 0 for others: of a label, a win rate above or below 1/2, or a reward
    above or below the mean of all. Lossy."""
    if isinstance(feedback, Labels):
        return feedback.sign.float() * feedback.present
    if isinstance(feedback, Preferences):
        edge = torch.where(feedback.observed, 2 * feedback.win - 1, 0.0).sum(-1)
        return edge.sign() * feedback.present
    value = feedback.value.masked_fill(~feedback.present, 0.0)
    mean = value.sum() / feedback.present.sum().clamp(min=1)
    return (value - mean).sign() * feedback.present


def has_spread(rewards: Rewards) -> Bool[Tensor, "N 1"]:
    """Whether a context's present rewards differ; false with fewer than two."""
    highest = torch.where(rewards.present, rewards.value, -torch.inf).amax(-1, keepdim=True)
    lowest = torch.where(rewards.present, rewards.value, torch.inf).amin(-1, keepdim=True)
    return highest > lowest


def reward_statistics(rewards: Rewards) -> tuple[float, float]:
    """Mean and population standard deviation of the present rewards; ValueError if none is present."""
    known = rewards.value[rewards.present]
    if known.numel() == 0:
        raise ValueError("no reward is present: there is nothing to standardize")
    return known.mean().item(), known.std(correction=0).item()


def standardize(rewards: Rewards, mean: float, std: float) -> Rewards:
    """Rewards to mean 0 and variance 1, by the data set's `reward_statistics`. Lossless given the two numbers.

    Rewards without spread (std 0) all become 0.
    """
    # By rounding, the mean of equal rewards can differ from them: their deviation is then not a scale.
    smallest = 1e-6 * max(1.0, abs(mean))
    scaled = (rewards.value - mean) / std if std > smallest else torch.zeros_like(rewards.value)
    return replace(rewards, value=torch.where(rewards.present, scaled, 0))


def both_present(present: Bool[Tensor, "N K"]) -> Bool[Tensor, "N K K"]:
    """Pairs of two different present actions."""
    different = ~torch.eye(present.shape[-1], dtype=torch.bool, device=present.device)
    return present[:, :, None] & present[:, None, :] & different


def reciprocal(
    value: Float[Tensor, "N K K"], observed: Bool[Tensor, "N K K"], present: Bool[Tensor, "N K"], *, total: float
) -> tuple[Float[Tensor, "N K K"], Bool[Tensor, "N K K"]]:
    """A value of each comparison, so that v[i, j] + v[j, i] = `total`, and where it is known.

    Where both directions were recorded, they are averaged.
    """
    seen = observed & both_present(present)
    count = seen.long() + seen.mT.long()
    summed = torch.where(seen, value, 0) + torch.where(seen.mT, total - value.mT, 0)
    return summed / count.clamp(min=1), count > 0
