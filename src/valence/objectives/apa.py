"""APA: regress each step's log-ratio to the reference on its advantage.

    policy  (log(pi(y_t | x, y_<t) / pi_ref(y_t | x, y_<t)) - A_t / lambda)^2,     value  c/2 (V_t - G_t)^2

whose zero is pi_ref e^{A / lambda}, with its normaliser taken to be 1. A_t and G_t are PPO's.

Source: Zhu et al. 2023, "Fine-tuning language models with advantage-induced policy alignment". Units: lambda in the
reward's. The mean is over steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from valence.objectives.common import (
    count,
    log_ratio,
    means,
    part,
    require_feedback,
    require_fraction,
    require_non_negative,
    require_positive,
    step_mask,
)
from valence.objectives.ppo import step_advantages
from valence.types import Batch, Likelihood, Loss, Rewards, Target


def apa_loss(
    ratio: Float[Tensor, "*#shape"], advantage: Float[Tensor, "*#shape"], *, temperature: float
) -> Float[Tensor, "*shape"]:
    """(log(pi / pi_ref) - A / lambda)^2, in squared nats."""
    return (ratio - advantage / temperature).square()


@dataclass(frozen=True, kw_only=True)
class APA:
    """The objective of this file: terms "policy" and "value". Takes Rewards.

    Args:
        temperature: lambda, > 0, in the reward's unit.
        value_weight: c, >= 0.
        discount, trace: gamma and lambda of the advantage estimate, in [0, 1].
    """

    temperature: float = 0.1
    value_weight: float = 0.1
    discount: float = 1.0
    trace: float = 0.95

    def __post_init__(self) -> None:
        require_positive(temperature=self.temperature)
        require_non_negative(value_weight=self.value_weight)
        require_fraction(discount=self.discount, trace=self.trace)

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"log_prob", "ref_log_prob", "value"})

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
        value = part(frozen, "value", "APA")
        advantage, returns, mask = step_advantages(batch, value, discount=self.discount, trace=self.trace)
        return Target(present=batch.present, size=count(mask), advantage=advantage, returns=returns, steps=mask.sum(-1))

    def __call__(self, likelihood: Likelihood, target: Target, state: Any = None) -> Loss:
        assert target.advantage is not None and target.returns is not None
        mask = step_mask(likelihood, "APA") & target.present[..., None]
        ratio = torch.where(mask, log_ratio(likelihood, "APA"), 0.0)
        value = torch.where(mask, part(likelihood, "value", "APA"), 0.0)
        policy = apa_loss(ratio, target.advantage, temperature=self.temperature)
        critic = (value - target.returns).square() / 2
        terms = {
            "policy": torch.where(mask, policy, 0.0).sum(-1),
            "value": self.value_weight * torch.where(mask, critic, 0.0).sum(-1),
        }
        return Loss(terms, means({"value": (value, mask), "returns": (target.returns, mask)}))
