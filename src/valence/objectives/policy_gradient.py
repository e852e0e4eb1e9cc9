"""Policy gradients on whole actions: the reward above a baseline weighs each action's log-probability.

    REINFORCE  -(r(y) - b) log pi(y|x)                                            Williams 1992
    RLOO       -(r(y_i) - mean_{j != i} r(y_j)) log pi(y_i|x)                     Kool et al. 2019
    CoPG       (Delta r - beta Delta log(pi / pi_ref))^2 / (2 beta)               Flet-Berliac et al. 2024

The first two are linear in log pi: their gradient is known before anything is measured. CoPG takes pairs of a
context's actions, whoever drew them: its gradient is -(R(y) - R(y')) (grad log pi(y) - grad log pi(y')) with
R = r - beta log(pi / pi_ref). It is REBEL with eta = 1 / beta, anchored at pi_ref, divided by 2 beta; where rewards are
+-1/4, a gap of 1/2, it is IPO times beta / 2.

Units: rewards in their own; log-probabilities in nats, summed over steps.

Departs from the papers: the mean is over actions (RLOO's over a context's K actions and over contexts, as it is
usually run); actions are taken to be on-policy, without importance weights: one update for each collected batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from valence.feedback import rewards_to_pairs
from valence.objectives.common import (
    count,
    log_ratio,
    means,
    require_choice,
    require_feedback,
    require_positive,
    zero_absent,
)
from valence.types import Batch, Likelihood, Loss, Rewards, Target


def leave_one_out(reward: Float[Tensor, "N K"], present: Bool[Tensor, "N K"]) -> Float[Tensor, "N K"]:
    """The mean reward of the context's other present actions; an action alone has its own, so an advantage of 0."""
    known = zero_absent(reward, present)
    others = present.sum(-1, keepdim=True) - 1
    mean = (known.sum(-1, keepdim=True) - known) / others.clamp(min=1)
    return torch.where(others > 0, mean, known)


def copg_loss(ratio_gap: Float[Tensor, " P"], reward_gap: Float[Tensor, " P"], *, beta: float) -> Float[Tensor, " P"]:
    """(reward gap - beta log-ratio gap)^2 / (2 beta) of each pair, in the reward's unit.

    Args:
        ratio_gap: log(pi / pi_ref) of the first minus the second, nats. Differentiable.
        reward_gap: reward of the first minus the second. Constant.
        beta: temperature, > 0, in the reward's unit.
    """
    return (reward_gap - beta * ratio_gap).square() / (2 * beta)


@dataclass(frozen=True, kw_only=True)
class _OnRewards:
    """What the objectives of this file share. Takes Rewards."""

    @property
    def frozen_needs(self) -> frozenset[str]:
        return frozenset()

    @property
    def accepts(self) -> tuple[type, ...]:
        return (Rewards,)

    def state(self) -> None:
        return None


@dataclass(frozen=True, kw_only=True)
class _Weighted(_OnRewards):
    """-(advantage) log pi, averaged over actions."""

    linear: ClassVar[bool] = True

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"log_prob"})

    def _baseline(self, reward: Float[Tensor, "N K"], present: Bool[Tensor, "N K"]) -> Float[Tensor, "N K"]:
        raise NotImplementedError

    def prepare(self, batch: Batch, frozen: Likelihood | None) -> Target:
        require_feedback(self, batch.feedback)
        assert isinstance(batch.feedback, Rewards)
        present = batch.feedback.present
        reward = zero_absent(batch.feedback.value, present)
        advantage = zero_absent(reward - self._baseline(reward, present), present)
        return Target(present=present, size=count(present), weight=advantage, reward=reward)

    def __call__(self, likelihood: Likelihood, target: Target, state: Any = None) -> Loss:
        assert target.weight is not None and target.reward is not None
        log_prob = zero_absent(likelihood.total().log_prob, target.present)
        weight = target.weight.to(log_prob.dtype)
        values = {"reward": (target.reward, target.present), "advantage_size": (weight.abs(), target.present)}
        return Loss({"policy": -weight * log_prob}, means(values))


@dataclass(frozen=True, kw_only=True)
class REINFORCE(_Weighted):
    """Policy gradient with one baseline for all.

    Args:
        baseline: "mean" takes the mean of the batch's other actions (so that no action is its own baseline), "none" 0.
    """

    baseline: Literal["mean", "none"] = "mean"

    def __post_init__(self) -> None:
        require_choice(("mean", "none"), baseline=self.baseline)

    def _baseline(self, reward: Float[Tensor, "N K"], present: Bool[Tensor, "N K"]) -> Float[Tensor, "N K"]:
        if self.baseline == "none":
            return torch.zeros_like(reward)
        return leave_one_out(reward.reshape(1, -1), present.reshape(1, -1)).view_as(reward)


@dataclass(frozen=True, kw_only=True)
class RLOO(_Weighted):
    """REINFORCE whose baseline is the mean of the context's other actions; K >= 2."""

    def _baseline(self, reward: Float[Tensor, "N K"], present: Bool[Tensor, "N K"]) -> Float[Tensor, "N K"]:
        return leave_one_out(reward, present)


@dataclass(frozen=True, kw_only=True)
class CoPG(_OnRewards):
    """Contrastive policy gradient.

    Args:
        beta: how strongly the policy is held to the reference, > 0, in the reward's unit.
    """

    beta: float = 0.1

    def __post_init__(self) -> None:
        require_positive(beta=self.beta)

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"log_prob", "ref_log_prob"})

    def prepare(self, batch: Batch, frozen: Likelihood | None) -> Target:
        require_feedback(self, batch.feedback)
        assert isinstance(batch.feedback, Rewards)
        pairs = rewards_to_pairs(batch.feedback, keep_ties=True)
        return Target(present=batch.present, size=float(max(len(pairs.gap), 1)), pairs=pairs)

    def __call__(self, likelihood: Likelihood, target: Target, state: Any = None) -> Loss:
        assert target.pairs is not None
        ratio = zero_absent(log_ratio(likelihood.total(), "CoPG"), target.present).flatten()
        first, second = target.pairs.index.unbind(-1)
        ratio_gap, reward_gap = ratio[first] - ratio[second], target.pairs.gap.to(ratio.dtype)
        every = torch.ones_like(ratio_gap, dtype=torch.bool)
        values = {"reward_gap": (reward_gap, every), "reward_margin": (self.beta * ratio_gap, every)}
        return Loss({"policy": copg_loss(ratio_gap, reward_gap, beta=self.beta)}, means(values))
