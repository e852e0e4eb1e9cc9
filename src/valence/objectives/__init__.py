"""One file a paper: the equation, the pure unreduced functions, and the frozen dataclass that the learner calls."""

from valence.objectives.dpo import DPO, IPO, RPO, IPOAppendixE, dpo_loss, ipo_appendix_e_loss, ipo_loss, rpo_loss
from valence.objectives.dro import DRO, dro_best_value, dro_policy_loss, dro_residual, dro_value_loss
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
from valence.objectives.rebel import REBEL, rebel_loss
from valence.objectives.supervised import Supervised, supervised_loss

__all__ = [
    "DPO",
    "DRO",
    "IPO",
    "KTO",
    "PMPO",
    "REBEL",
    "RPO",
    "IPOAppendixE",
    "Supervised",
    "class_fractions",
    "dpo_loss",
    "dro_best_value",
    "dro_policy_loss",
    "dro_residual",
    "dro_value_loss",
    "ipo_appendix_e_loss",
    "ipo_loss",
    "kto_baseline",
    "kto_loss",
    "pmpo_a",
    "pmpo_ar",
    "pmpo_beta",
    "pmpo_loss",
    "pmpo_r",
    "pmpo_score_weights",
    "pmpo_weights",
    "rebel_loss",
    "rpo_loss",
    "supervised_loss",
]
