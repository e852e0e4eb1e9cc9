"""APA: regress each step's log-ratio to the reference on its advantage.

    policy  (log(pi(y_t | x, y_<t) / pi_ref(y_t | x, y_<t)) - A_t / lambda)^2,     value  c/2 (V_t - G_t)^2

The policy term is 0 at pi_ref e^{A / lambda}, whose normaliser is taken to be 1. A_t and G_t are PPO's.

Source: Zhu et al. 2023, "Fine-tuning language models with advantage-induced policy alignment". Units: lambda in the
reward's. The mean is over steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from valence.objectives import common
from valence.objectives.common import Each
from valence.objectives.ppo import StepObjective, StepTarget
from valence.types import Batch, Likelihood, Loss


def apa_loss(ratio: Each, advantage: Each, *, temperature: float) -> Float[Tensor, "*shape"]:
    """(log(pi / pi_ref) - A / lambda)^2, in squared nats."""
    return (ratio - advantage / temperature).square()


@dataclass(frozen=True, kw_only=True)
class APA(StepObjective):
    """APA as a frozen dataclass, with terms "policy" and "value". Accepts `Rewards`.

    Args:
        advantage_temperature: The advantage that may move a step's log-ratio by one nat (lambda), in the reward's unit,
            above 0. A larger value stays closer to the reference.
    """

    advantage_temperature: float = 0.1
    needs: ClassVar[frozenset[str]] = frozenset({"log_prob", "ref_log_prob", "value"})

    def __post_init__(self) -> None:
        super().__post_init__()
        common.require_positive(advantage_temperature=self.advantage_temperature)

    def prepare(self, batch: Batch, frozen: Likelihood | None) -> StepTarget:
        return self.step_target(batch, frozen)

    def __call__(self, likelihood: Likelihood, target: StepTarget) -> Loss:
        ratio = torch.where(target.mask, common.log_ratio(likelihood, "APA"), 0.0)
        value = torch.where(target.mask, common.part(likelihood, "value", "APA"), 0.0)
        policy = apa_loss(ratio, target.advantage, temperature=self.advantage_temperature)
        critic = (value - target.returns).square() / 2
        return self.loss(policy, critic, value, target, {})
