"""Whoever judges fresh completions: functions, classifiers, reward and preference models, models over HTTP."""

from valence.rewards.functions import RewardFunction, ready_rewards
from valence.rewards.loading import load_reward

__all__ = ["RewardFunction", "load_reward", "ready_rewards"]
