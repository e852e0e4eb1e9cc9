"""PPO without a value network: the clipped ratio on each step, with the action's reward as its advantage.

    -(1 / |y|) sum_t min(rho_t A, clip(rho_t, 1 - eps, 1 + eps) A),   rho_t = pi(y_t | x, y_<t) / pi_t(y_t | x, y_<t)

It is GRPO's loss without its KL. Rewards are not changed: standardise them first (`valence.feedback.running`). As in
GRPO, log rho_t is bounded to +-20 nats.

Source: the REBEL paper's "PPO" for images, section 5.3 and H.3.3, after Black et al. 2024 (DDPO), Eq. 6. The mean is
over actions. Units: rewards in their own.
"""

from __future__ import annotations

from dataclasses import dataclass

from valence.objectives.common import PerAction, Present
from valence.objectives.grpo import GRPO


@dataclass(frozen=True, kw_only=True)
class PPOWithoutCritic(GRPO):
    """PPO without a critic as a frozen dataclass. Accepts `Rewards`; needs `Batch.old_log_prob`.

    Args:
        beta: Weight of GRPO's KL penalty of each step, at least 0. The default 0 has no penalty and needs no reference.
    """

    beta: float = 0.0

    def advantages(self, reward: PerAction, present: Present) -> PerAction:
        """The rewards as they are."""
        return reward
