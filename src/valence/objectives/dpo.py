"""DPO and its family: objectives of one number per pair, the log-ratio gap of the better over the worse action.

    h = log(pi(y_w|x) / pi_ref(y_w|x)) - log(pi(y_l|x) / pi_ref(y_l|x))

    DPO    -(1 - eps) log sigmoid(beta h) - eps log sigmoid(-beta h)      Rafailov et al. 2023, Eq. 7 (eps: its cDPO)
    IPO    (h - 1 / (2 beta))^2                                           Azar et al. 2023, Eq. 17
    IPO-E  -log pi(y_w|x) + log pi(y_l|x) + beta h^2                      PMPO paper, appendix E
    RPO    DPO - sft_weight log pi(y_w|x) / |y_w|                         Pang et al. 2024 (iterative RPO)

Units: nats; every log-probability is a **sum** over the action's steps, as in the papers. (TRL's IPO takes the mean
over tokens, which changes the meaning of beta with length.) The mean over pairs is the objective.

IPO-E = beta IPO + terms without pi: the same gradient, beta times as large. In IPO and IPO-E E_ref[h^2] is twice the
variance of log(pi / pi_ref), where PMPO has its mean KL(pi_ref || pi).

Iterative DPO (REBEL paper, Eq. 21) anchors h at pi_t, the policy that drew the pair, in place of pi_ref: DPO with
`anchor="old"`. Ties have no sign there and give no gradient.

Departs from the papers:
- Pairs of a context with many actions are all formed; ties are dropped. How much better (`gap`) is not used.
- RPO divides the chosen negative log-likelihood by the length of the completion alone; the DPO part is not divided.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import logsigmoid

from valence.feedback import preferences_to_pairs, rewards_to_pairs
from valence.objectives.common import (
    ANCHORS,
    anchored_log_ratio,
    anchored_needs,
    means,
    old_log_prob,
    require_choice,
    require_feedback,
    require_non_negative,
    require_positive,
    step_mask,
    zero_absent,
)
from valence.types import Batch, Likelihood, Loss, Preferences, Rewards, Target


def dpo_loss(gap: Float[Tensor, " P"], *, beta: float, label_smoothing: float = 0.0) -> Float[Tensor, " P"]:
    """Logistic loss of the implicit reward gap beta h.

    Args:
        gap: h, nats, better minus worse. Differentiable.
        beta: KL weight, > 0.
        label_smoothing: the assumed probability that a pair is the wrong way round, in [0, 1/2).
    """
    return -(1 - label_smoothing) * logsigmoid(beta * gap) - label_smoothing * logsigmoid(-beta * gap)


def ipo_loss(gap: Float[Tensor, " P"], *, beta: float) -> Float[Tensor, " P"]:
    """(h - 1 / (2 beta))^2, in squared nats: the gap is regressed on a constant."""
    return (gap - 1 / (2 * beta)).square()


def ipo_appendix_e_loss(
    better_log_prob: Float[Tensor, " P"],
    worse_log_prob: Float[Tensor, " P"],
    gap: Float[Tensor, " P"],
    *,
    beta: float,
) -> Float[Tensor, " P"]:
    """-log pi(y_w) + log pi(y_l) + beta h^2, in nats: IPO written as PMPO's terms with a variance for its KL."""
    return worse_log_prob - better_log_prob + beta * gap.square()


def rpo_loss(
    gap: Float[Tensor, " P"],
    better_log_prob: Float[Tensor, " P"],
    better_steps: Float[Tensor, " P"],
    *,
    beta: float,
    sft_weight: float,
) -> Float[Tensor, " P"]:
    """DPO plus the chosen action's negative log-likelihood per step.

    Args:
        better_steps: how many steps the better action has.
        sft_weight: weight of the second term, >= 0.
    """
    return dpo_loss(gap, beta=beta) - sft_weight * better_log_prob / better_steps


