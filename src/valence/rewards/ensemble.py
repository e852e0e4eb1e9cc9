"""Several judges as one: their mean, their worst verdict, or their mean less what they disagree.

Source: Coste et al. 2024, "Reward model ensembles help mitigate overoptimization": mean, worst-case and
uncertainty-weighted optimisation.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

Judge = Callable[..., Sequence[float | None]]
"""(prompts, completions, **columns) -> what each completion is worth, or None."""
WAYS = ("mean", "worst", "cautious")


class Ensemble:
    """Asks every judge about every completion.

    Args:
        judges: two or more.
        way: "mean"; "worst": the smallest; "cautious": the mean less `weight` times the variance.
        weight: of the variance, per unit of reward.
    Raises:
        ValueError: fewer than two judges, or another way.
    """

    def __init__(self, judges: Sequence[Judge], way: str = "mean", *, weight: float = 1.0) -> None:
        if len(judges) < 2:
            raise ValueError(f"an ensemble needs two judges or more, got {len(judges)}")
        if way not in WAYS:
            raise ValueError(f"way is {way!r}, and must be one of {', '.join(WAYS)}")
        self.judges, self.way, self.weight = judges, way, weight

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float | None]:
        """None where any of them has no number: the others alone would be another judge."""
        verdicts = [judge(prompts=prompts, completions=completions, **columns) for judge in self.judges]
        return [self._combined(row) for row in zip(*verdicts, strict=True)]

    def _combined(self, row: Sequence[float | None]) -> float | None:
        known = [value for value in row if value is not None]
        if len(known) < len(row):
            return None
        if self.way == "worst":
            return min(known)
        mean = statistics.fmean(known)
        return mean if self.way == "mean" else mean - self.weight * statistics.pvariance(known)
