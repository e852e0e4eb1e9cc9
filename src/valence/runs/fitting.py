"""What methods take from the data, the environment or the policy before training; the table's rows name these.

Functions called `..._groups` or `with_...` adjust a file's groups; those called `..._from_data` complete an objective;
those called `..._critic` make a critic. Groups functions take (groups, options, objective) and return (groups, notes).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from valence.critics import BatchValue, TokenValue
from valence.data.groups import Group
from valence.data.records import Record
from valence.errors import UserError
from valence.feedback.conversions import reward_statistics, standardize
from valence.objectives.pmpo import pmpo_beta
from valence.types import Rewards


@dataclass(frozen=True)
class ClassCounts:
    """Accepted, rejected and all rows of a data set."""

    accepted: int
    rejected: int
    rows: int


def count_classes(groups: Sequence[Group]) -> ClassCounts:
    """The classes of groups of labels."""
    signs = [sign for group in groups for sign in group.sign or ()]
    return ClassCounts(signs.count(1), signs.count(-1), len(signs))


def scores_if_weighted(records: Sequence[Record], objective: Any) -> Any:
    """PMPO takes rewards where it has a `score_temperature`."""
    return "labels" if objective.score_temperature is None else "rewards"


def pairs_or_scores(records: Sequence[Record], objective: Any) -> Any:
    """REBEL takes scores where there are any, else bare preferences."""
    return "rewards" if any(record.scored or record.shape == "score" for record in records) else "preferences"


def with_two_scores(groups: list[Group], options: Any, objective: Any) -> tuple[list[Group], list[str]]:
    """Scores of one prompt are compared: prompts with one completion are dropped."""
    if groups[0].reward is None:
        return groups, []
    return _with_two(groups, type(objective).__name__, "use dro for single scores")


def _with_two(groups: list[Group], what: str, instead: str) -> tuple[list[Group], list[str]]:
    """The groups with two completions or more, and a note of how many were dropped."""
    several = [group for group in groups if len(group.completions) > 1]
    if not several:
        raise UserError(f"{what} compares the scores of one prompt, and no prompt has two: {instead}")
    alone = len(groups) - len(several)
    return several, [f"{alone} prompts with one completion were dropped: {what} compares"] if alone else []


def dro_groups(groups: list[Group], options: Any, objective: Any) -> tuple[list[Group], list[str]]:
    """Rewards standardised over the data set; a mean over each prompt needs two completions of it."""
    notes: list[str] = []
    if objective.value == "prompt-mean":
        groups, notes = _with_two(groups, "`value=prompt-mean`", "use `value=batch-mean`")
    if options.standardize:
        groups, note = standardized(groups)
        notes.append(note)
    return groups, notes


def standardized(groups: list[Group]) -> tuple[list[Group], str]:
    """(the groups with rewards of mean 0 and deviation 1 over all of them, a note)."""
    flat = torch.tensor([value for group in groups for value in group.reward or ()], dtype=torch.float64)
    rewards = Rewards(flat[:, None], torch.ones_like(flat[:, None], dtype=torch.bool))
    mean, deviation = reward_statistics(rewards)
    scaled = standardize(rewards, mean=mean, std=deviation).value[:, 0].tolist()
    if not any(scaled):
        raise UserError(f"all {len(scaled)} rewards are {float(mean):g}: there is nothing to learn from them")
    rest = iter(scaled)
    made = [replace(group, reward=tuple(next(rest) for _ in group.reward or ())) for group in groups]
    return made, f"rewards standardised over the data set: mean {float(mean):.4g}, deviation {float(deviation):.4g}"


def supervised_groups(groups: list[Group], options: Any, objective: Any) -> tuple[list[Group], list[str]]:
    """Accepted completions alone; where no row is labelled, all are demonstrations."""
    if all(group.sign == (0,) for group in groups):
        shown = [replace(group, sign=(1,)) for group in groups]
        return shown, [f"none of the {len(groups)} rows is labelled: all are taken as accepted"]
    accepted = [group for group in groups if (group.sign or (0,))[0] > 0]
    if not accepted:
        raise UserError("supervised learns from accepted completions, and there are none")
    dropped = len(groups) - len(accepted)
    return accepted, [f"{dropped} rejected or unlabelled rows were dropped: supervised does not use them"] * (
        dropped > 0
    )


def pmpo_from_data(objective: Any, classes: ClassCounts) -> tuple[Any, list[str]]:
    """PMPO with the data set's class fractions."""
    if objective.score_temperature is not None:
        return objective, []
    if not classes.accepted + classes.rejected:
        raise UserError("no row is accepted or rejected: pmpo has nothing to learn from")
    if objective.regularizer == "bc" and classes.accepted + classes.rejected == classes.rows:
        raise UserError("`regularizer=bc` takes unlabelled rows in the KL's place, and there are none: use kl")
    if objective.accepted_fraction is None:
        objective = replace(
            objective, accepted_fraction=classes.accepted / classes.rows,
            rejected_fraction=classes.rejected / classes.rows,
        )  # fmt: skip
    alpha = objective.accepted_weight
    objective = replace(objective, alpha=alpha)
    if alpha == 1.0 and not classes.accepted:
        raise UserError("PMPO-A learns from accepted rows, and there are none: use `preset=r`")
    if alpha == 0.0 and not classes.rejected:
        raise UserError("PMPO-R learns from rejected rows, and there are none: use `preset=a`")
    warning = objective.unbounded_reason()
    return objective, [f"warning: {warning}"] if warning else []


