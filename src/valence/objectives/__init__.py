"""One file a paper: the equation, the pure unreduced functions, and the frozen dataclass that the learner calls."""

from valence.objectives.apa import APA, apa_loss
from valence.objectives.dpo import DPO, IPO, RPO, IPOAppendixE, dpo_loss, ipo_appendix_e_loss, ipo_loss, rpo_loss
from valence.objectives.dro import DRO, dro_best_value, dro_policy_loss, dro_residual, dro_value_loss
from valence.objectives.grpo import GRPO, group_advantages
from valence.objectives.kto import KTO, kto_baseline, kto_loss
from valence.objectives.pmpo import (
    PMPO,
    class_fractions,
    pmpo_a,
    pmpo_ar,
    pmpo_beta,
    pmpo_loss,
    pmpo_r,
    pmpo_score_weights,
    pmpo_weights,
)
from valence.objectives.policy_gradient import REINFORCE, RLOO, CoPG, copg_loss, leave_one_out
from valence.objectives.ppo import PPO, clipped_loss, clipped_value_loss, step_advantages
from valence.objectives.ppo_without_critic import PPOWithoutCritic
from valence.objectives.rebel import REBEL, rebel_loss
from valence.objectives.scaled import ScaledLogProb
from valence.objectives.supervised import Supervised, supervised_loss

__all__ = [
    "APA",
    "DPO",
    "DRO",
    "GRPO",
    "IPO",
    "KTO",
    "PMPO",
    "PPO",
    "REBEL",
    "REINFORCE",
    "RLOO",
    "RPO",
    "CoPG",
    "IPOAppendixE",
    "PPOWithoutCritic",
    "ScaledLogProb",
    "Supervised",
    "apa_loss",
    "class_fractions",
    "clipped_loss",
    "clipped_value_loss",
    "copg_loss",
    "dpo_loss",
    "dro_best_value",
    "dro_policy_loss",
    "dro_residual",
    "dro_value_loss",
    "group_advantages",
    "ipo_appendix_e_loss",
    "ipo_loss",
    "kto_baseline",
    "kto_loss",
    "leave_one_out",
    "pmpo_a",
    "pmpo_ar",
    "pmpo_beta",
    "pmpo_loss",
    "pmpo_r",
    "pmpo_score_weights",
    "pmpo_weights",
    "rebel_loss",
    "rpo_loss",
    "step_advantages",
    "supervised_loss",
]
