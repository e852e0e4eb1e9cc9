"""Supervised fine-tuning, or behaviour cloning: raise the likelihood of what was accepted.

    minimise  -E_accepted[log pi(y|x)]

Source: PMPO paper, Eq. 6 (it is PMPO at alpha = 1, beta = 0); filtered behaviour cloning elsewhere.
Units: nats; log pi is a sum over an action's steps.

Departs from common code:
- log pi is not divided by the action's length: every action weighs alike, where a mean over tokens weighs every token.
- The mean over accepted actions is over the data set where its accepted fraction is given.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch

from valence.objectives import common
from valence.objectives.common import PerAction
from valence.types import PER_CONTEXT, Batch, Labels, Likelihood, Loss, Target


def supervised_loss(log_prob: PerAction, weight: PerAction) -> PerAction:
    """-weight log pi(y|x), per action.

    Args:
        log_prob: log pi(y|x), nats, summed over steps. Differentiable.
        weight: 1 / (accepted fraction) where accepted, else 0. Constant.
    """
    return -weight * log_prob


@dataclass(frozen=True, kw_only=True)
class SupervisedTarget(Target):
    """`weight`: 1 / (accepted fraction) for accepted actions, else 0, `[N, K]`."""

    weight: PerAction = field(metadata=PER_CONTEXT)


@dataclass(frozen=True, kw_only=True)
class Supervised(common.Defaults):
    """Supervised fine-tuning as a frozen dataclass. Accepts `Labels` and learns from the accepted actions.

    Args:
        accepted_fraction: Fraction of accepted rows among all rows of the data set, above 0 and at most 1. Without it
            each batch's own fraction is taken.
    """

    accepted_fraction: float | None = None
    accepts: ClassVar[tuple[type, ...]] = (Labels,)
    linear: ClassVar[bool] = True

    def __post_init__(self) -> None:
        common.require_fraction(accepted_fraction=self.accepted_fraction)
        if self.accepted_fraction == 0:
            raise ValueError("`accepted_fraction` must be above 0: without accepted rows there is nothing to imitate")

    def prepare(self, batch: Batch, frozen: Likelihood | None) -> SupervisedTarget:
        common.require_feedback(self, batch.feedback)
        assert isinstance(batch.feedback, Labels)
        accepted = batch.present & (batch.feedback.sign > 0)
        fraction = self.accepted_fraction
        if fraction is None:
            fraction = common.count(accepted) / common.count(batch.present)
        return SupervisedTarget(present=batch.present, weight=accepted.to(torch.get_default_dtype()) / fraction)

    def __call__(self, likelihood: Likelihood, target: SupervisedTarget) -> Loss:
        log_prob = common.zero_absent(likelihood.total().log_prob, target.present)
        loss = supervised_loss(log_prob, target.weight.to(log_prob.dtype))
        return Loss({"policy": loss}, common.means({"accepted_log_prob": (log_prob, target.weight > 0)}))
