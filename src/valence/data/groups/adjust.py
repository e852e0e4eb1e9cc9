"""What methods need of the rows: the kind of feedback, and adjustments (groups, options, objective) -> (groups, notes).

Each raises UserError where the method could not learn anything from the groups.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from valence.data.groups.group import Group, Takes
from valence.data.records import Record
from valence.data.stored import Stored, picked
from valence.errors import UserError
from valence.feedback.conversions import reward_statistics, standardize
from valence.objectives.dro import DRO
from valence.objectives.fitting import ClassCounts
from valence.objectives.pmpo import PMPO
from valence.types import Rewards

Adjusted = tuple[Sequence[Group], list[str]]
"""(groups, notes)."""


def scores_if_weighted(records: Sequence[Record], objective: PMPO) -> Takes:
    """PMPO takes rewards where it has a `score_temperature`."""
    return "labels" if objective.score_temperature is None else "rewards"


def pairs_or_scores(records: Sequence[Record], objective: object) -> Takes:
    """REBEL takes scores where there are any, else bare preferences."""
    return "rewards" if any(record.scored or record.shape == "score" for record in records) else "preferences"


def count_classes(groups: Sequence[Group]) -> ClassCounts:
    """The classes of groups of labels."""
    signs = Counter(sign for group in groups for sign in group.sign or ())
    return ClassCounts(signs[1], signs[-1], signs.total())


def with_two_scores(groups: Sequence[Group], options: object, objective: object) -> Adjusted:
    """Scores of one prompt are compared: prompts with one completion are dropped."""
    if groups[0].reward is None:
        return groups, []
    return _with_two(groups, type(objective).__name__, "use dro for single scores")


def _with_two(groups: Sequence[Group], what: str, instead: str) -> Adjusted:
    """The groups with two completions or more, and a note of how many were dropped."""
    several = picked(groups, (place for place, group in enumerate(groups) if len(group.completions) > 1))
    if not several:
        raise UserError(f"{what} compares the scores of one prompt, and no prompt has two: {instead}")
    alone = len(groups) - len(several)
    return several, [f"{alone} prompts with one completion were dropped: {what} compares"] if alone else []


def dro_groups(groups: Sequence[Group], options: Any, objective: DRO) -> Adjusted:
    """Rewards standardised over the data set; a mean over each prompt needs two completions of it."""
    notes: list[str] = []
    if objective.value == "prompt-mean":
        groups, notes = _with_two(groups, "`value=prompt-mean`", "use `value=batch-mean`")
    if not options.standardize:
        return groups, notes
    flat = torch.tensor([value for group in groups for value in group.reward or ()], dtype=torch.float64)
    rewards = Rewards(flat[:, None], torch.ones_like(flat[:, None], dtype=torch.bool))
    mean, deviation = reward_statistics(rewards)
    scaled = standardize(rewards, mean, deviation).value[:, 0].tolist()
    if not any(scaled):
        raise UserError(f"all {len(scaled)} rewards are {mean:g}: there is nothing to learn from them")
    rest = iter(scaled)
    scaled_groups = (replace(group, reward=tuple(next(rest) for _ in group.reward or ())) for group in groups)
    groups = Stored(Group.restored, scaled_groups)
    return groups, [*notes, f"rewards standardised over the data set: mean {mean:.4g}, deviation {deviation:.4g}"]


def supervised_groups(groups: Sequence[Group], options: object, objective: object) -> Adjusted:
    """Accepted completions alone; where no row is labelled, all are demonstrations."""
    if all(group.sign == (0,) for group in groups):
        shown = Stored(Group.restored, (replace(group, sign=(1,)) for group in groups))
        return shown, [f"none of the {len(groups)} rows is labelled: all are taken as accepted"]
    accepted = picked(groups, (place for place, group in enumerate(groups) if (group.sign or (0,))[0] > 0))
    if not accepted:
        raise UserError("supervised learns from accepted completions, and there are none")
    dropped = len(groups) - len(accepted)
    notes = [f"{dropped} rejected or unlabelled rows were dropped: supervised does not use them"] if dropped else []
    return accepted, notes
