"""Any objective with its log-probabilities and KLs multiplied by a constant.

    L_scaled(log pi, KL) = L(c log pi, c KL)

For actions of many dimensions: an image's log pi is a sum over tens of thousands of them, and public code for images
takes their mean, c = 1 / D. REBEL with c is REBEL with eta / c; PPO with c clips c times the log-ratio. Everything that
is reported as a KL stays in nats.

Source: none; the REBEL paper's settings for images (H.3.3: eta 1, clip 1e-4) are of c = 1 / D.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from valence.objectives.common import require_positive
from valence.types import PER_STEP, Batch, Likelihood, Loss, Target


@dataclass(frozen=True, kw_only=True)
class ScaledLogProb:
    """The objective of this file.

    Args:
        objective: what is scaled.
        log_prob_scale: c, > 0.
    """

    objective: Any
    log_prob_scale: float

    def __post_init__(self) -> None:
        require_positive(log_prob_scale=self.log_prob_scale)

    @property
    def linear(self) -> bool:
        return getattr(self.objective, "linear", False)

    @property
    def needs(self) -> frozenset[str]:
        return self.objective.needs

    @property
    def frozen_needs(self) -> frozenset[str]:
        return self.objective.frozen_needs

    @property
    def accepts(self) -> tuple[type, ...]:
        return self.objective.accepts

    def state(self) -> nn.Module | None:
        return self.objective.state()

    def prepare(self, batch: Batch, frozen: Likelihood | None) -> Target:
        old = batch.old_log_prob
        scaled = replace(batch, old_log_prob=None if old is None else old * self.log_prob_scale)
        return self.objective.prepare(scaled, None if frozen is None else self._scaled(frozen))

    def __call__(self, likelihood: Likelihood, target: Target, state: Any = None) -> Loss:
        return self.objective(self._scaled(likelihood), target, state)

    def _scaled(self, likelihood: Likelihood) -> Likelihood:
        parts = {name: getattr(likelihood, name) for name in PER_STEP}
        return replace(
            likelihood, **{name: part * self.log_prob_scale for name, part in parts.items() if part is not None}
        )
