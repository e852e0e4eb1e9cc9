"""Whoever judges fresh completions: functions, classifiers, reward models."""

from valence.rewards.functions import RewardFunction, load_reward, ready_rewards

__all__ = ["RewardFunction", "load_reward", "ready_rewards"]
