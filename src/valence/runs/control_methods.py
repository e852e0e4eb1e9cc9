"""From a control run's settings to its objective, and to the labels that its critic's values become."""

from __future__ import annotations

import math
from collections.abc import Callable

from valence.errors import UserError
from valence.feedback.conversions import labels_to_preferences
from valence.feedback.labelling import label_best_worst, label_group_mean, label_ranked
from valence.objectives import DPO, PMPO, REBEL
from valence.objectives.mpo import MPO
from valence.objectives.pmpo import pmpo_beta
from valence.protocols import Objective
from valence.runs.config import PRESET_ALPHA
from valence.runs.control_config import AgentConfig, ControlConfig, ImproveConfig
from valence.sources.control import Labelling
from valence.types import Feedback, Rewards

PRESET_BETA = {"ar": 0.5, "a": 0.0, "r": 2.0}
"""The paper's."""


def make_objective(
    config: ImproveConfig, agent: AgentConfig, action_size: int = 1
) -> tuple[Objective, Labelling | None]:
    """The objective, and how the critic's values become the feedback that it takes."""
    gaussian = agent.policy == "gaussian"
    if config.method == "mpo":
        # Neither a squashed mean nor a bin can leave the bounds: there is nothing to penalise.
        objective = MPO(
            epsilon=config.epsilon, epsilon_mean=config.epsilon_mean * action_size,
            epsilon_covariance=config.epsilon_covariance * action_size, epsilon_penalty=0.0, decoupled=gaussian,
        )  # fmt: skip
        return objective, None
    if config.method == "rebel":
        return REBEL(eta=config.eta), None
    if config.method == "dpo":
        return DPO(beta=1.0 if config.beta in (None, "auto") else float(config.beta)), _best_over_worst
    alpha = PRESET_ALPHA[config.preset] if config.preset else 0.5 if config.alpha is None else config.alpha
    if config.preset and config.beta is None:
        beta = PRESET_BETA[config.preset]
    elif config.beta in (None, "auto"):
        worst = _rejected_fraction(config.labels, agent.num_actions)
        beta = pmpo_beta(alpha=alpha, accepted=1 - worst, rejected=worst)
    else:
        beta = float(config.beta)
    for name, given in (("covariance-beta", config.covariance_beta is not None), ("coupled", config.coupled)):
        if given and not gaussian:
            raise UserError(f"--{name} is for Gaussian policies; leave it out with --policy categorical")
    spread = math.inf if config.covariance_beta is None else config.covariance_beta
    objective = PMPO(alpha=alpha, beta=beta, covariance_beta=spread if gaussian and not config.coupled else None)
    return objective, _labelling(config.labels, agent.num_actions)


def unbounded_reason(objective: Objective, config: ControlConfig) -> str | None:
    """Why PMPO may run away with these settings. A mean learned apart is held by any beta above 1 - 2 alpha."""
    if not isinstance(objective, PMPO):
        return None
    if objective.covariance_beta is not None:
        least, beta = 1 - 2 * objective.alpha, float(objective.beta)
        if beta > least or (beta == least == 0):
            return None
        return f"beta = {beta:g} does not hold the mean: raise it above 1 - 2 alpha = {least:g}"
    worst = _rejected_fraction(config.improve.labels, config.agent.num_actions)
    return objective.unbounded_reason(accepted=1 - worst, rejected=worst)


def _rejected_fraction(labels: str, number: int) -> float:
    """Of all that the reference draws: what is left unlabelled lies between the classes, not missing at random."""
    return {"halves": number // 2 / number, "best-worst": 1 / number, "mean": 0.5}[labels]


def _labelling(labels: str, num_actions: int) -> Labelling:
    half = num_actions // 2
    rules: dict[str, Callable[[Rewards], Feedback]] = {
        "halves": lambda values: label_ranked(values, top=half, bottom=half),
        "best-worst": label_best_worst,
        "mean": label_group_mean,
    }
    return rules[labels]


def _best_over_worst(values: Rewards) -> Feedback:
    return labels_to_preferences(label_best_worst(values))
