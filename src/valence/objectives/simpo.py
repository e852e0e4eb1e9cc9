"""SimPO: the mean log-probability of a step is the reward, and the better action must lead by a margin. No reference.

    minimise  -log sigmoid(beta log pi(y_w|x) / |y_w| - beta log pi(y_l|x) / |y_l| - gamma)

Source: Meng et al. 2024, "SimPO: simple preference optimization with a reference-free reward", arXiv 2405.14734, Eq. 6.
Units: nats; log pi is a sum over an action's steps, divided here by their number |y|. beta is per nat.

Nothing holds the policy near its start: watch its KL. The defaults are those of the paper's base models.

Departs from the paper: all pairs of a context with many actions are formed; ties are dropped.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch.nn.functional import logsigmoid

from valence.objectives import common
from valence.objectives.common import PairTarget, PerPair
from valence.types import Likelihood, Loss


def simpo_loss(gap: PerPair, *, beta: float, gamma: float) -> PerPair:
    """Logistic loss of the reward gap beyond its margin.

    Args:
        gap: mean log pi of a step of the better action minus that of the worse, nats. Differentiable.
        beta: scale of the reward, per nat, > 0.
        gamma: target margin, in units of beta times nats, >= 0.
    """
    return -logsigmoid(beta * gap - gamma)


@dataclass(frozen=True, kw_only=True)
class SimPO(common.PairObjective):
    """Simple preference optimization. Accepts `Preferences`, and `Rewards`, of which the higher is better.

    Args:
        beta: Scale of the reward, the mean log-probability of a step, per nat, above 0. The paper takes 2 to 10.
        gamma: Margin that the better action's reward must lead by, at least 0. The paper takes 0.3 to 1.6.
    """

    beta: float = 2.0
    gamma: float = 1.0
    needs: ClassVar[frozenset[str]] = frozenset({"log_prob"})
    keep_ties: ClassVar[bool] = False

    def __post_init__(self) -> None:
        common.require_positive(beta=self.beta)
        common.require_non_negative(gamma=self.gamma)

    def __call__(self, likelihood: Likelihood, target: PairTarget) -> Loss:
        better, worse = self.pair_step_means(likelihood, target)
        gap = better - worse
        metrics = common.pair_means(
            accepted_step_log_prob=better, rejected_step_log_prob=worse, reward_accuracy=(gap > 0).to(gap.dtype),
            reward_margin=self.beta * gap,
        )  # fmt: skip
        return Loss({"policy": simpo_loss(gap, beta=self.beta, gamma=self.gamma)}, metrics)