@dataclass(frozen=True, kw_only=True)
class _Pairwise:
    """What the family shares: everything but the loss of a pair. Takes Preferences, and Rewards (higher vs lower).

    Args:
        beta: KL weight, > 0.
        anchor: what h is to: "reference" for pi_ref, "old" for pi_t that collected the batch.
    """

    beta: float = 0.1
    anchor: Literal["reference", "old"] = "reference"

    def __post_init__(self) -> None:
        require_positive(beta=self.beta)
        require_choice(ANCHORS, anchor=self.anchor)

    @property
    def needs(self) -> frozenset[str]:
        return anchored_needs(self.anchor)

    @property
    def frozen_needs(self) -> frozenset[str]:
        return frozenset()

    @property
    def accepts(self) -> tuple[type, ...]:
        return (Preferences, Rewards)

    def state(self) -> None:
        return None

    def prepare(self, batch: Batch, frozen: Likelihood | None) -> Target:
        require_feedback(self, batch.feedback)
        feedback = batch.feedback
        pairs = rewards_to_pairs(feedback) if isinstance(feedback, Rewards) else None
        if isinstance(feedback, Preferences):
            pairs = preferences_to_pairs(feedback)
        assert pairs is not None
        old = old_log_prob(batch, type(self).__name__) if self.anchor == "old" else None
        return Target(present=batch.present, size=float(max(len(pairs.gap), 1)), pairs=pairs, old_log_prob=old)

    def __call__(self, likelihood: Likelihood, target: Target, state: Any = None) -> Loss:
        assert target.pairs is not None
        total = likelihood.total()
        better, worse = target.pairs.index.unbind(-1)
        ratio = zero_absent(anchored_log_ratio(total, target, type(self).__name__), target.present).flatten()
        gap = ratio[better] - ratio[worse]
        loss = self._pair_loss(gap, zero_absent(total.log_prob, target.present).flatten(), target, likelihood)
        every = torch.ones_like(gap, dtype=torch.bool)
        values = {
            "accepted_log_ratio": (ratio[better], every),
            "rejected_log_ratio": (ratio[worse], every),
            "reward_accuracy": ((gap > 0).to(gap.dtype), every),
            "reward_margin": (self.beta * gap, every),
        }
        return Loss({"policy": loss}, means(values))

    def _pair_loss(
        self, gap: Float[Tensor, " P"], log_prob: Float[Tensor, " NK"], target: Target, likelihood: Likelihood
    ) -> Float[Tensor, " P"]:
        """The loss of each pair from its gap h and the flattened log-probabilities."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class DPO(_Pairwise):
    """Direct preference optimization.

    Args:
        label_smoothing: the assumed probability that a pair is the wrong way round, in [0, 1/2).
    """

    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.label_smoothing < 0.5:
            raise ValueError(f"label_smoothing must be in [0, 0.5), got {self.label_smoothing}")

    def _pair_loss(self, gap: Tensor, log_prob: Tensor, target: Target, likelihood: Likelihood) -> Tensor:
        return dpo_loss(gap, beta=self.beta, label_smoothing=self.label_smoothing)


@dataclass(frozen=True, kw_only=True)
class IPO(_Pairwise):
    """Identity preference optimization, the usual squared form."""

    def _pair_loss(self, gap: Tensor, log_prob: Tensor, target: Target, likelihood: Likelihood) -> Tensor:
        return ipo_loss(gap, beta=self.beta)


@dataclass(frozen=True, kw_only=True)
class IPOAppendixE(_Pairwise):
    """IPO as the PMPO paper's appendix E writes it: `IPO`'s gradient times beta."""

    def _pair_loss(self, gap: Tensor, log_prob: Tensor, target: Target, likelihood: Likelihood) -> Tensor:
        assert target.pairs is not None
        better, worse = target.pairs.index.unbind(-1)
        return ipo_appendix_e_loss(log_prob[better], log_prob[worse], gap, beta=self.beta)


@dataclass(frozen=True, kw_only=True)
class RPO(_Pairwise):
    """DPO with a supervised term on the chosen action. Needs `likelihood.mask` where actions have several steps.

    Args:
        sft_weight: weight of the chosen action's negative log-likelihood per step, >= 0.
    """

    sft_weight: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require_non_negative(sft_weight=self.sft_weight)

    def _pair_loss(self, gap: Tensor, log_prob: Tensor, target: Target, likelihood: Likelihood) -> Tensor:
        assert target.pairs is not None
        steps = step_mask(likelihood, "RPO").sum(-1).clamp(min=1).to(gap.dtype).flatten()
        better = target.pairs.index[:, 0]
        return rpo_loss(gap, log_prob[better], steps[better], beta=self.beta, sft_weight=self.sft_weight)
