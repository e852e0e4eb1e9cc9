"""From a method's name and the data to an objective, its critic, and what it is fed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any, Literal

import torch

from valence.critics import BatchValue, TokenValue
from valence.data.groups import Group
from valence.data.records import Record
from valence.errors import UserError
from valence.feedback import reward_statistics, standardize
from valence.objectives import DPO, DRO, IPO, KTO, PMPO, REBEL, RPO, Supervised
from valence.policies.language import LanguagePolicy
from valence.protocols import Critic, Objective
from valence.runs.config import PRESET_ALPHA, MethodConfig
from valence.types import Rewards

Takes = Literal["labels", "rewards", "preferences"]

TAKES: dict[str, Takes] = {
    "pmpo": "labels", "kto": "labels", "supervised": "labels", "dro": "rewards",
    "dpo": "preferences", "ipo": "preferences", "rpo": "preferences",
}  # fmt: skip
PAPER_BETA = {1.0: 0.0, 0.5: 0.5, 0.0: 2.0}


def takes(method: str, records: Sequence[Record], config: MethodConfig) -> Takes:
    """The kind of feedback a method is fed; REBEL takes scores where there are any, else bare preferences."""
    if method == "pmpo" and config.score_temperature is not None:
        return "rewards"
    if method == "rebel":
        return "rewards" if any(record.scored or record.shape == "score" for record in records) else "preferences"
    return TAKES[method]


def prepare_groups(method: str, groups: list[Group], config: MethodConfig) -> tuple[list[Group], list[str]]:
    """Last adjustments before training: (groups, notes). DRO's rewards are standardised over the data set.

    Raises:
        UserError: the method cannot learn anything from these groups.
    """
    notes: list[str] = []
    if method == "dro":
        if config.value == "prompt-mean":
            groups, notes = _with_two(groups, "--value prompt-mean", "use --value batch-mean")
        if config.standardize:
            groups, note = standardized(groups)
            notes.append(note)
        return groups, notes
    if method in ("rebel", "pmpo") and groups[0].reward is not None:
        return _with_two(groups, method, "use dro for single scores")
    if method != "supervised":
        return groups, notes
    if all(group.sign == (0,) for group in groups):
        # Plain demonstrations: nobody said yes or no to any of them.
        shown = [replace(group, sign=(1,)) for group in groups]
        return shown, [f"none of the {len(groups)} rows is labelled: all are taken as accepted"]
    kept = [group for group in groups if (group.sign or (0,))[0] > 0]
    if not kept:
        raise UserError("supervised learns from accepted completions, and there are none")
    dropped = len(groups) - len(kept)
    return kept, [f"{dropped} rejected or unlabelled rows are not used by supervised"] if dropped else []


def _with_two(groups: list[Group], what: str, instead: str) -> tuple[list[Group], list[str]]:
    """The groups with two completions or more, and a note of how many were left out."""
    kept = [group for group in groups if len(group.completions) > 1]
    if not kept:
        raise UserError(f"{what} compares the scores of one prompt, and no prompt has two: {instead}")
    alone = len(groups) - len(kept)
    return kept, [f"{alone} prompts with one completion were left out: {what} compares"] if alone else []


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


def _side_counts(groups: Sequence[Group]) -> tuple[int, int, int]:
    signs = [sign for group in groups for sign in group.sign or ()]
    return signs.count(1), signs.count(-1), len(signs)


def pmpo_objective(config: MethodConfig, groups: Sequence[Group]) -> tuple[PMPO, list[str]]:
    """PMPO with the data set's class fractions: (objective, notes)."""
    beta: float | str = "auto" if config.beta in (None, "auto") else float(config.beta)
    if config.score_temperature is not None:
        alpha = PRESET_ALPHA[config.preset] if config.preset else 0.5 if config.alpha is None else config.alpha
        return PMPO(alpha=alpha, beta=beta, temperature=config.score_temperature), []
    accepted, rejected, rows = _side_counts(groups)
    if not accepted + rejected:
        raise UserError("no row is accepted or rejected: pmpo has nothing to learn from")
    if config.regularizer == "bc" and accepted + rejected == rows:
        raise UserError("--regularizer bc takes unlabelled rows in the KL's place, and there are none: use kl")
    one_sided = 1.0 if not rejected else 0.0 if not accepted else 0.5
    alpha = PRESET_ALPHA[config.preset] if config.preset else config.alpha if config.alpha is not None else one_sided
    if alpha == 1.0 and not accepted:
        raise UserError("PMPO-A learns from accepted rows, and there are none: use --preset r")
    if alpha == 0.0 and not rejected:
        raise UserError("PMPO-R learns from rejected rows, and there are none: use --preset a")
    if config.preset and config.beta is None:
        beta = PAPER_BETA[alpha]
    objective = PMPO(
        alpha=alpha, beta=beta, accepted_fraction=accepted / rows, rejected_fraction=rejected / rows,
        regularizer="bc" if config.regularizer == "bc" else "kl",
    )  # fmt: skip
    warning = objective.unbounded_reason()
    return objective, [f"warning: {warning}"] if warning else []


def make_objective(method: str, config: MethodConfig, groups: Sequence[Group]) -> tuple[Objective, list[str]]:
    """(objective, notes).

    Raises:
        UserError: the data cannot serve this method.
    """
    if method == "pmpo":
        return pmpo_objective(config, groups)
    beta = 0.1 if config.beta in (None, "auto") else float(config.beta)
    if method in ("kto", "dpo", "ipo", "rpo") and beta <= 0:
        raise UserError(f"--beta is {beta:g}, and must be above 0 for {method}")
    accepted, rejected, rows = _side_counts(groups)
    if method == "kto":
        if not accepted or not rejected:
            raise UserError("kto needs accepted and rejected rows, and one side is missing: use pmpo")
        return KTO(beta=beta, undesirable_weight=config.undesirable_weight), []
    if method == "dro":
        if config.value == "prompt-mean" or config.value == "batch-mean":
            return DRO(tau=config.tau, value=config.value), []
        return DRO(tau=config.tau), []
    if method == "rebel":
        return REBEL(eta=config.eta), []
    if method == "supervised":
        return Supervised(accepted_fraction=accepted / rows), []
    kinds: dict[str, Any] = {"dpo": DPO, "ipo": IPO}
    if method == "rpo":
        return RPO(beta=beta, sft_weight=config.sft_weight), []
    return kinds[method](beta=beta), []


def describe(objective: Any) -> str:
    """The objective's name and fields, numbers short and what is not set left out."""
    values = {item.name: getattr(objective, item.name) for item in fields(objective)}
    shown = {name: f"{value:.4g}" if isinstance(value, float) else value for name, value in values.items()}
    return f"{type(objective).__name__}({', '.join(f'{k}={v}' for k, v in shown.items() if v is not None)})"


def make_critic(objective: Objective, config: MethodConfig, policy: LanguagePolicy) -> Critic | None:
    """DRO's value network, before anything has trained."""
    if "value" not in objective.needs:
        return None
    if config.value == "batch":
        return BatchValue(device=policy.device)
    if config.value_network == "head":
        return TokenValue(policy, shared=True, per=config.value)
    backbone = policy.frozen_copy()
    for part, original in zip(backbone.parameters(), policy.parameters(), strict=True):
        part.requires_grad_(original.requires_grad)
    return TokenValue(backbone.train(), per=config.value)