def kto_from_data(objective: Any, classes: ClassCounts) -> tuple[Any, list[str]]:
    """KTO needs both classes."""
    if not classes.accepted or not classes.rejected:
        raise UserError("kto needs accepted and rejected rows, and one side is missing: use pmpo")
    return objective, []


def supervised_from_data(objective: Any, classes: ClassCounts) -> tuple[Any, list[str]]:
    """The data set's accepted fraction."""
    if objective.accepted_fraction is not None:
        return objective, []
    return replace(objective, accepted_fraction=classes.accepted / classes.rows), []


def token_critic(objective: Any, network: Any, policy: Any, *, per: str = "token") -> TokenValue:
    """A value network, before anything has trained."""
    if network.value_network == "head":
        return TokenValue(policy, shared=True, per=per)
    backbone = policy.frozen_copy()
    for part, original in zip(backbone.parameters(), policy.parameters(), strict=True):
        part.requires_grad_(original.requires_grad)
    return TokenValue(backbone.train(), per=per)


def dro_critic(objective: Any, network: Any, policy: Any) -> Any:
    """DRO's value network; None where V is solved in closed form."""
    if "value" not in objective.needs:
        return None
    if objective.value == "batch":
        return BatchValue(device=policy.device)
    return token_critic(objective, network, policy, per=objective.value)


@dataclass(frozen=True)
class Acting:
    """What a control run tells its method: the kind of policy, the size of its actions, and how they are judged.

    Args:
        gaussian: whether the policy is Gaussian (else categorical).
        action_size: D, dimensions of an action.
        num_actions: actions judged in each state.
        labelling: the `ValueLabelling` that turns values into labels.
        coupled: the option of that name.
    """

    gaussian: bool
    action_size: int
    num_actions: int
    labelling: Any
    coupled: bool


def coupled_pmpo(objective: Any, acting: Acting) -> tuple[Any, list[str]]:
    """PMPO with beta at its bound for the labelling, mean and covariance learned apart unless coupled."""
    separate = not math.isinf(objective.covariance_beta or 0.0)
    for name, given in (("covariance_beta", separate), ("coupled", acting.coupled)):
        if given and not acting.gaussian:
            raise UserError(f"`{name}` is for Gaussian policies: leave it out with `policy=categorical`")
    if acting.coupled and separate:
        raise UserError("`covariance_beta` must be left out: `coupled` has one KL weight, `beta`")
    worst = acting.labelling.rejected_fraction(acting.num_actions)
    beta = objective.beta
    if beta == "auto":
        beta = pmpo_beta(alpha=objective.accepted_weight, accepted=1 - worst, rejected=worst)
    spread = objective.covariance_beta if acting.gaussian and not acting.coupled else None
    objective = replace(objective, alpha=objective.accepted_weight, beta=beta, covariance_beta=spread)
    warning = _unbounded(objective, worst)
    return objective, [f"warning: {warning}"] if warning else []


def _unbounded(objective: Any, worst: float) -> str | None:
    """Why PMPO may run away. A mean that is learned apart is held by any beta above 1 - 2 alpha."""
    if objective.covariance_beta is None:
        return objective.unbounded_reason(accepted=1 - worst, rejected=worst)
    least, beta = 1 - 2 * objective.alpha, objective.beta
    if beta > least or (beta == least == 0):
        return None
    return f"beta = {beta:g} does not hold the mean: raise it above 1 - 2 alpha = {least:g}"


def mpo_per_dimension(objective: Any, acting: Acting) -> tuple[Any, list[str]]:
    """MPO's bounds are given for each action dimension here; a categorical policy has one bound for all."""
    return replace(
        objective, epsilon_mean=objective.epsilon_mean * acting.action_size,
        epsilon_covariance=objective.epsilon_covariance * acting.action_size, decoupled=acting.gaussian,
    ), []  # fmt: skip
