"""Any objective with its log-probabilities and KLs multiplied by a constant.

    L_scaled(log pi, KL) = L(c log pi, c KL)

For actions of many dimensions: an image's log pi is a sum over tens of thousands of them, and public code for images
takes their mean, c = 1 / D. REBEL with c is REBEL with eta / c; PPO with c clips c times the log-ratio. Metrics that
are log-probabilities, log-ratios or KLs are reported in nats, not multiplied by c.

Source: none; the REBEL paper's settings for images (H.3.3: eta 1, clip 1e-4) are for c = 1 / D.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from valence.objectives.common import require_positive
from valence.protocols import Objective
from valence.types import PER_CONTEXT, PER_STEP, Batch, Likelihood, Loss, Target


@dataclass(frozen=True, kw_only=True)
class ScaledTarget(Target):
    """The objective's target from log-probabilities times c, for the loss, and from those in nats, for metrics."""

    scaled: Target = field(metadata=PER_CONTEXT)
    plain: Target = field(metadata=PER_CONTEXT)

    def minibatch(self, rows: slice) -> ScaledTarget:
        scaled, plain = self.scaled.minibatch(rows), self.plain.minibatch(rows)
        return ScaledTarget(present=scaled.present, size=scaled.size, scaled=scaled, plain=plain)


@dataclass(frozen=True, kw_only=True)
class ScaledLogProb:
    """An objective whose log-probabilities and KLs are multiplied by a constant, as a frozen dataclass.

    Args:
        objective: The objective that reads the scaled quantities.
        log_prob_scale: Factor c of log-probabilities and KLs, above 0.
    """

    objective: Objective[Any]
    log_prob_scale: float

    def __post_init__(self) -> None:
        require_positive(log_prob_scale=self.log_prob_scale)

    @property
    def linear(self) -> bool:
        return self.objective.linear

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

    def prepare(self, batch: Batch, frozen: Likelihood | None) -> ScaledTarget:
        old = batch.old_log_prob
        smaller = replace(batch, old_log_prob=None if old is None else old * self.log_prob_scale)
        scaled = self.objective.prepare(smaller, None if frozen is None else self._scaled(frozen))
        plain = self.objective.prepare(batch, frozen)
        return ScaledTarget(present=scaled.present, size=scaled.size, scaled=scaled, plain=plain)

    def __call__(self, likelihood: Likelihood, target: ScaledTarget) -> Loss:
        loss = self.objective(self._scaled(likelihood), target.scaled)
        with torch.no_grad():
            metrics = self.objective(likelihood.detach(), target.plain).metrics
        in_nats = {name for name in metrics if name.startswith("kl_") or name.endswith(("_log_prob", "_log_ratio"))}
        return Loss(loss.terms, {**loss.metrics, **{name: metrics[name] for name in in_nats}})

    def _scaled(self, likelihood: Likelihood) -> Likelihood:
        return likelihood.map(lambda part: part * self.log_prob_scale, PER_STEP)
