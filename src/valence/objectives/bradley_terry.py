"""Bradley-Terry: what a reward model minimises on comparisons, and what it minimises on scores.

    pairs   -p log sigmoid(r_1 - r_2) - (1 - p) log sigmoid(r_2 - r_1),   p = P(first beats second)
    scores  (r - s)^2

Source: Bradley and Terry 1952; as a reward model's loss, Ouyang et al. 2022, Eq. 1. Units: r in nats of log-odds, where
it is fitted to comparisons; in the scores' unit otherwise.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import logsigmoid


def bradley_terry_loss(gap: Float[Tensor, " P"], win: Float[Tensor, " P"] | float = 1.0) -> Float[Tensor, " P"]:
    """The negative log-likelihood of each comparison, nats.

    Args:
        gap: r_1 - r_2. Differentiable.
        win: the probability that the first is better, in [0, 1]; 1/2 is a tie.
    """
    return -win * logsigmoid(gap) - (1 - win) * logsigmoid(-gap)


def score_loss(reward: Float[Tensor, " P"], score: Float[Tensor, " P"]) -> Float[Tensor, " P"]:
    """The squared error of each score."""
    return (reward - score).square()
