"""APA: regress each step's log-ratio to the reference on its advantage.

    policy  (log(pi(y_t | x, y_<t) / pi_ref(y_t | x, y_<t)) - A_t / lambda)^2,     value  c/2 (V_t - G_t)^2

The policy term is 0 at pi_ref e^{A / lambda}, whose normaliser is taken to be 1. A_t and G_t are PPO's.

Source: Zhu et al. 2023, "Fine-tuning language models with advantage-induced policy alignment". Units: lambda in the
reward's. The mean is over steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from valence.objectives.common import (
    Defaults,
    log_ratio,
    means,
    part,
    require_feedback,
    require_fraction,
    require_non_negative,
    require_positive,
    step_mask,
)
from valence.objectives.ppo import StepTarget, step_advantages
from valence.types import Batch, Likelihood, Loss, Rewards, sum_steps


def apa_loss(
    ratio: Float[Tensor, "*#shape"], advantage: Float[Tensor, "*#shape"], *, temperature: float
) -> Float[Tensor, "*shape"]:
    """(log(pi / pi_ref) - A / lambda)^2, in squared nats."""
    return (ratio - advantage / temperature).square()


@dataclass(frozen=True, kw_only=True)
class APA(Defaults):
    """APA as a frozen dataclass, with terms "policy" and "value". Accepts `Rewards`.

    Args:
        advantage_temperature: The advantage that may move a step's log-ratio by one nat (lambda), in the reward's unit,
            above 0. A larger value stays closer to the reference.
        value_weight: Weight of the value loss against the policy loss, at least 0.
        discount: Discount factor of the rewards of later steps (gamma), from 0 to 1.
        gae_lambda: Lambda of the advantage estimate, from 0 to 1: 0 trusts the value of the next step, 1 the rewards
            alone.
    """

    advantage_temperature: float = 0.1
    value_weight: float = 0.1
    discount: float = 1.0
    gae_lambda: float = 0.95
    needs: ClassVar[frozenset[str]] = frozenset({"log_prob", "ref_log_prob", "value"})
    frozen_needs: ClassVar[frozenset[str]] = frozenset({"value"})
    accepts: ClassVar[tuple[type, ...]] = (Rewards,)

    def __post_init__(self) -> None:
        require_positive(advantage_temperature=self.advantage_temperature)
        require_non_negative(value_weight=self.value_weight)
        require_fraction(discount=self.discount, gae_lambda=self.gae_lambda)

    def prepare(self, batch: Batch, frozen: Likelihood | None) -> StepTarget:
        require_feedback(self, batch.feedback)
        value = part(frozen, "value", "APA").detach()
        advantage, returns, mask = step_advantages(batch, value, discount=self.discount, gae_lambda=self.gae_lambda)
        return StepTarget(present=batch.present, advantage=advantage, returns=returns, steps=mask.sum(-1))

    def __call__(self, likelihood: Likelihood, target: StepTarget, state: Any = None) -> Loss:
        mask = step_mask(likelihood, "APA") & target.present[..., None]
        ratio = torch.where(mask, log_ratio(likelihood, "APA"), 0.0)
        value = torch.where(mask, part(likelihood, "value", "APA"), 0.0)
        policy = apa_loss(ratio, target.advantage, temperature=self.advantage_temperature)
        critic = (value - target.returns).square() / 2
        terms = {
            "policy": sum_steps(torch.where(mask, policy, 0.0)),
            "value": self.value_weight * sum_steps(torch.where(mask, critic, 0.0)),
        }
        return Loss(terms, means({"value": (value, mask), "returns": (target.returns, mask)}))
