"""REBEL: regress reward gaps of a context's actions on gaps of their log-ratios.

    minimise  ((1 / eta) (log(pi(y)/pi_t(y)) - log(pi(y')/pi_t(y'))) - (r(y) - r(y')))^2

whose zero is pi_t e^{eta r}, normalised: the partition function cancels in the gap. Offline pi_ref takes the place of
the last iterate pi_t; online pi_t is the policy that drew the actions (`anchor="old"`).

Source: "REBEL: reinforcement learning via regressing relative rewards", Eq. 1.
Units: rewards in their own; log-ratios in nats, summed over steps; eta in nats per unit of reward (1 / tau of DRO).

A loss written as (log-ratio gap - eta * reward gap)^2 is eta^2 times this one: the same minimiser, another gradient
scale, so another learning rate under plain gradient descent. Here eta is never part of the learning rate.

At pi = pi_t with two actions its gradient is 4 / eta times that of RLOO averaged over the two.

Departs from the paper:
- Offline the pairs come from the data set, not from pi_t: one iteration of Algorithm 1.
- All pairs of a context are used, ties too (a gap of zero is information), where the paper draws two actions.
- Bare preferences have no scores: the gap is 2 P(win) - 1, or the annotator's margin where given.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from valence.feedback import preferences_to_pairs, rewards_to_pairs
from valence.objectives.common import (
    ANCHORS,
    anchored_log_ratio,
    anchored_needs,
    means,
    old_log_prob,
    require_choice,
    require_feedback,
    require_positive,
    zero_absent,
)
from valence.types import Batch, Likelihood, Loss, Preferences, Rewards, Target


def rebel_loss(ratio_gap: Float[Tensor, " P"], reward_gap: Float[Tensor, " P"], *, eta: float) -> Float[Tensor, " P"]:
    """Squared residual of each pair, in squared units of reward.

    Args:
        ratio_gap: log-ratio of the first minus the second action, nats. Differentiable.
        reward_gap: reward of the first minus the second. Constant.
        eta: step size, > 0.
    """
    return (ratio_gap / eta - reward_gap).square()


@dataclass(frozen=True, kw_only=True)
class REBEL:
    """The objective of this file. Takes Rewards and Preferences.

    Args:
        eta: how far from the anchor one unit of reward may lead, nats per unit, > 0.
        anchor: "reference" for pi_ref, "old" for pi_t that collected the batch.
    """

    eta: float = 1.0
    anchor: Literal["reference", "old"] = "reference"

    def __post_init__(self) -> None:
        require_positive(eta=self.eta)
        require_choice(ANCHORS, anchor=self.anchor)

    @property
    def needs(self) -> frozenset[str]:
        return anchored_needs(self.anchor)

    @property
    def frozen_needs(self) -> frozenset[str]:
        return frozenset()

    @property
    def accepts(self) -> tuple[type, ...]:
        return (Rewards, Preferences)

    def state(self) -> None:
        return None

    def prepare(self, batch: Batch, frozen: Likelihood | None) -> Target:
        require_feedback(self, batch.feedback)
        feedback = batch.feedback
        if isinstance(feedback, Rewards):
            pairs = rewards_to_pairs(feedback, keep_ties=True)
        else:
            assert isinstance(feedback, Preferences)
            pairs = preferences_to_pairs(feedback, keep_ties=True)
        old = old_log_prob(batch, "REBEL") if self.anchor == "old" else None
        return Target(present=batch.present, size=float(max(len(pairs.gap), 1)), pairs=pairs, old_log_prob=old)

    def __call__(self, likelihood: Likelihood, target: Target, state: Any = None) -> Loss:
        assert target.pairs is not None
        ratio = zero_absent(anchored_log_ratio(likelihood.total(), target, "REBEL"), target.present).flatten()
        first, second = target.pairs.index.unbind(-1)
        ratio_gap, reward_gap = ratio[first] - ratio[second], target.pairs.gap.to(ratio.dtype)
        every = torch.ones_like(ratio_gap, dtype=torch.bool)
        values = {
            "reward_accuracy": ((ratio_gap * reward_gap > 0).to(ratio.dtype), reward_gap != 0),
            "reward_margin": (ratio_gap / self.eta, every),
            "reward_gap": (reward_gap, every),
            "regression_error": ((ratio_gap / self.eta - reward_gap).square(), every),
            "reward_gap_variance": (reward_gap.square(), every),
        }
        return Loss({"policy": rebel_loss(ratio_gap, reward_gap, eta=self.eta)}, means(values))
