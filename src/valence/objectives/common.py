"""What the objectives share: checks that name the field, masking, log-ratios, and means that are never NaN.

Shape legend: see `valence.types`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from valence.types import Batch, Likelihood, Target

ANCHORS = ("reference", "old")
"""What log-ratios are to: pi_ref, or pi_t that collected the actions."""


def require_positive(**fields: float) -> None:
    """Raise ValueError unless every field is finite and > 0."""
    for name, value in fields.items():
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"{name} must be finite and > 0, got {value}")


def require_non_negative(**fields: float) -> None:
    """Raise ValueError unless every field is finite and >= 0."""
    for name, value in fields.items():
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"{name} must be finite and >= 0, got {value}")


def require_fraction(**fields: float | None) -> None:
    """Raise ValueError unless every field is None or in [0, 1]."""
    for name, value in fields.items():
        if value is not None and not 0 <= value <= 1:
            raise ValueError(f"{name} must be in [0, 1], got {value}")


def require_choice(choices: tuple[str, ...], **fields: str) -> None:
    """Raise ValueError unless every field is one of `choices`."""
    for name, value in fields.items():
        if value not in choices:
            raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")


def require_feedback(objective: Any, feedback: Any) -> None:
    """Raise ValueError unless the objective takes this kind of feedback."""
    if not isinstance(feedback, objective.accepts):
        kinds = " or ".join(kind.__name__ for kind in objective.accepts)
        raise ValueError(f"{type(objective).__name__} takes {kinds}, got {type(feedback).__name__}")


def part(likelihood: Likelihood | None, name: str, who: str) -> Tensor:
    """One quantity of a likelihood, which must be there.

    Raises:
        ValueError: it is None; the message names it and who needs it.
    """
    value = None if likelihood is None else getattr(likelihood, name)
    if value is None:
        raise ValueError(f"{who} needs {name}, and the likelihood does not have it")
    return value


def zero_absent(value: Shaped[Tensor, "N K"], present: Bool[Tensor, "N K"]) -> Shaped[Tensor, "N K"]:
    """Zero where absent, whatever stands there. Masking comes before arithmetic, so that no NaN meets a gradient."""
    return torch.where(present, value, torch.zeros_like(value))


def log_ratio(likelihood: Likelihood, who: str) -> Float[Tensor, "N K *T"]:
    """log(pi / pi_ref), nats, in the shape of the likelihood: per step, or per action after `total()`."""
    return likelihood.log_prob - part(likelihood, "ref_log_prob", who).detach()


def anchored_needs(anchor: str) -> frozenset[str]:
    """What a log-ratio takes of a likelihood: log pi_t comes with the batch, log pi_ref is measured."""
    return frozenset({"log_prob"} if anchor == "old" else {"log_prob", "ref_log_prob"})


def old_log_prob(batch: Batch, who: str) -> Float[Tensor, "N K T"]:
    """log pi_t of a collected batch.

    Raises:
        ValueError: the batch does not have it: it was not collected by a policy.
    """
    if batch.old_log_prob is None:
        raise ValueError(f"{who} needs old_log_prob, log pi_t of the policy that drew these actions, in the batch")
    return batch.old_log_prob


def anchored_log_ratio(total: Likelihood, target: Target, who: str) -> Float[Tensor, "N K"]:
    """log(pi / pi_t) of each action where the target says log pi_t, else log(pi / pi_ref), nats."""
    if target.old_log_prob is None:
        return log_ratio(total, who)
    return total.log_prob - target.old_log_prob.sum(-1)


def step_mask(likelihood: Likelihood, who: str) -> Bool[Tensor, "N K T"]:
    """Which steps exist, from a per-step likelihood. It may go unsaid only where there is one step.

    Raises:
        ValueError: more than one step and no mask: lengths would be guessed.
    """
    if likelihood.mask is not None:
        return likelihood.mask
    if likelihood.log_prob.shape[-1] != 1:
        raise ValueError(f"{who} needs the likelihood's mask, to know how long each action is")
    return torch.ones_like(likelihood.log_prob, dtype=torch.bool)


def count(mask: Bool[Tensor, "*shape"]) -> float:
    """How many there are, at least 1, so that an empty batch has loss 0 and not NaN."""
    return float(max(int(mask.sum()), 1))


def means(values: Mapping[str, tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """name -> (value, mask) to name -> constant mean; a name whose mask is empty is left out, as it has no mean."""
    return {name: value.detach()[mask].mean() for name, (value, mask) in values.items() if bool(mask.any())}
