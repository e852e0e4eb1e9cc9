"""PMPO: learn from accepted actions, from rejected ones, or from both, near a reference.

    minimise  -alpha E_accepted[log pi(y|x)] + (1 - alpha) E_rejected[log pi(y|x)] + beta KL(pi_ref || pi)

Source: "Decoupling learning from negative and positive feedback in preference optimization" (PMPO), Eq. 10; scores:
Eq. 5 and appendix I; KL: Eq. 17.
Units: nats; log pi and KL are sums over an action's steps.

Boundedness. Let pi_ref draw a rejected action with probability rho. The rejected term's density is at most
pi_ref / rho, so the objective is bounded below for all rejected sets iff beta >= (1 - alpha) / rho, and its optimum is
pi_ref [beta + alpha s / Z - (1 - alpha) (1 - s) / (1 - Z)], normalised, with s the probability of acceptance and
Z = E_ref[s] = 1 - rho. At beta = (1 - alpha) / rho an action that is always rejected gets probability 0.

Departs from the paper:
- The expectations are class means over the data set (or over the collected batch), not per context: labels have
  K = 1. Hence beta's bound is (1 - alpha) / rho; the paper's "beta > 1 - alpha" is that for means over all rows.
- `beta="auto"` is that bound. The paper tunes beta; its constants are the presets `pmpo_ar`, `pmpo_a` and `pmpo_r`.
- `alpha="auto"` is 1/2, or 1 or 0 where the data set has accepted or rejected rows alone.
- `covariance_beta` splits a Gaussian's objective into one for its mean and one for its covariance, as MPO's bounds do.
- On rows that pi_ref did not draw, the per-token KL of Eq. 17 is a regulariser, not an estimate of KL(pi_ref || pi).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from valence.objectives import common
from valence.objectives.common import PerAction, Present
from valence.types import DECOUPLED, PER_BATCH, PER_CONTEXT, Batch, Feedback, Labels, Likelihood, Loss, Rewards, Target


def class_fractions(sign: Int[Tensor, "N K"], present: Present) -> tuple[float, float]:
    """Fractions of accepted and of rejected among all present rows, unlabelled ones included."""
    size = common.count(present)
    return int((present & (sign > 0)).sum()) / size, int((present & (sign < 0)).sum()) / size


def pmpo_beta(*, alpha: float, accepted: float, rejected: float) -> float:
    """The smallest KL weight at which the objective is bounded: (1 - alpha) / rho, rho = rejected / labelled.

    With rejections alone, the data do not show rho: 1/2 is assumed, which gives the paper's beta = 2 for PMPO-R.
    Without rejections every beta is bounded: 0.

    Args:
        accepted: fraction (or count) of accepted rows, like `rejected`.
    """
    if rejected == 0:
        return 0.0
    rho = rejected / (accepted + rejected) if accepted > 0 else 0.5
    return (1 - alpha) / rho


def pmpo_weights(
    sign: Int[Tensor, "N K"],
    present: Present,
    *,
    alpha: float,
    accepted_fraction: float,
    rejected_fraction: float,
    unlabelled_weight: float = 0.0,
) -> PerAction:
    """Signed weights that turn a mean over all present rows into class means.

    +alpha / p_accepted, -(1 - alpha) / p_rejected, +unlabelled_weight / p_unlabelled.

    Args:
        sign: +1 accepted, -1 rejected, 0 unlabelled. Anything where absent.
        accepted_fraction: of accepted rows among those of the data set, like `rejected_fraction`.
        unlabelled_weight: beta of the BC form.
    Raises:
        ValueError: the batch has rows of a class whose fraction is 0.
    """
    unlabelled_fraction = 1 - accepted_fraction - rejected_fraction
    classes = {
        "accepted": (present & (sign > 0), alpha, accepted_fraction),
        "rejected": (present & (sign < 0), alpha - 1, rejected_fraction),
        "unlabelled": (present & (sign == 0), unlabelled_weight, unlabelled_fraction),
    }
    weight = torch.zeros(sign.shape, dtype=torch.get_default_dtype(), device=sign.device)
    for name, (rows, coefficient, fraction) in classes.items():
        if coefficient == 0 or not rows.any():
            continue
        # A fraction that 1 - p - q leaves is zero up to rounding.
        if fraction < 1e-9:
            raise ValueError(f"the batch has {name} rows, but their fraction of the data set is 0")
        weight = torch.where(rows, coefficient / fraction, weight)
    return weight


def pmpo_score_weights(reward: PerAction, present: Present, *, alpha: float, temperature: float) -> PerAction:
    """Weights from scores: K (alpha softmax(r / eta) - (1 - alpha) softmax(-r / eta)) within each context.

    K is the context's number of present actions, so that the mean over actions is the objective. An action alone in
    its context has weight 0: there is nothing to compare it with.

    Args:
        reward: anything where absent.
        temperature: eta, in the reward's unit.
    """
    number = present.sum(-1, keepdim=True)
    # A context without any action would be a softmax of -inf only.
    open_row = present | (number == 0)
    scaled = common.zero_absent(reward, present) / temperature
    accepted = torch.softmax(scaled.masked_fill(~open_row, -torch.inf), dim=-1)
    rejected = torch.softmax((-scaled).masked_fill(~open_row, -torch.inf), dim=-1)
    weight = number * (alpha * accepted - (1 - alpha) * rejected)
    return torch.where(present & (number > 1), weight, torch.zeros_like(weight))


def pmpo_loss(
    log_prob: PerAction, ref_kl: PerAction | None, weight: PerAction, *, beta: float | Float[Tensor, ""]
) -> PerAction:
    """Raise what has positive weight, lower what has negative weight, stay near the reference: Eq. 10, per action.

    Args:
        log_prob: log pi(y|x), nats, summed over steps. Differentiable.
        ref_kl: KL(pi_ref || pi), nats, summed over steps. Differentiable. None: no such term (beta 0, BC form).
        weight: from `pmpo_weights` or `pmpo_score_weights`. Constant.
        beta: KL weight, >= 0.
    Returns:
        -weight log pi + beta KL(pi_ref || pi): its mean over present actions is the objective.
    """
    attraction = -weight * log_prob
    return attraction if ref_kl is None else attraction + beta * ref_kl


@dataclass(frozen=True, kw_only=True)
class PMPOTarget(Target):
    """Each action's signed weight of log pi, its class (`sign`: +1 accepted, -1 rejected, 0 neither), the KL weight."""

    weight: PerAction = field(metadata=PER_CONTEXT)
    sign: PerAction = field(metadata=PER_CONTEXT)
    beta: Float[Tensor, ""] = field(metadata=PER_BATCH)


