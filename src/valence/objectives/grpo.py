"""GRPO: PPO's clipped ratio with the group's standardised reward for an advantage, and a KL penalty a step.

    A_i = (r_i - mean r) / (std r + 1e-6)    over the K actions of a context, the same for all steps of an action
    (1 / |y_i|) sum_t ( -min(rho_t A_i, clip(rho_t) A_i) + beta (e^{-u_t} + u_t - 1) ),     u_t = log(pi / pi_ref)

The last term is an unbiased estimate of KL(pi || pi_ref) at a sampled step that is never negative.

Source: Shao et al. 2024, "DeepSeekMath", Eq. 3 and 4. The mean is over actions.

Departs from the paper:
- Log-ratios in an exponent are bounded, as in public code: log rho_t to +-20 nats, u_t from below to -20. Beyond the
  bound there is no gradient.
- A context whose rewards are all equal has advantages of exactly 0.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from valence.objectives import common
from valence.objectives.common import PerAction, Present
from valence.objectives.policy_gradient import AdvantageTarget
from valence.objectives.ppo import clipped_loss, clipped_ratio
from valence.types import PER_CONTEXT, Batch, Likelihood, Loss, Rewards, sum_steps


def group_advantages(reward: PerAction, present: Present) -> PerAction:
    """Rewards to mean 0 and sample deviation 1 within each context; exactly 0 where a context has no spread."""
    return common.standard_scores(reward, present, eps=1e-6)


@dataclass(frozen=True, kw_only=True)
class GRPOTarget(AdvantageTarget):
    """An `AdvantageTarget`, and log pi_t of each step, `[N, K, T]`."""

    old_log_prob: Float[Tensor, "N K T"] = field(metadata=PER_CONTEXT)


@dataclass(frozen=True, kw_only=True)
class GRPO(common.Defaults):
    """GRPO as a frozen dataclass. Accepts `Rewards`; needs `Batch.old_log_prob`.

    Args:
        clip: How far the ratio pi / pi_t of a step may leave 1 before it is clipped, above 0.
        beta: Weight of the KL penalty of each step, at least 0. With 0 no reference is needed.
    """

    clip: float = 0.2
    beta: float = 0.04

    def __post_init__(self) -> None:
        common.require_positive(clip=self.clip)
        common.require_non_negative(beta=self.beta)

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"log_prob", "ref_log_prob"} if self.beta else {"log_prob"})

    def advantages(self, reward: PerAction, present: Present) -> PerAction:
        """A of each action, from its reward."""
        return group_advantages(reward, present)

    def prepare(self, batch: Batch, frozen: Likelihood | None) -> GRPOTarget:
        common.require_feedback(self, batch.feedback)
        assert isinstance(batch.feedback, Rewards)
        present, old = batch.present, common.old_log_prob(batch, type(self).__name__)
        reward = common.zero_absent(batch.feedback.value, present)
        advantage = self.advantages(reward, present)
        return GRPOTarget(present=present, reward=reward, advantage=advantage, old_log_prob=old)

    def __call__(self, likelihood: Likelihood, target: GRPOTarget) -> Loss:
        mask = common.step_mask(likelihood, type(self).__name__) & target.present[..., None]
        ratio, values = clipped_ratio(likelihood.log_prob - target.old_log_prob, mask, clip=self.clip)
        loss = clipped_loss(ratio, target.advantage[..., None].to(ratio.dtype), clip=self.clip)
        values["reward"] = (target.reward, target.present)
        if self.beta:
            gap = torch.where(mask, common.log_ratio(likelihood, "GRPO"), 0.0).clamp(min=-common.LARGEST_LOG_RATIO)
            penalty = (-gap).exp() + gap - 1
            loss = loss + self.beta * penalty
            values["kl_policy_ref_estimate"] = (penalty, mask)
        steps = mask.sum(-1).clamp(min=1)
        return Loss({"policy": sum_steps(torch.where(mask, loss, 0.0)) / steps}, common.means(values))
