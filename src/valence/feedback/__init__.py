"""Feedback of one kind into another: pure torch on `[N, K]` tensors, explicit, each saying what it loses."""

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
    standardize,
    win_rates_to_rewards,
)
from valence.feedback.labelling import (
    dropped,
    label_advantage_sign,
    label_batch_mean,
    label_best_worst,
    label_group_mean,
    label_halves,
    label_ranked,
    label_threshold,
    label_top_k,
)
from valence.feedback.pairs import preferences_to_pairs, rankings_to_pairs, rewards_to_pairs
from valence.feedback.running import RunningStandard

__all__ = [
    "RunningStandard",
    "dropped",
    "episode_advantages",
    "has_spread",
    "keep_best_worst",
    "label_advantage_sign",
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
    "rankings_to_pairs",
    "reward_statistics",
    "rewards_to_pairs",
    "rewards_to_preferences",
    "standardize",
    "win_rates_to_rewards",
]
