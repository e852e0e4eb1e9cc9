"""Supervised fine-tuning, or behaviour cloning: raise the likelihood of what was accepted.

    minimise  -E_accepted[log pi(y|x)]

Source: PMPO paper, Eq. 6 (it is PMPO at alpha = 1, beta = 0); filtered behaviour cloning elsewhere.
Units: nats; log pi is a sum over an action's steps.

Departs from common code: no division by length (a mean over tokens weighs every token alike, a mean over actions
every action); the class mean is over the data set where its accepted fraction is given.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from valence.objectives.common import count, means, require_feedback, require_fraction, zero_absent
from valence.types import Batch, Labels, Likelihood, Loss, Target


def supervised_loss(log_prob: Float[Tensor, "N K"], weight: Float[Tensor, "N K"]) -> Float[Tensor, "N K"]:
    """-weight log pi(y|x), per action.

    Args:
        log_prob: log pi(y|x), nats, summed over steps. Differentiable.
        weight: 1 / (accepted fraction) where accepted, else 0. Constant.
    """
    return -weight * log_prob


@dataclass(frozen=True, kw_only=True)
class Supervised:
    """The objective of this file. Takes Labels; reads the accepted ones only.

    Args:
        accepted_fraction: the data set's, over all its rows, in (0, 1]; None: each collected batch's own.
    """

    accepted_fraction: float | None = None
    linear: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require_fraction(accepted_fraction=self.accepted_fraction)
        if self.accepted_fraction == 0:
            raise ValueError("accepted_fraction must be in (0, 1]: there is nothing to imitate")

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"log_prob"})

    @property
    def frozen_needs(self) -> frozenset[str]:
        return frozenset()

    @property
    def accepts(self) -> tuple[type, ...]:
        return (Labels,)

    def state(self) -> None:
        return None

    def prepare(self, batch: Batch, frozen: Likelihood | None) -> Target:
        require_feedback(self, batch.feedback)
        assert isinstance(batch.feedback, Labels)
        size = count(batch.present)
        accepted = batch.present & (batch.feedback.sign > 0)
        fraction = count(accepted) / size if self.accepted_fraction is None else self.accepted_fraction
        return Target(present=batch.present, size=size, weight=accepted.to(torch.get_default_dtype()) / fraction)

    def __call__(self, likelihood: Likelihood, target: Target, state: Any = None) -> Loss:
        assert target.weight is not None
        log_prob = zero_absent(likelihood.total().log_prob, target.present)
        loss = supervised_loss(log_prob, target.weight.to(log_prob.dtype))
        return Loss({"policy": loss}, means({"accepted_log_prob": (log_prob, target.weight > 0)}))
