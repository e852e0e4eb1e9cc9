"""KTO: push each action's implicit reward above or below what the policy gives on average, with diminishing returns.

    minimise  lambda_D (1 - sigmoid(beta (rho - z0)))   for accepted actions,
              lambda_U (1 - sigmoid(beta (z0 - rho)))   for rejected ones,   rho = log(pi(y|x) / pi_ref(y|x))

Source: Ethayarajh et al. 2024, "KTO: model alignment as prospect theoretic optimization" (lambda_y - v).
Units: nats; log-ratios are sums over an action's steps.

z0 stands for KL(pi || pi_ref). It is estimated as max(0, mean log-ratio of mismatched completions y' of other
contexts). As y' is not drawn from pi(.|x) this is no unbiased estimate: for y' ~ mu its mean is
KL(mu || pi_ref) - KL(mu || pi), which can be negative, hence the max. The paper chose it for being cheap.

Departs from the paper and from common code:
- z0 is one number per *collected* batch, computed in `prepare` without gradient; common code recomputes it for each
  micro-batch, so that its loss depends on how the batch is split. When one collected batch is used for several
  updates, z0 is the first one's.
- The mismatched completions are whatever the source put into `batch.mismatched`; common code shifts the micro-batch's
  own completions by one, which fails silently for one row.
- Unlabelled actions (sign 0) take no part and are not counted in the mean.
- `baseline="none"` sets z0 = 0: no extra forward pass.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import sigmoid

from valence.objectives.common import (
    count,
    log_ratio,
    means,
    part,
    require_choice,
    require_feedback,
    require_non_negative,
    require_positive,
    zero_absent,
)
from valence.types import Batch, Labels, Likelihood, Loss, Target


def kto_loss(
    ratio: Float[Tensor, "N K"], baseline: Float[Tensor, ""], weight: Float[Tensor, "N K"], *, beta: float
) -> Float[Tensor, "N K"]:
    """lambda - v per action: |w| sigmoid(-sign(w) beta (log-ratio - z0)).

    Args:
        ratio: log(pi / pi_ref), nats. Differentiable.
        baseline: z0, nats. Constant.
        weight: +lambda_D for accepted, -lambda_U for rejected, 0 for neither. Constant.
        beta: how fast the value saturates, per nat, > 0.
    """
    return weight.abs() * sigmoid(-weight.sign() * beta * (ratio - baseline))


def kto_baseline(ratio: Float[Tensor, "N M"], present: Bool[Tensor, "N M"]) -> Float[Tensor, ""]:
    """z0 = max(0, mean log-ratio of the mismatched completions); 0 where there are none."""
    mean = zero_absent(ratio, present).sum() / present.sum().clamp(min=1)
    return mean.clamp(min=0).detach()


@dataclass(frozen=True, kw_only=True)
class KTO:
    """The objective of this file. Takes Labels.

    Args:
        beta: inverse scale of the value function, per nat, > 0.
        desirable_weight, undesirable_weight: lambda_D and lambda_U, >= 0, not both 0. The paper balances classes
            with them: lambda_D n_D / (lambda_U n_U) between 1 and 4/3.
        baseline: where z0 comes from: "mismatched" completions, or "none" (0).
    """

    beta: float = 0.1
    desirable_weight: float = 1.0
    undesirable_weight: float = 1.0
    baseline: Literal["mismatched", "none"] = "mismatched"

    def __post_init__(self) -> None:
        require_positive(beta=self.beta)
        require_non_negative(desirable_weight=self.desirable_weight, undesirable_weight=self.undesirable_weight)
        if self.desirable_weight == self.undesirable_weight == 0:
            raise ValueError("desirable_weight and undesirable_weight must not both be 0")
        require_choice(("mismatched", "none"), baseline=self.baseline)

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"log_prob", "ref_log_prob"})

    @property
    def frozen_needs(self) -> frozenset[str]:
        return frozenset({"mismatched"}) if self.baseline == "mismatched" else frozenset()

    @property
    def accepts(self) -> tuple[type, ...]:
        return (Labels,)

    def state(self) -> None:
        return None

    def prepare(self, batch: Batch, frozen: Likelihood | None) -> Target:
        """Signed class weights, and z0 from `frozen`: the likelihood of `batch.mismatched`, without gradient."""
        require_feedback(self, batch.feedback)
        assert isinstance(batch.feedback, Labels)
        sign = batch.feedback.sign
        present = batch.present & (sign != 0)
        scale = torch.where(sign > 0, self.desirable_weight, self.undesirable_weight)
        weight = zero_absent(sign * scale, present)
        zero = torch.zeros((), dtype=weight.dtype, device=weight.device)
        baseline = zero if self.baseline == "none" else self._baseline(batch, frozen)
        return Target(present=present, size=count(present), weight=weight, baseline=baseline)

    def _baseline(self, batch: Batch, frozen: Likelihood | None) -> Float[Tensor, ""]:
        part(frozen, "log_prob", 'KTO with baseline="mismatched"')
        assert frozen is not None
        mask = frozen.mask if batch.mismatched is None else batch.mismatched.mask
        ratio = log_ratio(frozen.total(), "KTO")
        return kto_baseline(ratio, torch.ones_like(ratio, dtype=torch.bool) if mask is None else mask.any(-1))

    def __call__(self, likelihood: Likelihood, target: Target, state: Any = None) -> Loss:
        assert target.weight is not None and target.baseline is not None
        present = target.present
        ratio = zero_absent(log_ratio(likelihood.total(), "KTO"), present)
        weight, baseline = target.weight.to(ratio.dtype), target.baseline.to(ratio.dtype)
        accepted, rejected = present & (weight > 0), present & (weight < 0)
        right = (weight * (ratio - baseline) > 0).to(ratio.dtype)
        values = {
            "accepted_log_ratio": (ratio, accepted),
            "rejected_log_ratio": (ratio, rejected),
            "reward_accuracy": (right, accepted | rejected),
        }
        loss = zero_absent(kto_loss(ratio, baseline, weight, beta=self.beta), present)
        return Loss({"policy": loss}, means(values) | {"kl_baseline": baseline})
