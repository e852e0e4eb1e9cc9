"""What every judge of completions offers to a run, and several judges as one.

Source of the combinations: Coste et al. 2024, "Reward model ensembles help mitigate overoptimization": mean, worst-case
and uncertainty-weighted optimisation.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Protocol, runtime_checkable

RewardFn = Callable[..., Sequence[float | None]]
"""(prompts, completions, **columns) -> the score of each completion, or None where it has none."""
Combination = Callable[[Sequence[float]], float]
NO_FAILURES: Mapping[str, int] = MappingProxyType({})


@runtime_checkable
class Judge(Protocol):
    """A `RewardFn` that a run can report on. Pairwise judges have the same attributes.

    Attributes:
        name: what reports call it.
        failures: reason -> number of rows that have no score because of it.
        repeated: calls that failed as a whole and were repeated row by row; 0 where that cannot happen.
    """

    @property
    def name(self) -> str: ...

    @property
    def failures(self) -> Mapping[str, int]: ...

    @property
    def repeated(self) -> int: ...

    def __call__(
        self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any
    ) -> Sequence[float | None]: ...


def ensemble(judges: Sequence[RewardFn], combine: Combination) -> RewardFn:
    """A reward that asks every judge about every completion and combines their scores.

    Args:
        judges: at least one.
        combine: one completion's scores, in the order of `judges` -> its score.
    Raises:
        ValueError: no judges.
    """
    if not judges:
        raise ValueError("an ensemble needs at least one judge")

    def together(prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float | None]:
        """None where any judge has no score: the scores of the others alone are not comparable."""
        scores = [judge(prompts=prompts, completions=completions, **columns) for judge in judges]
        rows = ([score for score in row if score is not None] for row in zip(*scores, strict=True))
        return [combine(row) if len(row) == len(judges) else None for row in rows]

    return together


def cautious(scores: Sequence[float], *, weight: float = 1.0) -> float:
    """The mean minus `weight`, per unit of reward, times the population variance."""
    return statistics.fmean(scores) - weight * statistics.pvariance(scores)


def weighted_sum(weights: Sequence[float]) -> Combination:
    """Each score times its judge's weight, summed."""
    return lambda scores: sum(weight * score for weight, score in zip(weights, scores, strict=True))


COMBINATIONS: dict[str, Combination] = {"mean": statistics.fmean, "worst": min, "cautious": cautious}
