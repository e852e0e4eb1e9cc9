"""What a method is fed in place of rewards. The fields of each class are options of the methods that use it.

Each class offers `converter(compared) -> function | None`: Rewards to the feedback that the objective takes, or None
where it takes the rewards themselves. `compared` is true where the rewards are a pairwise judge's own win rates.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

from valence.feedback import conversions, labelling
from valence.types import Feedback, Rewards

Converter = Callable[[Rewards], Feedback]


@dataclass(frozen=True, kw_only=True)
class Pairing:
    """Which comparisons of a context's actions are learned from.

    Args:
        pairs: all pairs of a prompt's samples, or its best against its worst.
    """

    pairs: Literal["all", "best-worst"] = "all"

    def converter(self, compared: bool) -> Converter | None:
        return conversions.keep_best_worst if self.pairs == "best-worst" else None


@dataclass(frozen=True, kw_only=True)
class SelfPlay(Pairing):
    """Win rates among the samples themselves (REBEL paper, appendix D.2)."""

    def converter(self, compared: bool) -> Converter | None:
        # A pairwise judge's win rates are taken as they are: their order alone would lose every cycle.
        return super().converter(compared) if compared else self._self_play

    def _self_play(self, rewards: Rewards) -> Feedback:
        won = conversions.preferences_to_self_play(conversions.rewards_to_preferences(rewards))
        return conversions.keep_best_worst(won) if self.pairs == "best-worst" else won


@dataclass(frozen=True, kw_only=True)
class Labelling:
    """Which rewards are accepted and which rejected.

    Args:
        labels: accept the better half, the best (and reject the worst), what reaches the prompt's mean or the batch's
            mean, or what reaches `threshold`.
        threshold: reward that is just accepted, with labels threshold.
    """

    labels: Literal["halves", "best-worst", "group-mean", "batch-mean", "threshold"] = "halves"
    threshold: float = 0.0

    def __post_init__(self) -> None:
        if self.threshold and self.labels != "threshold":
            raise ValueError(f"threshold is {self.threshold:g}, and must be left out unless labels is threshold")

    def converter(self, compared: bool) -> Converter | None:
        rules: dict[str, Converter] = {
            "halves": labelling.label_halves,
            "best-worst": labelling.label_best_worst,
            "group-mean": labelling.label_group_mean,
            "batch-mean": labelling.label_batch_mean,
            "threshold": partial(labelling.label_threshold, threshold=self.threshold),
        }
        return rules[self.labels]


@dataclass(frozen=True, kw_only=True)
class ValueLabelling:
    """Which of the actions that a critic has judged are accepted and which rejected.

    Args:
        labels: accept the better half, the best alone (and reject the worst), or what reaches the mean.
    """

    labels: Literal["halves", "best-worst", "mean"] = "halves"

    def converter(self, num_actions: int) -> Converter:
        half = num_actions // 2
        rules: dict[str, Converter] = {
            "halves": partial(labelling.label_ranked, top=half, bottom=half),
            "best-worst": labelling.label_best_worst,
            "mean": labelling.label_group_mean,
        }
        return rules[self.labels]

    def rejected_fraction(self, num_actions: int) -> float:
        """Share of the reference's actions that is rejected, unlabelled actions counted as drawn between the sides."""
        return {"halves": num_actions // 2 / num_actions, "best-worst": 1 / num_actions, "mean": 0.5}[self.labels]


@dataclass(frozen=True, kw_only=True)
class BestOverWorst:
    """A context's best action is preferred to its worst."""

    def converter(self, num_actions: int) -> Converter:
        return lambda values: conversions.labels_to_preferences(labelling.label_best_worst(values))


@dataclass(frozen=True, kw_only=True)
class Unchanged:
    """The rewards themselves."""

    def converter(self, compared: object = None) -> Converter | None:
        return None