@dataclass(frozen=True, kw_only=True)
class PMPO(common.Defaults):
    """PMPO as a frozen dataclass. Accepts `Labels`; accepts `Rewards` if `score_temperature` is set.

    Args:
        alpha: Weight of accepted against rejected feedback, from 0 to 1. "auto" is 0.5, or 1 or 0 where the data set
            has accepted or rejected rows alone.
        beta: KL weight: how strongly the policy is held to the reference, at least 0. "auto" is the smallest value at
            which the objective is bounded.
        accepted_fraction: Fraction of accepted rows among all rows of the data set, unlabelled ones included, from 0 to
            1. Goes together with `rejected_fraction`. Without them each batch's own fractions are taken, which offline
            are noisy for small batches.
        rejected_fraction: Fraction of rejected rows among all rows of the data set, unlabelled ones included, from 0 to
            1. Goes together with `accepted_fraction`.
        score_temperature: Learn from rewards: each action is weighted by a softmax of its context's rewards at this
            temperature, in the reward's unit, above 0. Without it rewards are not accepted.
        regularizer: What holds the policy to the reference: "kl", or "bc" where the reference's logits are not
            available: the negative log-likelihood of unlabelled rows, which must be samples of the reference.
        covariance_beta: For Gaussian policies: learn mean and covariance apart, so that the spread need not vanish.
            `beta` then weighs the mean's KL and this the covariance's, at least 0; inf keeps the covariance fixed.
            Without it one objective learns both, as in the paper.
    """

    alpha: float | Literal["auto"] = "auto"
    beta: float | Literal["auto"] = "auto"
    accepted_fraction: float | None = None
    rejected_fraction: float | None = None
    score_temperature: float | None = None
    regularizer: Literal["kl", "bc"] = "kl"
    covariance_beta: float | None = None
    linear: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for name, check in (("alpha", common.require_fraction), ("beta", common.require_non_negative)):
            value = getattr(self, name)
            if isinstance(value, str):
                common.require_choice(("auto",), **{name: value})
            else:
                check(**{name: value})
        common.require_fraction(accepted_fraction=self.accepted_fraction, rejected_fraction=self.rejected_fraction)
        common.require_choice(("kl", "bc"), regularizer=self.regularizer)
        common.require_positive(score_temperature=self.score_temperature)
        if self.covariance_beta is not None and not self.covariance_beta >= 0:
            raise ValueError(f"`covariance_beta` must be >= 0, got {self.covariance_beta}")
        if self.covariance_beta is not None and self.regularizer == "bc":
            raise ValueError('`regularizer="bc"` has no KL to split: set no `covariance_beta`')
        if (self.accepted_fraction is None) != (self.rejected_fraction is None):
            raise ValueError("`accepted_fraction` and `rejected_fraction` go together: give both or neither")
        if (self.accepted_fraction or 0) + (self.rejected_fraction or 0) > 1 + 1e-9:
            raise ValueError("`accepted_fraction` + `rejected_fraction` must be at most 1")

    @property
    def accepted_weight(self) -> float:
        """alpha as a number."""
        if self.alpha != "auto":
            return self.alpha
        accepted, rejected = self.accepted_fraction, self.rejected_fraction
        if accepted and rejected == 0:
            return 1.0
        return 0.0 if rejected and accepted == 0 else 0.5

    @property
    def needs(self) -> frozenset[str]:
        if self.covariance_beta is not None:
            return frozenset({"log_prob"}) | DECOUPLED
        off = self.regularizer == "bc" or self.beta == 0 or (self.beta == "auto" and self.accepted_weight == 1)
        return frozenset({"log_prob"}) if off else frozenset({"log_prob", "ref_kl"})

    @property
    def accepts(self) -> tuple[type, ...]:
        return (Labels,) if self.score_temperature is None else (Labels, Rewards)

    def unbounded_reason(self, *, accepted: float, rejected: float) -> str | None:
        """Why the objective is unbounded on data with these class fractions, in one line; None where it is bounded."""
        smallest = pmpo_beta(alpha=self.accepted_weight, accepted=accepted, rejected=rejected)
        if smallest > 0 and self.regularizer == "bc" and 1 - accepted - rejected < 1e-9:
            return (
                '`regularizer="bc"` has no unlabelled rows here, so nothing holds the policy against the rejections: '
                'use `regularizer="kl"`'
            )
        if self.beta == "auto" or self.beta >= smallest - 1e-9:
            return None
        source = "" if accepted else ", assuming that half of the reference's samples would be rejected"
        return (
            f"`beta` is {self.beta:g}, below (1 - alpha) / (rejected fraction) = {smallest:g}{source}: the objective "
            'is unbounded below and the policy can run away from the reference; raise `beta` or use `beta="auto"`'
        )

    def prepare(self, batch: Batch, frozen: Likelihood | None) -> PMPOTarget:
        common.require_feedback(self, batch.feedback)
        weight, beta = self._weigh(batch.feedback)
        sign = batch.feedback.sign if isinstance(batch.feedback, Labels) else weight.sign()
        sign = common.zero_absent(sign.to(weight.dtype), batch.present)
        return PMPOTarget(present=batch.present, weight=weight, sign=sign, beta=weight.new_tensor(beta))

    def _weigh(self, feedback: Feedback) -> tuple[PerAction, float]:
        if isinstance(feedback, Rewards):
            if self.regularizer == "bc":
                raise ValueError('`regularizer="bc"` needs unlabelled rows, and `Rewards` have none: use `Labels`')
            assert self.score_temperature is not None
            weight = pmpo_score_weights(
                feedback.value, feedback.present, alpha=self.accepted_weight, temperature=self.score_temperature
            )
            # Bounded iff beta is at least the largest weight that lowers an action.
            return weight, max(float(-weight.min()), 0.0) if self.beta == "auto" else self.beta
        assert isinstance(feedback, Labels)
        accepted, rejected = self.accepted_fraction, self.rejected_fraction
        if accepted is None or rejected is None:
            accepted, rejected = class_fractions(feedback.sign, feedback.present)
        alpha = self.accepted_weight
        beta = pmpo_beta(alpha=alpha, accepted=accepted, rejected=rejected) if self.beta == "auto" else self.beta
        unlabelled = beta if self.regularizer == "bc" else 0.0
        return pmpo_weights(
            feedback.sign, feedback.present, alpha=alpha, accepted_fraction=accepted, rejected_fraction=rejected,
            unlabelled_weight=unlabelled,
        ), beta  # fmt: skip

    def __call__(self, likelihood: Likelihood, target: PMPOTarget) -> Loss:
        total, present = likelihood.total(), target.present
        log_prob = common.zero_absent(total.log_prob, present)
        weight, beta = target.weight.to(log_prob.dtype), target.beta.to(log_prob.dtype)
        values = {
            "accepted_log_prob": (log_prob, present & (target.sign > 0)),
            "rejected_log_prob": (log_prob, present & (target.sign < 0)),
        }
        if self.covariance_beta is not None:
            return self._decoupled(total, target, weight, beta, common.means(values))
        ref_kl = None
        if "ref_kl" in self.needs:
            ref_kl = common.zero_absent(common.part(total, "ref_kl", "PMPO"), present)
            values["kl_ref_policy"] = (ref_kl, present)
        loss = pmpo_loss(log_prob, ref_kl, weight, beta=beta)
        return Loss({"policy": loss}, common.means(values) | {"beta": beta})

    def _decoupled(
        self, total: Likelihood, target: PMPOTarget, weight: Tensor, beta: Tensor, metrics: dict[str, Tensor]
    ) -> Loss:
        """The mean's objective plus the covariance's, without the latter where its KL weight is inf."""
        assert self.covariance_beta is not None
        loss = torch.zeros_like(weight)
        for half, strength in {"mean": beta, "covariance": self.covariance_beta}.items():
            log_prob = common.zero_absent(common.part(total, f"log_prob_{half}", "PMPO"), target.present)
            ref_kl = common.zero_absent(common.part(total, f"ref_kl_{half}", "PMPO"), target.present)
            if not math.isinf(float(strength)):
                loss = loss + pmpo_loss(log_prob, ref_kl, weight, beta=strength)
            metrics |= common.means({f"kl_ref_policy_{half}": (ref_kl, target.present)})
        return Loss({"policy": loss}, metrics | {"beta": beta})


def pmpo_ar(**fields: Any) -> PMPO:
    """The paper's constants for accepted and rejected feedback: alpha 0.5, beta 0.5 unless `fields` has another."""
    return _preset("ar", 0.5, 0.5, fields)


def pmpo_a(**fields: Any) -> PMPO:
    """The paper's constants for accepted feedback alone: alpha 1, beta 0, which needs no reference."""
    return _preset("a", 1.0, 0.0, fields)


def pmpo_r(**fields: Any) -> PMPO:
    """The paper's constants for rejected feedback alone: alpha 0, beta 2 unless `fields` has another."""
    return _preset("r", 0.0, 2.0, fields)


def _preset(name: str, alpha: float, beta: float, fields: dict[str, Any]) -> PMPO:
    if "alpha" in fields:
        raise ValueError(f"preset {name!r} sets `alpha` to {alpha:g}: give one of the two")
    # The paper's beta is for labels: weights from scores have a bound of their own in each batch.
    scored = fields.get("score_temperature") is not None
    return PMPO(**{"alpha": alpha, "beta": "auto" if scored else beta, **fields})


PRESETS: dict[str, Callable[..., PMPO]] = {"ar": pmpo_ar, "a": pmpo_a, "r": pmpo_r}
