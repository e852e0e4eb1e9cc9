"""REBEL: regress reward gaps of a context's actions on gaps of their log-ratios.

    minimise  ((1 / eta) (log(pi(y)/pi_t(y)) - log(pi(y')/pi_t(y'))) - (r(y) - r(y')))^2

It is 0 at pi_t e^{eta r}, normalised: the partition function cancels in the gap. Offline, pi_ref takes the place of
the last iterate pi_t. Online, pi_t is the policy that drew the actions (`anchor="old"`).

Source: "REBEL: reinforcement learning via regressing relative rewards", Eq. 1.
Units: rewards in their own; log-ratios in nats, summed over steps; eta in nats per unit of reward (1 / tau of DRO).

Some write the loss as (log-ratio gap - eta * reward gap)^2, which is eta^2 times this one: it has the same minimiser
and a gradient of another size, so it needs another learning rate under plain gradient descent.

At pi = pi_t with two actions its gradient is 4 / eta times that of RLOO averaged over the two.

Departs from the paper:
- Offline the pairs come from the data set, not from pi_t: one iteration of Algorithm 1.
- All pairs of a context are used, ties too (a gap of zero is information), where the paper draws two actions.
- Preferences have no scores: the gap is the annotator's margin where there is one, else 2 P(win) - 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from valence.objectives import common
from valence.objectives.common import PairTarget, PerPair
from valence.types import Likelihood, Loss


def rebel_loss(ratio_gap: PerPair, reward_gap: PerPair, *, eta: float) -> PerPair:
    """Squared residual of each pair, in squared units of reward.

    Args:
        ratio_gap: log-ratio of the first minus the second action, nats. Differentiable.
        reward_gap: reward of the first minus the second. Constant.
        eta: step size, > 0.
    """
    return (ratio_gap / eta - reward_gap).square()


@dataclass(frozen=True, kw_only=True)
class REBEL(common.PairObjective):
    """REBEL as a frozen dataclass. Accepts `Rewards` and `Preferences`.

    Args:
        eta: Step size: how many nats of log-ratio one unit of reward is worth, above 0. A smaller value stays closer to
            the anchor.
        anchor: The policy that log-ratios are to: "reference", or "old" for the policy that collected the batch.
    """

    eta: float = 1.0
    anchor: Literal["reference", "old"] = "reference"

    def __post_init__(self) -> None:
        common.require_positive(eta=self.eta)
        common.require_choice(common.ANCHORS, anchor=self.anchor)

    def __call__(self, likelihood: Likelihood, target: PairTarget) -> Loss:
        first, second = self.pair_log_ratios(likelihood.total(), target)
        ratio_gap, reward_gap = first - second, target.pairs.gap.to(first.dtype)
        loss = rebel_loss(ratio_gap, reward_gap, eta=self.eta)
        accuracy = {"reward_accuracy": ((ratio_gap * reward_gap > 0).to(first.dtype), reward_gap != 0)}
        metrics = common.means(accuracy) | common.pair_means(
            reward_margin=ratio_gap / self.eta, reward_gap=reward_gap, regression_error=loss,
            reward_gap_variance=reward_gap.square(),
        )  # fmt: skip
        return Loss({"policy": loss}, metrics)
