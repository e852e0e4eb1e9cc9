"""DRO: make reward minus value equal to the policy's log-ratio, one action at a time.

    delta = r(x, y) - V(x) - tau log(pi(y|x) / pi_ref(y|x)),   minimise  E[delta^2] / 2   (Eq. 4)

It is 0 only at pi* = pi_ref e^{r / tau} / e^{V* / tau}, V* = tau log E_ref[e^{r / tau}] (Theorem 1).

Source: "Offline regularised reinforcement learning for large language models alignment" (DRO), Eq. 4, 7, 8.
Units: r, V and tau in the reward's unit; log-ratios in nats, summed over steps.

Departs from the paper:
- Algorithm 1 as printed drops a tau in its second term (the squared log-ratio's). We follow Eq. 8, rescaled by 1 / tau
  as the paper's text says: the policy term is delta^2 / (2 tau), whose gradient is -delta grad log pi.
- The paper does not define its "one value per token". We read it so: V(x, y_<t) predicts the reward less the KL cost
  of the steps from t on, delta_t = r - V_t - tau sum_{s >= t} log-ratio_s. Both terms are means over the action's
  tokens.
- V can also be solved in closed form from the batch (Proposition 1 and the remark after it) instead of learned.
- The expectation is a mean over actions, where Algorithm 1 has 1 / B and Eq. 7 and 8 have sums.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from valence.feedback.conversions import labels_to_rewards
from valence.objectives import common
from valence.objectives.common import Each, PerAction, Present
from valence.types import PER_CONTEXT, Batch, Labels, Likelihood, Loss, Rewards, Target, sum_steps


def dro_residual(reward: Each, value: Each, ratio: Each, *, tau: float) -> Float[Tensor, "*shape"]:
    """delta = r - V - tau log(pi / pi_ref), in the reward's unit."""
    return reward - value - tau * ratio


def dro_value_loss(reward: Each, value: Each, ratio: Each, *, tau: float) -> Float[Tensor, "*shape"]:
    """delta^2 / 2 with log-ratios constant: its gradient in V is Eq. 7."""
    return dro_residual(reward, value, ratio.detach(), tau=tau).square() / 2


def dro_policy_loss(reward: Each, value: Each, ratio: Each, *, tau: float) -> Float[Tensor, "*shape"]:
    """delta^2 / (2 tau) with V constant: its gradient in the policy is Eq. 8 times 1 / tau."""
    return dro_residual(reward, value.detach(), ratio, tau=tau).square() / (2 * tau)


def dro_best_value(
    reward: PerAction, ratio: PerAction, present: Present, *, tau: float, per_prompt: bool
) -> Float[Tensor, "..."]:
    """The V that minimises the loss for a fixed policy: the mean of r - tau log(pi / pi_ref) (Proposition 1).

    Returns:
        `[N, 1]`, each prompt's own mean, or `[]`, the best constant.
    """
    left = common.zero_absent(reward - tau * ratio, present)
    if per_prompt:
        return left.sum(-1, keepdim=True) / present.sum(-1, keepdim=True).clamp(min=1)
    return left.sum() / present.sum().clamp(min=1)


LEARNED = ("token", "prompt", "batch")
"""The values that a critic learns; the others are solved in closed form."""
SOLVED = ("prompt-mean", "batch-mean")
RATIO = frozenset({"log_prob", "ref_log_prob"})


@dataclass(frozen=True, kw_only=True)
class DROTarget(Target):
    """What DRO makes of feedback.

    Args:
        reward: r, 0 where absent, `[N, K]`.
        value: V of each context, `[N, 1]`; None where a critic learns it.
    """

    reward: PerAction = field(metadata=PER_CONTEXT)
    value: Float[Tensor, "N 1"] | None = field(default=None, metadata=PER_CONTEXT)


