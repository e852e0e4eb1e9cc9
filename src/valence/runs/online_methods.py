"""From an online method's name to its objective, and what it is fed in place of the rewards."""

from __future__ import annotations

from functools import partial

from valence.feedback import (
    keep_best_worst,
    label_batch_mean,
    label_best_worst,
    label_group_mean,
    label_halves,
    label_threshold,
    preferences_to_self_play,
    rewards_to_preferences,
)
from valence.objectives import APA, DPO, GRPO, PMPO, PPO, REBEL, REINFORCE, RLOO, CoPG
from valence.protocols import Objective
from valence.runs.config import PRESET_ALPHA
from valence.runs.improve_config import OnlineConfig
from valence.runs.methods import PAPER_BETA
from valence.sources.online import Convert
from valence.types import Feedback, Rewards

LABELLING: dict[str, Convert] = {
    "halves": label_halves, "best-worst": label_best_worst, "group-mean": label_group_mean,
    "batch-mean": label_batch_mean,
}  # fmt: skip


def make_online_objective(online: OnlineConfig, collected: int = 0) -> Objective:
    """The objective of an online method for collected batch number `collected`, from 0: REBEL's eta may have a
    schedule, of which the last value stays."""
    method = online.method
    if method in ("rebel", "spo"):
        return REBEL(eta=online.etas[min(collected, len(online.etas) - 1)], anchor="old")
    if method == "iterative-dpo":
        return DPO(beta=float(online.beta or 0.05), anchor="old")
    if method == "pmpo":
        alpha = PRESET_ALPHA[online.preset] if online.preset else 0.5 if online.alpha is None else online.alpha
        if online.beta in (None, "auto"):
            return PMPO(alpha=alpha, beta=PAPER_BETA[alpha] if online.preset and online.beta is None else "auto")
        return PMPO(alpha=alpha, beta=float(online.beta or 0))
    if method == "ppo":
        return PPO(clip=online.clip, value_clip=online.value_clip, value_weight=online.value_weight, trace=online.trace)
    if method == "apa":
        return APA(temperature=online.temperature_of_advantage, value_weight=online.value_weight, trace=online.trace)
    if method == "copg":
        return CoPG(beta=float(online.beta or 0.1))
    if method == "grpo":
        beta = 0.04 if online.beta in (None, "auto") else float(online.beta or 0)
        return GRPO(clip=online.clip, beta=beta)
    return RLOO() if method == "rloo" else REINFORCE()


def make_conversion(online: OnlineConfig, *, compared: bool = False) -> Convert | None:
    """What the objective is fed in place of the rewards.

    Args:
        compared: the rewards are a pairwise judge's own comparisons, which SPO takes as they are: their order alone
            would be a ranking, and a cycle is none.
    """
    if online.method == "pmpo":
        fixed = partial(label_threshold, threshold=online.threshold)
        return fixed if online.labels == "threshold" else LABELLING[online.labels]
    if online.method == "spo" and not compared:

        def self_play(rewards: Rewards) -> Feedback:
            won = preferences_to_self_play(rewards_to_preferences(rewards))
            return keep_best_worst(won) if online.pairs == "best-worst" else won

        return self_play
    return keep_best_worst if online.pairs == "best-worst" else None
