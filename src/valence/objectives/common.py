"""What the objectives share: defaults, checks of fields, the target of pairs, masking, log-ratios and means.

Shape legend: see `valence.types`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor, nn

from valence.feedback.pairs import preferences_to_pairs, rewards_to_pairs
from valence.types import (
    PER_CONTEXT,
    PER_PAIR,
    Batch,
    Feedback,
    Likelihood,
    Pairs,
    Preferences,
    Rewards,
    Target,
    sum_steps,
)

ANCHORS = ("reference", "old")
"""The policy in the denominator of log-ratios: pi_ref, or pi_t that collected the actions."""
PerPair = Float[Tensor, " P"]
PerAction = Float[Tensor, "N K"]
Present = Bool[Tensor, "N K"]
"""Which actions exist."""
Sides = tuple[PerPair, PerPair]
"""One number of the better and of the worse action of each pair."""
Each = Float[Tensor, "*#shape"]
"""One number of each action or step; shapes broadcast."""
LARGEST_LOG_RATIO = 20.0
"""Log-ratios in an exponent are bounded to +-20 nats, as public code does: above 88 float32 overflows."""


class Defaults:
    """The attributes of `valence.protocols.Objective` that most objectives have in common."""

    needs: ClassVar[frozenset[str]] = frozenset({"log_prob"})
    frozen_needs: ClassVar[frozenset[str]] = frozenset()
    accepts: ClassVar[tuple[type, ...]] = (Rewards,)
    linear: ClassVar[bool] = False

    def state(self) -> nn.Module | None:
        return None


@dataclass(frozen=True, kw_only=True)
class PairTarget(Target):
    """The target of objectives that compare two actions of a context. Its `size` counts pairs.

    Args:
        pairs: the compared actions, better first, and by how much.
        old_log_prob: log pi_t of each step, `[N, K, T]`, where log-ratios are to the policy that collected the batch;
            None where they are to pi_ref.
    """

    pairs: Pairs = field(metadata=PER_PAIR)
    old_log_prob: Float[Tensor, "N K T"] | None = field(default=None, metadata=PER_CONTEXT)

    def count(self) -> int:
        return len(self.pairs.gap)


class PairObjective(Defaults):
    """An objective that compares all pairs of each context's actions, from `Rewards` or `Preferences`."""

    anchor: Literal["reference", "old"] = "reference"
    """The policy that log-ratios are to."""
    keep_ties: ClassVar[bool] = True
    """Whether pairs of equal reward are compared."""
    accepts: ClassVar[tuple[type, ...]] = (Rewards, Preferences)

    @property
    def needs(self) -> frozenset[str]:
        # log pi_t comes with the batch, log pi_ref is measured.
        return frozenset({"log_prob"} if self.anchor == "old" else {"log_prob", "ref_log_prob"})

    def prepare(self, batch: Batch, frozen: Likelihood | None) -> PairTarget:
        require_feedback(self, batch.feedback)
        if isinstance(batch.feedback, Rewards):
            pairs = rewards_to_pairs(batch.feedback, keep_ties=self.keep_ties)
        else:
            assert isinstance(batch.feedback, Preferences)
            pairs = preferences_to_pairs(batch.feedback, keep_ties=self.keep_ties)
        old = old_log_prob(batch, type(self).__name__) if self.anchor == "old" else None
        return PairTarget(present=batch.present, pairs=pairs, old_log_prob=old)

    def pair_log_ratios(self, total: Likelihood, target: PairTarget) -> Sides:
        """log-ratio to the anchor of the better and of the worse action of each pair, nats."""
        if target.old_log_prob is None:
            ratio = log_ratio(total, type(self).__name__)
        else:
            ratio = total.log_prob - sum_steps(target.old_log_prob)
        return of_pairs(ratio, target)

    def pair_step_means(self, likelihood: Likelihood, target: PairTarget) -> Sides:
        """Mean log pi of a step of the better and of the worse action of each pair, nats."""
        steps = step_mask(likelihood, type(self).__name__).sum(-1).clamp(min=1)
        return of_pairs(likelihood.total().log_prob / steps, target)


def of_pairs(value: PerAction, target: PairTarget) -> Sides:
    """The value of the better and of the worse action of each pair."""
    value = zero_absent(value, target.present).flatten()
    better, worse = target.pairs.index.unbind(-1)
    return value[better], value[worse]


def pair_means(**values: PerPair) -> dict[str, Tensor]:
    """name -> constant mean over the pairs; none where there is no pair."""
    return {name: value.detach().mean() for name, value in values.items() if len(value)}


def require_positive(**fields: float | None) -> None:
    """Raise ValueError unless every field is None, or finite and > 0."""
    _require("finite and > 0", lambda value: math.isfinite(value) and value > 0, fields)


