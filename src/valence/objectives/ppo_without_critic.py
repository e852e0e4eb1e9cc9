"""PPO's clipped ratio on each step, the action's reward itself as the advantage: no value network, no GAE.

    -(1 / |y|) sum_t min(rho_t A, clip(rho_t, 1 - eps, 1 + eps) A),   rho_t = pi(y_t | x, y_<t) / pi_t(y_t | x, y_<t)

GRPO's loss without its KL, on rewards as they are given: they are to come standardised (`valence.feedback.running`).

Source: the REBEL paper's "PPO" for images, section 5.3 and H.3.3, after Black et al. 2024 (DDPO), Eq. 6. The mean is
over actions.
"""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Bool, Float
from torch import Tensor

from valence.objectives.common import zero_absent
from valence.objectives.grpo import GRPO


@dataclass(frozen=True, kw_only=True)
class PPOWithoutCritic(GRPO):
    """The objective of this file. Takes Rewards; needs `Batch.old_log_prob`.

    Args:
        clip, beta: as GRPO's; no KL penalty by default.
    """

    beta: float = 0.0

    def advantages(self, reward: Float[Tensor, "N K"], present: Bool[Tensor, "N K"]) -> Float[Tensor, "N K"]:
        return zero_absent(reward, present)
