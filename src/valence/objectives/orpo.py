"""ORPO: fine-tune on the better action, and raise its odds over the worse one's. No reference.

    minimise  -log P(y_w|x) - weight log sigmoid(log odds(y_w|x) - log odds(y_l|x))
    P(y|x) = exp(log pi(y|x) / |y|),   odds = P / (1 - P)

Source: Hong et al. 2024, "ORPO: monolithic preference optimization without reference model", arXiv 2403.07691, Eq. 3-7.
Units: nats; log pi is a sum over an action's steps, divided here by their number |y|, as the paper's Eq. 1 is.

The first term is a mean over steps, as in the paper, where `Supervised` has a sum.

Departs from the paper: all pairs of a context with many actions are formed; ties are dropped; log P is kept below
-1e-6, where the odds would be infinite.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import logsigmoid

from valence.objectives import common
from valence.objectives.common import PairTarget, PerPair
from valence.types import Likelihood, Loss

LARGEST_LOG_PROB = -1e-6
"""Mean log-probabilities of a step are kept below it, nats."""


def log_odds(mean_log_prob: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """log(P / (1 - P)) of P = exp(mean log-probability of a step), nats."""
    bounded = mean_log_prob.clamp(max=LARGEST_LOG_PROB)
    return bounded - torch.log(-torch.expm1(bounded))


def orpo_loss(better: PerPair, worse: PerPair, *, weight: float) -> PerPair:
    """Negative log-likelihood of a step of the better action, plus the weighted odds-ratio term.

    Args:
        better: mean log pi of a step of the better action, nats. Differentiable.
        worse: the same of the worse action. Differentiable.
        weight: lambda, >= 0.
    """
    return -better - weight * logsigmoid(log_odds(better) - log_odds(worse))


@dataclass(frozen=True, kw_only=True)
class ORPO(common.PairObjective):
    """Odds ratio preference optimization. Accepts `Preferences`, and `Rewards`, of which the higher is better.

    Args:
        odds_weight: Weight lambda of the odds-ratio term against the supervised one, at least 0. The paper takes 0.1.
    """

    odds_weight: float = 0.1
    needs: ClassVar[frozenset[str]] = frozenset({"log_prob"})
    keep_ties: ClassVar[bool] = False

    def __post_init__(self) -> None:
        common.require_non_negative(odds_weight=self.odds_weight)

    def __call__(self, likelihood: Likelihood, target: PairTarget) -> Loss:
        better, worse = self.pair_step_means(likelihood, target)
        gap = log_odds(better) - log_odds(worse)
        metrics = common.pair_means(
            accepted_step_log_prob=better, rejected_step_log_prob=worse, reward_accuracy=(gap > 0).to(gap.dtype),
            log_odds_ratio=gap,
        )  # fmt: skip
        return Loss({"policy": orpo_loss(better, worse, weight=self.odds_weight)}, metrics)
