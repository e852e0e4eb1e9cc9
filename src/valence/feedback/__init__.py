"""Conversions of feedback from one kind to another: pure torch on `[N, K]` tensors."""

from valence.feedback.advantages import episode_advantages, on_last_step
from valence.feedback.conversions import (
    has_spread,
    keep_best_worst,
    labels_to_preferences,
    labels_to_rewards,
    preferences_to_labels,
    preferences_to_self_play,
    preferences_to_win_rates,
    reward_statistics,
    rewards_to_preferences,
    signs,
    standardize,
    win_rates_to_rewards,
)
from valence.feedback.labelling import (
    label_batch_mean,
    label_best_worst,
    label_group_mean,
    label_halves,
    label_ranked,
    label_threshold,
    label_top_k,
)
from valence.feedback.pairs import preferences_to_pairs, rewards_to_pairs
from valence.feedback.running import RunningStandard

__all__ = [
    "RunningStandard",
    "episode_advantages",
    "has_spread",
    "keep_best_worst",
    "label_batch_mean",
    "label_best_worst",
    "label_group_mean",
    "label_halves",
    "label_ranked",
    "label_threshold",
    "label_top_k",
    "labels_to_preferences",
    "labels_to_rewards",
    "on_last_step",
    "preferences_to_labels",
    "preferences_to_pairs",
    "preferences_to_self_play",
    "preferences_to_win_rates",
    "reward_statistics",
    "rewards_to_pairs",
    "rewards_to_preferences",
    "signs",
    "standardize",
    "win_rates_to_rewards",
]
