"""PPO on the steps of an action: a clipped ratio to the policy that collected it, and a learned value of each step.

    policy  -min(rho_t A_t, clip(rho_t, 1 - eps, 1 + eps) A_t),   rho_t = pi(y_t | x, y_<t) / pi_t(y_t | x, y_<t)
    value   c/2 max((V_t - G_t)^2, (V_t,old + clip(V_t - V_t,old, -eps, eps) - G_t)^2)

A_t is the generalised advantage estimate of the rewards of the steps (see `Batch.step_reward`), and G_t = A_t +
V_t,old. Advantages are whitened: mean 0 and variance 1 over the collected batch's steps, and exactly 0 where all of
them are equal.

Source: Schulman et al. 2017, Eq. 7; the defaults are the REBEL paper's, appendix H.1.5. Units: rewards in their own.
The mean is over steps.

Departs from the paper: log rho_t is bounded to +-20 nats, as in public code. Beyond the bound there is no gradient.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from valence.feedback.advantages import episode_advantages, on_last_step
from valence.objectives import common
from valence.objectives.common import Each
from valence.types import PER_CONTEXT, Batch, Likelihood, Loss, Rewards, Target, sum_steps

Values = dict[str, tuple[Tensor, Tensor]]
"""Name -> (value, mask), for `common.means`."""


def clipped_loss(ratio: Each, advantage: Each, *, clip: float) -> Float[Tensor, "*shape"]:
    """-min(rho A, clip(rho) A).

    Args:
        ratio: rho = pi / pi_t. Differentiable.
        advantage: A. Constant.
        clip: eps, > 0.
    """
    return -torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage)


def clipped_value_loss(value: Each, old: Each, returns: Each, *, clip: float) -> Float[Tensor, "*shape"]:
    """Half the larger of two squared errors: of V, and of V clipped to at most `clip` away from the old V."""
    clipped = old + (value - old).clamp(-clip, clip)
    return torch.maximum((value - returns).square(), (clipped - returns).square()) / 2


def step_rewards(batch: Batch) -> Float[Tensor, "N K T"]:
    """The rewards of a batch's steps: `Batch.step_reward`, or each action's reward on its last step."""
    if batch.step_reward is not None:
        return batch.step_reward
    assert isinstance(batch.feedback, Rewards)
    return on_last_step(batch.feedback.value, batch.action.mask)


def clipped_ratio(
    log_ratio: Float[Tensor, "N K T"], mask: Bool[Tensor, "N K T"], *, clip: float
) -> tuple[Float[Tensor, "N K T"], Values]:
    """rho_t of each step, 1 where no step is, and for `common.means` the share of steps that are clipped."""
    ratio = common.bounded_exp(torch.where(mask, log_ratio, 0.0))
    return ratio, {"clipped": (((ratio - 1).abs() > clip).to(ratio.dtype), mask)}


@dataclass(frozen=True, kw_only=True)
class StepTarget(Target):
    """The advantages, returns and values of an action's steps, 0 where no step is. Its `size` counts steps.

    Args:
        mask: which steps exist, `[N, K, T]`.
        advantage: A_t, `[N, K, T]`.
        returns: G_t, `[N, K, T]`.
        old_value: V_t before the update, `[N, K, T]`.
    """

    mask: Bool[Tensor, "N K T"] = field(metadata=PER_CONTEXT)
    advantage: Float[Tensor, "N K T"] = field(metadata=PER_CONTEXT)
    returns: Float[Tensor, "N K T"] = field(metadata=PER_CONTEXT)
    old_value: Float[Tensor, "N K T"] = field(metadata=PER_CONTEXT)

    def count(self) -> int:
        return int(self.mask.sum())


@dataclass(frozen=True, kw_only=True)
class PPOTarget(StepTarget):
    """A `StepTarget`, and log pi_t of each step, `[N, K, T]`."""

    old_log_prob: Float[Tensor, "N K T"] = field(metadata=PER_CONTEXT)


@dataclass(frozen=True, kw_only=True)
class StepObjective(common.Defaults):
    """What PPO and APA share: advantages of steps from a learned value, and its loss. Accepts `Rewards`.

    Args:
        value_weight: Weight of the value loss against the policy loss, at least 0.
        discount: Discount factor of the rewards of later steps (gamma), from 0 to 1.
        gae_lambda: Lambda of the advantage estimate, from 0 to 1: 0 trusts the value of the next step, 1 the rewards
            alone.
    """

    value_weight: float = 0.1
    discount: float = 1.0
    gae_lambda: float = 0.95
    frozen_needs: ClassVar[frozenset[str]] = frozenset({"value"})

    def __post_init__(self) -> None:
        common.require_non_negative(value_weight=self.value_weight)
        common.require_fraction(discount=self.discount, gae_lambda=self.gae_lambda)

    def step_target(self, batch: Batch, frozen: Likelihood | None) -> StepTarget:
        """The target without whitening. Every action ends, so the value after its last step is 0."""
        common.require_feedback(self, batch.feedback)
        value = common.part(frozen, "value", type(self).__name__).detach()
        mask = batch.action.mask & batch.present[..., None]
        value = torch.where(mask, value, 0.0)
        reward = torch.where(mask, step_rewards(batch).to(value.dtype), 0.0)
        flat = mask.flatten(0, 1)
        after = torch.nn.functional.pad(value.flatten(0, 1), (0, 1))
        ended = torch.ones(len(flat), dtype=torch.bool, device=flat.device)
        advantage = episode_advantages(
            reward.flatten(0, 1), after, flat, ended, discount=self.discount, gae_lambda=self.gae_lambda
        )
        advantage = advantage.view_as(value)
        returns = torch.where(mask, advantage + value, 0.0)
        return StepTarget(present=batch.present, mask=mask, advantage=advantage, returns=returns, old_value=value)

    def loss(self, policy: Tensor, critic: Tensor, value: Tensor, target: StepTarget, values: Values) -> Loss:
        """Both losses of each step, summed over the steps of an action; more `values` for `common.means`."""
        mask = target.mask
        terms = {
            "policy": sum_steps(torch.where(mask, policy, 0.0)),
            "value": self.value_weight * sum_steps(torch.where(mask, critic, 0.0)),
        }
        return Loss(terms, common.means(values | {"value": (value, mask), "returns": (target.returns, mask)}))


@dataclass(frozen=True, kw_only=True)
class PPO(StepObjective):
    """PPO as a frozen dataclass, with terms "policy" and "value". Accepts `Rewards`; needs `Batch.old_log_prob`.

    Args:
        clip: How far the ratio pi / pi_t of a step may leave 1 before it is clipped, above 0.
        value_clip: How far a step's value may move from what it was before it is clipped, in the reward's unit, above
            0.
        whiten: Whether to scale advantages to mean 0 and variance 1 over the collected batch.
    """

    clip: float = 0.2
    value_clip: float = 0.2
    whiten: bool = True
    needs: ClassVar[frozenset[str]] = frozenset({"log_prob", "value"})

    def __post_init__(self) -> None:
        super().__post_init__()
        common.require_positive(clip=self.clip, value_clip=self.value_clip)

    def prepare(self, batch: Batch, frozen: Likelihood | None) -> PPOTarget:
        parts = vars(self.step_target(batch, frozen))
        target = PPOTarget(**parts, old_log_prob=common.old_log_prob(batch, "PPO"))
        if not self.whiten or target.count() < 2:
            return target
        rows = target.advantage.reshape(1, -1), target.mask.reshape(1, -1)
        return replace(target, advantage=common.standard_scores(*rows, eps=1e-8).view_as(target.advantage))

    def __call__(self, likelihood: Likelihood, target: PPOTarget) -> Loss:
        mask = target.mask
        ratio, values = clipped_ratio(likelihood.log_prob - target.old_log_prob, mask, clip=self.clip)
        value = torch.where(mask, common.part(likelihood, "value", "PPO"), 0.0)
        policy = clipped_loss(ratio, target.advantage, clip=self.clip)
        critic = clipped_value_loss(value, target.old_value, target.returns, clip=self.value_clip)
        return self.loss(policy, critic, value, target, values)
