"""When a run of a search has converged."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from valence.search.gaussian import Gaussian

TOLERANCE, MAX_CONDITION = 1e-12, 1e14


@dataclass
class StoppingRule:
    """Checks after each step whether a run has converged.

    Args:
        window: number of steps over which values are compared.
        initial_size: the policy's size when the run began.
        history: the best value of each of the last `window` steps.
    """

    window: int
    initial_size: float
    history: list[float] = field(default_factory=list)

    def reason(self, policy: Gaussian, values: Iterable[float]) -> str | None:
        """Why the run has converged; None while it has not.

        It has where its values (`values` are those of this step's points) agree in 12 digits, its policy has shrunk by
        as many, or its longest and shortest axes differ too much for floating point.
        """
        finite = [float(value) for value in values if np.isfinite(value)]
        if finite:
            self.history = [*self.history, min(finite)][-self.window :]
            equal = max(self.history) - min(self.history) <= TOLERANCE * max(map(abs, self.history))
            if len(self.history) == self.window and equal:
                return "the values no longer change"
        if policy.size * policy.axes[-1] < TOLERANCE * self.initial_size:
            return "the policy is a point"
        return "the policy is too narrow for floating point" if policy.condition > MAX_CONDITION else None
