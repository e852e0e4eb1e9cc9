"""SimPO: the mean log-probability of a step is the reward, and the better action must lead by a margin. No reference.

    minimise  -log sigmoid(beta log pi(y_w|x) / |y_w| - beta log pi(y_l|x) / |y_l| - gamma)

Source: Meng et al. 2024, "SimPO: simple preference optimization with a reference-free reward", arXiv 2405.14734, Eq. 6.
Units: nats; log pi is a sum over an action's steps, divided here by their number |y|. beta is per nat.

Nothing holds the policy near its start: watch its KL. The defaults are those of the paper's base models.

Departs from the paper: all pairs of a context with many actions are formed; ties are dropped.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import logsigmoid

from valence.objectives.common import (
    Defaults,
    PairTarget,
    means,
    pair_target,
    require_non_negative,
    require_positive,
    step_mask,
    zero_absent,
)
from valence.types import Batch, Likelihood, Loss, Preferences, Rewards


def simpo_loss(gap: Float[Tensor, " P"], *, beta: float, gamma: float) -> Float[Tensor, " P"]:
    """Logistic loss of the reward gap beyond its margin.

    Args:
        gap: mean log pi of a step of the better action minus that of the worse, nats. Differentiable.
        beta: scale of the reward, per nat, > 0.
        gamma: target margin, in units of beta times nats, >= 0.
    """
    return -logsigmoid(beta * gap - gamma)


@dataclass(frozen=True, kw_only=True)
class SimPO(Defaults):
    """Simple preference optimization. Accepts `Preferences`, and `Rewards`, of which the higher is better.

    Args:
        beta: Scale of the reward, the mean log-probability of a step, per nat, above 0. The paper takes 2 to 10.
        gamma: Margin that the better action's reward must lead by, at least 0. The paper takes 0.3 to 1.6.
    """

    beta: float = 2.0
    gamma: float = 1.0
    needs: ClassVar[frozenset[str]] = frozenset({"log_prob"})
    accepts: ClassVar[tuple[type, ...]] = (Preferences, Rewards)

    def __post_init__(self) -> None:
        require_positive(beta=self.beta)
        require_non_negative(gamma=self.gamma)

    def prepare(self, batch: Batch, frozen: Likelihood | None) -> PairTarget:
        return pair_target(self, batch, keep_ties=False)

    def __call__(self, likelihood: Likelihood, target: PairTarget, state: Any = None) -> Loss:
        steps = step_mask(likelihood, "SimPO").sum(-1).clamp(min=1)
        mean = zero_absent(likelihood.total().log_prob, target.present).div(steps).flatten()
        better, worse = target.pairs.index.unbind(-1)
        gap = mean[better] - mean[worse]
        every = torch.ones_like(gap, dtype=torch.bool)
        values = {
            "accepted_step_log_prob": (mean[better], every),
            "rejected_step_log_prob": (mean[worse], every),
            "reward_accuracy": ((gap > 0).to(gap.dtype), every),
            "reward_margin": (self.beta * gap, every),
        }
        return Loss({"policy": simpo_loss(gap, beta=self.beta, gamma=self.gamma)}, means(values))
