"""KTO: push each action's implicit reward above or below what the policy gives on average, with diminishing returns.

    minimise  lambda_D (1 - sigmoid(beta (rho - z0)))   for accepted actions,
              lambda_U (1 - sigmoid(beta (z0 - rho)))   for rejected ones,   rho = log(pi(y|x) / pi_ref(y|x))

Source: Ethayarajh et al. 2024, "KTO: model alignment as prospect theoretic optimization" (lambda_y - v).
Units: nats; log-ratios are sums over an action's steps.

z0 stands for KL(pi || pi_ref). The paper estimates it as max(0, mean log-ratio of mismatched completions): each
context x is paired with a completion y' of another context. y' is not drawn from pi(.|x), so the estimate is biased:
for y' ~ mu its mean is KL(mu || pi_ref) - KL(mu || pi), which can be negative, hence the max.

Departs from the paper and from common code:
- z0 is one number per *collected* batch, computed in `prepare` without gradient; common code recomputes it for each
  micro-batch, so that its loss depends on how the batch is split. When one collected batch is used for several
  updates, z0 is the first one's.
- The source fills `Batch.mismatched` with completions of other contexts. Common code shifts the micro-batch's own
  completions by one row: in a batch of one row that is the row's own completion, and where two rows share a prompt it
  is a matching completion; both make z0 an estimate of something else.
- Unlabelled actions (sign 0) have no loss and are not counted in the mean.
- `baseline="none"` sets z0 = 0. It needs no second forward pass, and no second context.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import sigmoid

from valence.objectives import common
from valence.objectives.common import PerAction
from valence.types import PER_BATCH, PER_CONTEXT, Batch, Labels, Likelihood, Loss, Target


def kto_loss(ratio: PerAction, baseline: Float[Tensor, ""], weight: PerAction, *, beta: float) -> PerAction:
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
    mean = common.zero_absent(ratio, present).sum() / present.sum().clamp(min=1)
    return mean.clamp(min=0).detach()


@dataclass(frozen=True, kw_only=True)
class KTOTarget(Target):
    """Which side each labelled action is on, and z0. `present` holds the labelled actions alone.

    Args:
        weight: +lambda_D for accepted, -lambda_U for rejected, 0 for absent and unlabelled, `[N, K]`.
        baseline: z0, nats, `[]`.
    """

    weight: PerAction = field(metadata=PER_CONTEXT)
    baseline: Float[Tensor, ""] = field(metadata=PER_BATCH)


@dataclass(frozen=True, kw_only=True)
class KTO(common.Defaults):
    """KTO as a frozen dataclass. Accepts `Labels`.

    Args:
        beta: How fast an action's value saturates with its log-ratio, per nat, above 0. A smaller value lets the policy
            move further from the reference.
        desirable_weight: Weight of accepted actions (lambda_D), at least 0. The paper balances unequal classes with the
            two weights: desirable_weight x accepted over undesirable_weight x rejected between 1 and 4/3.
        undesirable_weight: Weight of rejected actions (lambda_U), at least 0; the two weights must not both be 0.
        baseline: How the point of zero value z0 is estimated: "mismatched" takes the mean log-ratio of completions
            paired with other prompts, which needs at least two prompts; "none" sets it to 0.
    """

    beta: float = 0.1
    desirable_weight: float = 1.0
    undesirable_weight: float = 1.0
    baseline: Literal["mismatched", "none"] = "mismatched"
    needs: ClassVar[frozenset[str]] = frozenset({"log_prob", "ref_log_prob"})
    accepts: ClassVar[tuple[type, ...]] = (Labels,)

    def __post_init__(self) -> None:
        common.require_positive(beta=self.beta)
        common.require_non_negative(desirable_weight=self.desirable_weight, undesirable_weight=self.undesirable_weight)
        if self.desirable_weight == self.undesirable_weight == 0:
            raise ValueError("`desirable_weight` and `undesirable_weight` must not both be 0")
        common.require_choice(("mismatched", "none"), baseline=self.baseline)

    @property
    def frozen_needs(self) -> frozenset[str]:
        return frozenset({"mismatched"}) if self.baseline == "mismatched" else frozenset()

    def prepare(self, batch: Batch, frozen: Likelihood | None) -> KTOTarget:
        """`frozen` is the likelihood of `batch.mismatched`; ValueError if it is None and the baseline needs it."""
        common.require_feedback(self, batch.feedback)
        assert isinstance(batch.feedback, Labels)
        sign = batch.feedback.sign
        present = batch.present & (sign != 0)
        scale = torch.where(sign > 0, self.desirable_weight, self.undesirable_weight)
        weight = common.zero_absent(sign * scale, present)
        if self.baseline == "none":
            return KTOTarget(present=present, weight=weight, baseline=weight.new_zeros(()))
        if frozen is None:
            raise ValueError(
                'KTO with `baseline="mismatched"` needs the likelihood of `Batch.mismatched`, completions of other '
                'prompts: use `baseline="none"` where there is only one prompt'
            )
        ratio = common.log_ratio(frozen.total(), "KTO")
        drawn = torch.ones_like(ratio, dtype=torch.bool) if frozen.mask is None else frozen.mask.any(-1)
        return KTOTarget(present=present, weight=weight, baseline=kto_baseline(ratio, drawn))

    def __call__(self, likelihood: Likelihood, target: KTOTarget) -> Loss:
        present = target.present
        ratio = common.zero_absent(common.log_ratio(likelihood.total(), "KTO"), present)
        weight, baseline = target.weight.to(ratio.dtype), target.baseline.to(ratio.dtype)
        accepted, rejected = present & (weight > 0), present & (weight < 0)
        right = (weight * (ratio - baseline) > 0).to(ratio.dtype)
        values = {
            "accepted_log_ratio": (ratio, accepted),
            "rejected_log_ratio": (ratio, rejected),
            "reward_accuracy": (right, accepted | rejected),
        }
        loss = common.zero_absent(kto_loss(ratio, baseline, weight, beta=self.beta), present)
        return Loss({"policy": loss}, common.means(values) | {"kl_baseline": baseline})
