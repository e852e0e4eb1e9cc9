"""Policy gradients on whole actions: the reward above a baseline weighs each action's log-probability.

    REINFORCE  -(r(y) - b) log pi(y|x)                                            Williams 1992
    RLOO       -(r(y_i) - mean_{j != i} r(y_j)) log pi(y_i|x)                     Kool et al. 2019
    CoPG       (Delta r - beta Delta log(pi / pi_ref))^2 / (2 beta)               Flet-Berliac et al. 2024

The first two are linear in log pi: their gradient is known before anything is measured. They hold for actions that
the current policy drew. CoPG compares pairs of a context's actions, from any policy: its gradient is
-(R(y) - R(y')) (grad log pi(y) - grad log pi(y')) with R = r - beta log(pi / pi_ref). It is REBEL with eta = 1 / beta,
anchored at pi_ref, divided by 2 beta. Where rewards are +-1/4, a gap of 1/2, it is IPO times beta / 2.

Units: rewards in their own; log-probabilities in nats, summed over steps.

Departs from the papers: the mean is over actions, for RLOO as well. There are no importance weights: use each collected
batch for one update.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch

from valence.objectives import common
from valence.objectives.common import PairTarget, PerAction, PerPair, Present
from valence.types import PER_CONTEXT, Batch, Likelihood, Loss, Rewards, Target


def leave_one_out_advantages(reward: PerAction, present: Present) -> PerAction:
    """Each reward minus the mean reward of the context's other present actions; 0 for an action alone, and if absent.

    Sums are taken of differences to the context's smallest reward: they do not cancel at a large offset.
    """
    above = common.above_smallest(reward, present)
    others = present.sum(-1, keepdim=True) - 1
    mean = (above.sum(-1, keepdim=True) - above) / others.clamp(min=1)
    return common.zero_absent(torch.where(others > 0, above - mean, 0.0), present)


def copg_loss(ratio_gap: PerPair, reward_gap: PerPair, *, beta: float) -> PerPair:
    """(reward gap - beta log-ratio gap)^2 / (2 beta) of each pair, in the reward's unit.

    Args:
        ratio_gap: log(pi / pi_ref) of the first minus the second, nats. Differentiable.
        reward_gap: reward of the first minus the second. Constant.
        beta: temperature, > 0, in the reward's unit.
    """
    return (reward_gap - beta * ratio_gap).square() / (2 * beta)


@dataclass(frozen=True, kw_only=True)
class AdvantageTarget(Target):
    """Each action's reward above its baseline.

    Args:
        reward: 0 where absent, `[N, K]`. For the metrics.
        advantage: 0 where absent, `[N, K]`.
    """

    reward: PerAction = field(metadata=PER_CONTEXT)
    advantage: PerAction = field(metadata=PER_CONTEXT)


@dataclass(frozen=True, kw_only=True)
class _PolicyGradient(common.Defaults):
    """-advantage log pi, averaged over actions."""

    linear: ClassVar[bool] = True

    def _advantages(self, reward: PerAction, present: Present) -> PerAction:
        """Each reward minus its baseline, here the mean reward of the context's other actions; 0 where absent."""
        return leave_one_out_advantages(reward, present)

    def prepare(self, batch: Batch, frozen: Likelihood | None) -> AdvantageTarget:
        common.require_feedback(self, batch.feedback)
        assert isinstance(batch.feedback, Rewards)
        present = batch.feedback.present
        reward = common.zero_absent(batch.feedback.value, present)
        return AdvantageTarget(present=present, reward=reward, advantage=self._advantages(reward, present))

    def __call__(self, likelihood: Likelihood, target: AdvantageTarget) -> Loss:
        log_prob = common.zero_absent(likelihood.total().log_prob, target.present)
        advantage = target.advantage.to(log_prob.dtype)
        values = {"reward": (target.reward, target.present), "advantage_size": (advantage.abs(), target.present)}
        return Loss({"policy": -advantage * log_prob}, common.means(values))


@dataclass(frozen=True, kw_only=True)
class REINFORCE(_PolicyGradient):
    """Policy gradient with one baseline for the whole batch. Accepts `Rewards`.

    Args:
        baseline: What is subtracted from each reward: "mean", the mean reward of the batch's other actions, or "none",
            nothing.
    """

    baseline: Literal["mean", "none"] = "mean"

    def __post_init__(self) -> None:
        common.require_choice(("mean", "none"), baseline=self.baseline)

    def _advantages(self, reward: PerAction, present: Present) -> PerAction:
        if self.baseline == "none":
            return reward
        return super()._advantages(reward.reshape(1, -1), present.reshape(1, -1)).view_as(reward)


@dataclass(frozen=True, kw_only=True)
class RLOO(_PolicyGradient):
    """REINFORCE whose baseline is the mean reward of the context's other actions. Accepts `Rewards`; needs K >= 2."""


@dataclass(frozen=True, kw_only=True)
class CoPG(common.PairObjective):
    """Contrastive policy gradient as a frozen dataclass. Accepts `Rewards`.

    Args:
        beta: KL weight: how strongly the policy is held to the reference, in the reward's unit, above 0.
    """

    beta: float = 0.1
    accepts: ClassVar[tuple[type, ...]] = (Rewards,)

    def __post_init__(self) -> None:
        common.require_positive(beta=self.beta)

    def __call__(self, likelihood: Likelihood, target: PairTarget) -> Loss:
        first, second = self.pair_log_ratios(likelihood.total(), target)
        ratio_gap, reward_gap = first - second, target.pairs.gap.to(first.dtype)
        metrics = common.pair_means(reward_gap=reward_gap, reward_margin=self.beta * ratio_gap)
        return Loss({"policy": copg_loss(ratio_gap, reward_gap, beta=self.beta)}, metrics)