def require_non_negative(**fields: float | None) -> None:
    """Raise ValueError unless every field is None, or finite and >= 0."""
    _require("finite and >= 0", lambda value: math.isfinite(value) and value >= 0, fields)


def require_fraction(**fields: float | None) -> None:
    """Raise ValueError unless every field is None or in [0, 1]."""
    _require("in [0, 1]", lambda value: 0 <= value <= 1, fields)


def _require(what: str, holds: Callable[[float], bool], fields: Mapping[str, float | None]) -> None:
    for name, value in fields.items():
        if value is not None and not holds(value):
            raise ValueError(f"`{name}` must be {what}, got {value}")


def require_choice(choices: tuple[str, ...], **fields: str) -> None:
    """Raise ValueError unless every field is one of `choices`."""
    for name, value in fields.items():
        if value not in choices:
            raise ValueError(f"`{name}` must be one of {', '.join(map(repr, choices))}, got {value!r}")


def require_feedback(objective: Any, feedback: Feedback) -> None:
    """Raise ValueError unless the objective accepts this kind of feedback."""
    if not isinstance(feedback, objective.accepts):
        kinds = " or ".join(kind.__name__ for kind in objective.accepts)
        raise ValueError(f"{type(objective).__name__} accepts {kinds}, got {type(feedback).__name__}")


def part(likelihood: Likelihood | None, name: str, who: str) -> Tensor:
    """One quantity of a likelihood; ValueError if it is None, with the quantity and `who` needs it."""
    value = None if likelihood is None else getattr(likelihood, name)
    if value is None:
        raise ValueError(f"{who} needs {name}, and the likelihood does not have it")
    return value


def zero_absent(value: Shaped[Tensor, "N K"], present: Bool[Tensor, "N K"]) -> Shaped[Tensor, "N K"]:
    """Zero where absent, also where a NaN stands there. Mask before arithmetic: a NaN masked after it still reaches the
    gradient."""
    return torch.where(present, value, torch.zeros_like(value))


def log_ratio(likelihood: Likelihood, who: str) -> Float[Tensor, "N K *T"]:
    """log(pi / pi_ref), nats, in the shape of the likelihood: per step, or per action after `total()`."""
    return likelihood.log_prob - part(likelihood, "ref_log_prob", who).detach()


def old_log_prob(batch: Batch, who: str) -> Float[Tensor, "N K T"]:
    """log pi_t of a collected batch; ValueError if it has none, because no policy collected it."""
    if batch.old_log_prob is None:
        raise ValueError(f"{who} needs `Batch.old_log_prob`: log pi_t under the policy that drew the actions")
    return batch.old_log_prob


def step_mask(likelihood: Likelihood, who: str) -> Bool[Tensor, "N K T"]:
    """Which steps exist, from a per-step likelihood; ValueError if it has several steps and no mask."""
    if likelihood.mask is not None:
        return likelihood.mask
    if likelihood.log_prob.shape[-1] != 1:
        raise ValueError(f"{who} needs the likelihood's mask, to know how long each action is")
    return torch.ones_like(likelihood.log_prob, dtype=torch.bool)


def count(mask: Bool[Tensor, "*shape"]) -> float:
    """How many are True, at least 1: a divisor."""
    return float(max(int(mask.sum()), 1))


def bounded_exp(log_ratio: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """e^u with u bounded to +-20, so that a wild log-ratio gives neither inf nor a NaN gradient."""
    return log_ratio.clamp(-LARGEST_LOG_RATIO, LARGEST_LOG_RATIO).exp()


def standard_scores(value: Float[Tensor, "N K"], present: Bool[Tensor, "N K"], *, eps: float) -> Float[Tensor, "N K"]:
    """Each row's present values to mean 0 and sample deviation 1; 0 where absent, and where a row has no spread.

    The mean is taken of differences to the row's smallest value, which are exact for values close together: equal
    values give exactly 0, and a small spread at a large offset keeps its digits. `eps` is added to the deviation.
    """
    away = above_smallest(value, present)
    number = present.sum(-1, keepdim=True)
    away = zero_absent(away - away.sum(-1, keepdim=True) / number.clamp(min=1), present)
    deviation = (away.square().sum(-1, keepdim=True) / (number - 1).clamp(min=1)).sqrt()
    return away / (deviation + eps)


def above_smallest(value: Float[Tensor, "N K"], present: Bool[Tensor, "N K"]) -> Float[Tensor, "N K"]:
    """Each present value minus its row's smallest, 0 where absent: sums of these do not cancel at a large offset."""
    smallest = torch.where(present, value, torch.inf).amin(-1, keepdim=True)
    return zero_absent(value - smallest, present)


def means(values: Mapping[str, tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """name -> (value, mask) to name -> constant mean; a name whose mask is empty has no mean and is omitted."""
    return {name: value.detach()[mask].mean() for name, (value, mask) in values.items() if bool(mask.any())}
