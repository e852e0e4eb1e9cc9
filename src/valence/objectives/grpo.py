"""GRPO: PPO's clipped ratio with the group's standardised reward for an advantage, and a KL penalty a step.

    A_i = (r_i - mean r) / (std r + 1e-6)    over the K actions of a context, the same for all steps of an action
    (1 / |y_i|) sum_t ( -min(rho_t A_i, clip(rho_t) A_i) + beta (e^{-u_t} + u_t - 1) ),     u_t = log(pi / pi_ref)

The last term is an unbiased estimate of KL(pi || pi_ref) at a sampled step that is never negative.

Source: Shao et al. 2024, "DeepSeekMath", Eq. 3 and 4. The mean is over actions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from valence.objectives.common import (
    count,
    log_ratio,
    means,
    old_log_prob,
    require_feedback,
    require_non_negative,
    require_positive,
    step_mask,
    zero_absent,
)
from valence.objectives.ppo import clipped_loss
from valence.types import Batch, Likelihood, Loss, Rewards, Target


def group_advantages(reward: Float[Tensor, "N K"], present: Bool[Tensor, "N K"]) -> Float[Tensor, "N K"]:
    """Rewards to mean 0 and deviation 1 within each context (the sample's deviation); 0 where a group has no spread."""
    known, members = zero_absent(reward, present), present.sum(-1, keepdim=True)
    away = zero_absent(known - known.sum(-1, keepdim=True) / members.clamp(min=1), present)
    deviation = (away.square().sum(-1, keepdim=True) / (members - 1).clamp(min=1)).sqrt()
    return away / (deviation + 1e-6)


@dataclass(frozen=True, kw_only=True)
class GRPO:
    """The objective of this file. Takes Rewards; needs `Batch.old_log_prob`.

    Args:
        clip: eps of the ratio, > 0.
        beta: weight of the KL penalty, >= 0; with 0 no reference is needed.
    """

    clip: float = 0.2
    beta: float = 0.04

    def __post_init__(self) -> None:
        require_positive(clip=self.clip)
        require_non_negative(beta=self.beta)

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"log_prob", "ref_log_prob"} if self.beta else {"log_prob"})

    @property
    def frozen_needs(self) -> frozenset[str]:
        return frozenset()

    @property
    def accepts(self) -> tuple[type, ...]:
        return (Rewards,)

    def state(self) -> None:
        return None

    def advantages(self, reward: Float[Tensor, "N K"], present: Bool[Tensor, "N K"]) -> Float[Tensor, "N K"]:
        """A of each action, from its reward."""
        return group_advantages(reward, present)

    def prepare(self, batch: Batch, frozen: Likelihood | None) -> Target:
        require_feedback(self, batch.feedback)
        assert isinstance(batch.feedback, Rewards)
        present, old = batch.present, old_log_prob(batch, type(self).__name__)
        advantage = self.advantages(batch.feedback.value, present)[..., None] * batch.action.mask
        return Target(
            present=present, size=count(present), old_log_prob=old, advantage=advantage,
            reward=zero_absent(batch.feedback.value, present),
        )  # fmt: skip

    def __call__(self, likelihood: Likelihood, target: Target, state: Any = None) -> Loss:
        assert target.old_log_prob is not None and target.advantage is not None and target.reward is not None
        mask = step_mask(likelihood, type(self).__name__) & target.present[..., None]
        ratio = torch.where(mask, likelihood.log_prob - target.old_log_prob, 0.0).exp()
        loss = clipped_loss(ratio, target.advantage.to(ratio.dtype), clip=self.clip)
        values = {
            "clipped": (((ratio - 1).abs() > self.clip).to(ratio.dtype), mask),
            "reward": (target.reward, target.present),
        }
        if self.beta:
            gap = torch.where(mask, log_ratio(likelihood, "GRPO"), 0.0)
            penalty = (-gap).exp() + gap - 1
            loss = loss + self.beta * penalty
            values["kl_policy_ref_estimate"] = (penalty, mask)
        steps = mask.sum(-1).clamp(min=1)
        return Loss({"policy": torch.where(mask, loss, 0.0).sum(-1) / steps}, means(values))
