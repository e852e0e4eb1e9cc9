"""Pairwise judges, which say which of two completions is better, and the reward that `SelfPlay` makes of one.

A pairwise judge is called as `(prompts, first, second)` and returns P(first is better) of each pair, or None.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

import torch

from valence.feedback.conversions import preferences_to_self_play
from valence.rewards.ensemble import NO_FAILURES, Judge
from valence.rewards.functions import RewardFunction, name_of
from valence.types import Preferences


class PairFunction:
    """A function `(prompts, first, second) -> P(first is better) of each pair, or None` that cannot break a run.

    Where the function fails, hangs or returns no probability, `failures` counts the pairs, as for a
    `RewardFunction`.
    """

    def __init__(self, function: Any, *, name: str = "", timeout: float = 60.0, what: str = "completions") -> None:
        def judge(prompts: Sequence[Any], completions: Sequence[Any], second: Sequence[Any]) -> list[Any]:
            values = list(function(prompts, completions, second))
            for value in values:
                if value is not None and not 0 <= value <= 1:
                    raise ValueError(f"{value} is no probability that the first is better")
            return values

        self._safe = RewardFunction(judge, name=name or name_of(function), timeout=timeout, what=what)
        self.name, self.failures = self._safe.name, self._safe.failures

    @property
    def repeated(self) -> int:
        return self._safe.repeated

    def __call__(self, prompts: Sequence[Any], first: Sequence[Any], second: Sequence[Any]) -> list[float | None]:
        """Raises UserError if the first call gives no pair a verdict."""
        return self._safe(prompts, first, second=second) if prompts else []


class SelfPlay:
    """A pairwise judge as a reward, in [-1, 1]: how each completion does against the others of its prompt.

    A `Judge`. The completions of one prompt must stand one after another, as in `valence.sources.online`.

    Args:
        judge: a pairwise judge, or a plain function of the same arguments.
    """

    def __init__(self, judge: Any, *, name: str = "judge") -> None:
        self.judge, self.name, self.missing = judge, name, 0

    @property
    def failures(self) -> Mapping[str, int]:
        """The number of completions without a verdict, under the failures that the judge counts for pairs."""
        if not self.missing:
            return NO_FAILURES
        by_pair = self.judge.failures if isinstance(self.judge, Judge) else NO_FAILURES
        pairs = [f"{count} pairs: {why}" for why, count in by_pair.items()]
        return {"; ".join(["no clear verdict", *pairs]): self.missing}

    @property
    def repeated(self) -> int:
        return self.judge.repeated if isinstance(self.judge, Judge) else 0

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **_: Any) -> list[float | None]:
        groups = [list(group) for _, group in groupby(range(len(prompts)), key=prompts.__getitem__)]
        pairs = [(i, j) for group in groups for at, i in enumerate(group) for j in group[at + 1 :]]
        verdicts = self.judge(
            [prompts[i] for i, _ in pairs], [completions[i] for i, _ in pairs], [completions[j] for _, j in pairs]
        )
        known = {pair: verdict for pair, verdict in zip(pairs, verdicts, strict=True) if verdict is not None}
        scores = [score for group in groups for score in _win_scores(group, known)]
        self.missing += sum(score is None for score in scores)
        return scores


def _win_scores(group: Sequence[int], known: dict[tuple[int, int], float]) -> list[float | None]:
    """The self-play reward of each completion of a prompt from the known win probabilities."""
    size = len(group)
    win, observed = torch.zeros(1, size, size), torch.zeros(1, size, size, dtype=torch.bool)
    for a, i in enumerate(group):
        for b, j in enumerate(group):
            if (i, j) in known:
                win[0, a, b], observed[0, a, b] = known[i, j], True
    rewards = preferences_to_self_play(Preferences(win, observed, torch.ones(1, size, dtype=torch.bool)))
    rows = zip(rewards.value[0].tolist(), rewards.present[0].tolist(), strict=True)
    return [value if there else None for value, there in rows]
