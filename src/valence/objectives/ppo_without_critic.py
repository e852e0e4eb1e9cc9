"""PPO's clipped ratio on each step, the action's reward itself as the advantage: no value network, no GAE.

    -(1 / |y|) sum_t min(rho_t A, clip(rho_t, 1 - eps, 1 + eps) A),   rho_t = pi(y_t | x, y_<t) / pi_t(y_t | x, y_<t)

Rewards are to come standardised (`valence.feedback.running`): A is taken as it is given.

Source: the REBEL paper's "PPO" for images, section 5.3 and H.3.3, after Black et al. 2024 (DDPO), Eq. 6. The mean is
over actions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from valence.objectives.common import count, means, old_log_prob, require_feedback, require_positive, step_mask
from valence.objectives.ppo import clipped_loss
from valence.types import Batch, Likelihood, Loss, Rewards, Target


@dataclass(frozen=True, kw_only=True)
class PPOWithoutCritic:
    """The objective of this file. Takes Rewards; needs `Batch.old_log_prob`.

    Args:
        clip: eps of the ratio, > 0.
    """

    clip: float = 0.2

    def __post_init__(self) -> None:
        require_positive(clip=self.clip)

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"log_prob"})

    @property
    def frozen_needs(self) -> frozenset[str]:
        return frozenset()

    @property
    def accepts(self) -> tuple[type, ...]:
        return (Rewards,)

    def state(self) -> None:
        return None

    def prepare(self, batch: Batch, frozen: Likelihood | None) -> Target:
        require_feedback(self, batch.feedback)
        assert isinstance(batch.feedback, Rewards)
        present, mask = batch.present, batch.action.mask & batch.present[..., None]
        advantage = torch.where(mask, batch.feedback.value[..., None], 0.0)
        old = old_log_prob(batch, "PPO")
        return Target(present=present, size=count(present), old_log_prob=old, advantage=advantage)

    def __call__(self, likelihood: Likelihood, target: Target, state: Any = None) -> Loss:
        assert target.old_log_prob is not None and target.advantage is not None
        mask = step_mask(likelihood, "PPO") & target.present[..., None]
        ratio = torch.where(mask, likelihood.log_prob - target.old_log_prob, 0.0).exp()
        loss: Tensor = clipped_loss(ratio, target.advantage.to(ratio.dtype), clip=self.clip)
        clipped = ((ratio - 1).abs() > self.clip).to(ratio.dtype)
        steps = mask.sum(-1).clamp(min=1)
        return Loss({"policy": torch.where(mask, loss, 0.0).sum(-1) / steps}, means({"clipped": (clipped, mask)}))
