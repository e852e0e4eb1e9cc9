"""When a run has nothing more to find."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from valence.search.gaussian import Gaussian

SMALL, NARROW = 1e-12, 1e14


@dataclass
class Watch:
    """Looks at a run after each step; JSON can hold all of it.

    Args:
        keep: over how many steps values are watched.
        first: the longest standard deviation that the run began with.
        history: the best value of each of the last `keep` steps.
    """

    keep: int
    first: float
    history: list[float] = field(default_factory=list)

    def over(self, policy: Gaussian, values: Iterable[float]) -> str | None:
        """Why the run is over: its values agree in 12 digits, its policy has shrunk by as many, or its axes are too
        unlike.

        Args:
            values: those of this step's draw, where any were told.
        """
        finite = [float(value) for value in values if np.isfinite(value)]
        if finite:
            self.history = [*self.history, min(finite)][-self.keep :]
            still = max(self.history) - min(self.history) <= SMALL * max(map(abs, self.history))
            if len(self.history) == self.keep and still:
                return "the values no longer change"
        if policy.size * policy.axes[-1] < SMALL * self.first:
            return "the policy is a point"
        return "the policy is too narrow for floating point" if policy.condition > NARROW else None