@dataclass(frozen=True, kw_only=True)
class DRO(common.Defaults):
    """DRO as a frozen dataclass, with the term "policy" and, where V is learned, "value" for an optimizer of its own.

    Accepts `Rewards` (standardise them over the data set first, as the paper does), and `Labels` as rewards +1 and -1.

    Args:
        tau: Temperature: how strongly the policy is held to the reference, in the reward's unit, above 0.
        value: What the value V is one number for. "token", "prompt" and "batch" learn it with a critic, for each step,
            each prompt, or all prompts together. "prompt-mean" and "batch-mean" solve it in closed form from each
            collected batch; "prompt-mean" needs prompts with two rewards.
    """

    tau: float = 1.0
    value: Literal["token", "prompt", "batch", "prompt-mean", "batch-mean"] = "token"
    accepts: ClassVar[tuple[type, ...]] = (Rewards, Labels)

    def __post_init__(self) -> None:
        common.require_positive(tau=self.tau)
        common.require_choice((*LEARNED, *SOLVED), value=self.value)

    @property
    def needs(self) -> frozenset[str]:
        return RATIO | {"value"} if self.value in LEARNED else RATIO

    @property
    def frozen_needs(self) -> frozenset[str]:
        return frozenset() if self.value in LEARNED else RATIO

    def prepare(self, batch: Batch, frozen: Likelihood | None) -> DROTarget:
        common.require_feedback(self, batch.feedback)
        rewards = labels_to_rewards(batch.feedback) if isinstance(batch.feedback, Labels) else batch.feedback
        assert isinstance(rewards, Rewards)
        reward, present = common.zero_absent(rewards.value, rewards.present), rewards.present
        if self.value in LEARNED:
            return DROTarget(present=present, reward=reward)
        per_prompt = self.value == "prompt-mean"
        # V would make every delta 0.
        if per_prompt and int(present.sum(-1).amax()) < 2:
            raise ValueError('`value="prompt-mean"` needs a prompt with two rewards: use "batch-mean" or "token"')
        common.part(frozen, "log_prob", f'DRO with `value="{self.value}"`')
        assert frozen is not None
        ratio = common.zero_absent(common.log_ratio(frozen.total(), "DRO").detach(), present)
        best = dro_best_value(reward.to(ratio.dtype), ratio, present, tau=self.tau, per_prompt=per_prompt)
        return DROTarget(present=present, reward=reward, value=best.expand(len(present), 1))

    def __call__(self, likelihood: Likelihood, target: DROTarget) -> Loss:
        present = target.present
        total_ratio = common.zero_absent(common.log_ratio(likelihood.total(), "DRO"), present)
        reward = target.reward.to(total_ratio.dtype)
        values = {"implicit_reward": (self.tau * total_ratio, present), "reward": (reward, present)}
        if target.value is not None:
            loss = dro_policy_loss(reward, target.value.to(total_ratio.dtype), total_ratio, tau=self.tau)
            return Loss({"policy": common.zero_absent(loss, present)}, common.means(values))
        value = common.part(likelihood, "value", "DRO")
        if value.ndim == 3:
            terms, value = self._per_step(likelihood, value, reward, present)
        else:
            value = common.zero_absent(value.expand_as(reward), present)
            terms = {
                "policy": common.zero_absent(dro_policy_loss(reward, value, total_ratio, tau=self.tau), present),
                "value": common.zero_absent(dro_value_loss(reward, value, total_ratio, tau=self.tau), present),
            }
        return Loss(terms, common.means(values | {"value": (value, present)}))

    def _per_step(
        self, likelihood: Likelihood, value: Tensor, reward: PerAction, present: Present
    ) -> tuple[dict[str, Tensor], PerAction]:
        """Both terms as means over each action's steps, and the mean value of each action."""
        mask = common.step_mask(likelihood, "DRO with a value per step") & present[..., None]
        steps = mask.sum(-1).clamp(min=1)
        ratio = torch.where(mask, common.log_ratio(likelihood, "DRO"), 0)
        to_come = ratio.flip(-1).cumsum(-1, dtype=torch.promote_types(ratio.dtype, torch.float32)).flip(-1)
        value = torch.where(mask, value, 0)
        each = reward[..., None]
        policy = torch.where(mask, dro_policy_loss(each, value, to_come, tau=self.tau), 0)
        critic = torch.where(mask, dro_value_loss(each, value, to_come, tau=self.tau), 0)
        terms = {"policy": sum_steps(policy) / steps, "value": sum_steps(critic) / steps}
        return terms, sum_steps(value) / steps
