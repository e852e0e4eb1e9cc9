"""PPO on the steps of an action: a clipped ratio to the policy that collected it, and a value of its own.

    policy  -min(rho_t A_t, clip(rho_t, 1 - eps, 1 + eps) A_t),   rho_t = pi(y_t | x, y_<t) / pi_t(y_t | x, y_<t)
    value   c/2 max((V_t - G_t)^2, (V_t,old + clip(V_t - V_t,old, -eps, eps) - G_t)^2)

A_t is the generalised advantage estimate of the rewards that fall on the steps (see `Batch.step_reward`), G_t = A_t +
V_t,old; advantages have mean 0 and variance 1 over the collected batch's steps.

Source: Schulman et al. 2017, Eq. 7; the defaults are the REBEL paper's, appendix H.1.5. Units: rewards in their own.

The mean is over steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from valence.feedback import episode_advantages, on_last_step
from valence.objectives.common import (
    count,
    means,
    old_log_prob,
    part,
    require_feedback,
    require_fraction,
    require_non_negative,
    require_positive,
    step_mask,
)
from valence.types import Batch, Likelihood, Loss, Rewards, Target


def clipped_loss(
    ratio: Float[Tensor, "*#shape"], advantage: Float[Tensor, "*#shape"], *, clip: float
) -> Float[Tensor, "*shape"]:
    """-min(rho A, clip(rho) A).

    Args:
        ratio: rho = pi / pi_t. Differentiable.
        advantage: A. Constant.
        clip: eps, > 0.
    """
    return -torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage)


def clipped_value_loss(
    value: Float[Tensor, "*shape"], old: Float[Tensor, "*shape"], returns: Float[Tensor, "*shape"], *, clip: float
) -> Float[Tensor, "*shape"]:
    """Half the larger of the squared errors of V and of V held within `clip` of what it was."""
    held = old + (value - old).clamp(-clip, clip)
    return torch.maximum((value - returns).square(), (held - returns).square()) / 2


def step_rewards(batch: Batch) -> Float[Tensor, "N K T"]:
    """The rewards of a batch's steps: as collected, or all of it on each action's last step."""
    if batch.step_reward is not None:
        return batch.step_reward
    assert isinstance(batch.feedback, Rewards)
    return on_last_step(batch.feedback.value, batch.action.mask)


def step_advantages(
    batch: Batch, value: Float[Tensor, "N K T"], *, discount: float, trace: float
) -> tuple[Float[Tensor, "N K T"], Float[Tensor, "N K T"], Bool[Tensor, "N K T"]]:
    """(advantages, returns, which steps there are); every action ends, so nothing is worth anything after it."""
    mask = batch.action.mask & batch.present[..., None]
    value = torch.where(mask, value, 0.0)
    reward = torch.where(mask, step_rewards(batch).to(value.dtype), 0.0)
    flat = mask.flatten(0, 1)
    after = torch.nn.functional.pad(value.flatten(0, 1), (0, 1))
    ended = torch.ones(len(flat), dtype=torch.bool, device=flat.device)
    advantage = episode_advantages(reward.flatten(0, 1), after, flat, ended, discount=discount, trace=trace)
    advantage = advantage.view_as(value)
    return advantage, torch.where(mask, advantage + value, 0.0), mask


@dataclass(frozen=True, kw_only=True)
class PPO:
    """The objective of this file: terms "policy" and "value". Takes Rewards; needs `Batch.old_log_prob`.

    Args:
        clip: eps of the ratio, > 0.
        value_clip: eps of the value, > 0, in the reward's unit.
        value_weight: c, >= 0.
        discount: gamma, in [0, 1].
        trace: lambda of the advantage estimate, in [0, 1].
        whiten: advantages to mean 0 and variance 1 over the collected batch.
    """

    clip: float = 0.2
    value_clip: float = 0.2
    value_weight: float = 0.1
    discount: float = 1.0
    trace: float = 0.95
    whiten: bool = True

    def __post_init__(self) -> None:
        require_positive(clip=self.clip, value_clip=self.value_clip)
        require_non_negative(value_weight=self.value_weight)
        require_fraction(discount=self.discount, trace=self.trace)

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"log_prob", "value"})

    @property
    def frozen_needs(self) -> frozenset[str]:
        return frozenset({"value"})

    @property
    def accepts(self) -> tuple[type, ...]:
        return (Rewards,)

    def state(self) -> None:
        return None

    def prepare(self, batch: Batch, frozen: Likelihood | None) -> Target:
        require_feedback(self, batch.feedback)
        old, value = old_log_prob(batch, "PPO"), part(frozen, "value", "PPO")
        advantage, returns, mask = step_advantages(batch, value, discount=self.discount, trace=self.trace)
        if self.whiten and int(mask.sum()) > 1:
            known = advantage[mask]
            advantage = torch.where(mask, (advantage - known.mean()) / (known.std() + 1e-8), 0.0)
        return Target(
            present=batch.present, size=count(mask), old_log_prob=old, advantage=advantage, returns=returns,
            old_value=torch.where(mask, value, 0.0), steps=mask.sum(-1),
        )  # fmt: skip

    def __call__(self, likelihood: Likelihood, target: Target, state: Any = None) -> Loss:
        assert target.old_log_prob is not None and target.advantage is not None
        assert target.returns is not None and target.old_value is not None
        mask = step_mask(likelihood, "PPO") & target.present[..., None]
        ratio = torch.where(mask, likelihood.log_prob - target.old_log_prob, 0.0).exp()
        value = torch.where(mask, part(likelihood, "value", "PPO"), 0.0)
        policy = clipped_loss(ratio, target.advantage, clip=self.clip)
        critic = clipped_value_loss(value, target.old_value, target.returns, clip=self.value_clip)
        values = {
            "clipped": (((ratio - 1).abs() > self.clip).to(ratio.dtype), mask),
            "value": (value, mask),
            "returns": (target.returns, mask),
        }
        terms = {
            "policy": torch.where(mask, policy, 0.0).sum(-1),
            "value": self.value_weight * torch.where(mask, critic, 0.0).sum(-1),
        }
        return Loss(terms, means(values))
