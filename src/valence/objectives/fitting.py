"""What objectives take from the data set or the environment before training.

Each takes an objective and facts, and returns (objective, notes).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from valence.errors import UserError
from valence.feedback.rules import ValueLabelling
from valence.objectives.kto import KTO
from valence.objectives.mpo import MPO
from valence.objectives.pmpo import PMPO, pmpo_beta
from valence.objectives.supervised import Supervised


@dataclass(frozen=True)
class ClassCounts:
    """Accepted, rejected and all rows of a data set."""

    accepted: int
    rejected: int
    rows: int


def pmpo_from_data(objective: PMPO, classes: ClassCounts) -> tuple[PMPO, list[str]]:
    """PMPO with the data set's class fractions."""
    if objective.score_temperature is not None:
        return objective, []
    if not classes.accepted + classes.rejected:
        raise UserError("no row is accepted or rejected: pmpo has nothing to learn from")
    if objective.regularizer == "bc" and classes.accepted + classes.rejected == classes.rows:
        raise UserError("`regularizer=bc` takes unlabelled rows in the KL's place, and there are none: use kl")
    accepted, rejected = objective.accepted_fraction, objective.rejected_fraction
    if accepted is None or rejected is None:
        accepted, rejected = classes.accepted / classes.rows, classes.rejected / classes.rows
        objective = replace(objective, accepted_fraction=accepted, rejected_fraction=rejected)
    alpha = objective.accepted_weight
    objective = replace(objective, alpha=alpha)
    if alpha == 1.0 and not classes.accepted:
        raise UserError("PMPO-A learns from accepted rows, and there are none: use `preset=r`")
    if alpha == 0.0 and not classes.rejected:
        raise UserError("PMPO-R learns from rejected rows, and there are none: use `preset=a`")
    return objective, _warnings(objective.unbounded_reason(accepted=accepted, rejected=rejected))


def kto_from_data(objective: KTO, classes: ClassCounts) -> tuple[KTO, list[str]]:
    """KTO needs both classes."""
    if not classes.accepted or not classes.rejected:
        raise UserError("kto needs accepted and rejected rows, and one side is missing: use pmpo")
    return objective, []


def supervised_from_data(objective: Supervised, classes: ClassCounts) -> tuple[Supervised, list[str]]:
    """The data set's accepted fraction."""
    if objective.accepted_fraction is not None:
        return objective, []
    return replace(objective, accepted_fraction=classes.accepted / classes.rows), []


@dataclass(frozen=True)
class Acting:
    """A control run's policy (Gaussian or categorical), size of an action, and number of actions judged in a state.

    `labelling` turns values into labels where the method takes labels, `coupled` is the option of that name.
    """

    gaussian: bool
    action_size: int
    num_actions: int
    labelling: object
    coupled: bool


def coupled_pmpo(objective: PMPO, acting: Acting) -> tuple[PMPO, list[str]]:
    """PMPO with beta at its bound for the labelling, mean and covariance learned apart unless coupled."""
    separate = not math.isinf(objective.covariance_beta or 0.0)
    for name, given in (("covariance_beta", separate), ("coupled", acting.coupled)):
        if given and not acting.gaussian:
            raise UserError(f"`{name}` is for Gaussian policies: leave it out with `policy=categorical`")
    if acting.coupled and separate:
        raise UserError("`covariance_beta` must be left out: `coupled` has one KL weight, `beta`")
    assert isinstance(acting.labelling, ValueLabelling)
    worst = acting.labelling.rejected_fraction(acting.num_actions)
    beta = objective.beta
    if beta == "auto":
        beta = pmpo_beta(alpha=objective.accepted_weight, accepted=1 - worst, rejected=worst)
    spread = objective.covariance_beta if acting.gaussian and not acting.coupled else None
    objective = replace(objective, alpha=objective.accepted_weight, beta=beta, covariance_beta=spread)
    if spread is None:
        return objective, _warnings(objective.unbounded_reason(accepted=1 - worst, rejected=worst))
    # A mean that is learned apart is held by any beta above 1 - 2 alpha.
    least = 1 - 2 * objective.accepted_weight
    held = beta > least or beta == least == 0
    reason = f"beta = {beta:g} does not hold the mean: raise it above 1 - 2 alpha = {least:g}"
    return objective, _warnings(None if held else reason)


def _warnings(reason: str | None) -> list[str]:
    return [f"warning: {reason}"] if reason else []


def mpo_per_dimension(objective: MPO, acting: Acting) -> tuple[MPO, list[str]]:
    """MPO's bounds are given for each action dimension here; a categorical policy has one bound for all."""
    return replace(
        objective, epsilon_mean=objective.epsilon_mean * acting.action_size,
        epsilon_covariance=objective.epsilon_covariance * acting.action_size, decoupled=acting.gaussian,
    ), []  # fmt: skip
