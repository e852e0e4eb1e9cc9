"""DPO and its family. Each loss reads one number of a pair: the log-ratio gap of the better over the worse action.

    h = log(pi(y_w|x) / pi_ref(y_w|x)) - log(pi(y_l|x) / pi_ref(y_l|x))

    DPO    -(1 - eps) log sigmoid(beta h) - eps log sigmoid(-beta h)      Rafailov et al. 2023, Eq. 7 (eps: its cDPO)
    IPO    (h - 1 / (2 beta))^2                                           Azar et al. 2023, Eq. 17
    IPO-E  -log pi(y_w|x) + log pi(y_l|x) + beta h^2                      PMPO paper, appendix E
    RPO    DPO - sft_weight log pi(y_w|x) / |y_w|                         Pang et al. 2024, "Iterative reasoning
                                                                          preference optimization", Eq. 1

Units: nats; every log-probability is a **sum** over the action's steps, as in the papers. The mean over pairs is the
objective.

IPO in TRL takes means over tokens in place of sums. TRL's beta is therefore not ours: its target 1 / (2 beta) is a gap
per token. Where both completions have T tokens, TRL's beta is T times the beta here that has the same optimum.

RPO here is the loss of Pang et al. "Regularised preference optimisation" (Liu et al. 2024, "Provably mitigating
overoptimization in RLHF") has the same initials and is another method, derived from a maximin problem over rewards.

IPO-E = beta IPO + terms without pi: the same gradient, beta times as large. In IPO and IPO-E, E_ref[h^2] is twice the
variance of log(pi / pi_ref); PMPO has the mean KL(pi_ref || pi) in its place.

Iterative DPO (REBEL paper, Eq. 21) anchors h at pi_t, the policy that drew the pair, in place of pi_ref: DPO with
`anchor="old"`.

Departs from the papers: all pairs of a context with many actions are formed; ties are dropped; how much better an
action is (`gap`) is not used. RPO's number of steps is without the prompt's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch.nn.functional import logsigmoid

from valence.objectives import common
from valence.objectives.common import PairTarget, PerPair, Sides
from valence.types import Likelihood, Loss


def dpo_loss(gap: PerPair, *, beta: float, label_smoothing: float = 0.0) -> PerPair:
    """Logistic loss of the implicit reward gap beta h.

    Args:
        gap: h, nats, better minus worse. Differentiable.
        beta: KL weight, > 0.
        label_smoothing: the assumed probability that a pair is labelled the wrong way round, in [0, 1/2).
    """
    return -(1 - label_smoothing) * logsigmoid(beta * gap) - label_smoothing * logsigmoid(-beta * gap)


def ipo_loss(gap: PerPair, *, beta: float) -> PerPair:
    """(h - 1 / (2 beta))^2, in squared nats: the gap is regressed on a constant."""
    return (gap - 1 / (2 * beta)).square()


def ipo_appendix_e_loss(better_log_prob: PerPair, worse_log_prob: PerPair, gap: PerPair, *, beta: float) -> PerPair:
    """-log pi(y_w) + log pi(y_l) + beta h^2, in nats: IPO written as PMPO's terms with a variance for its KL."""
    return worse_log_prob - better_log_prob + beta * gap.square()


def rpo_loss(
    gap: PerPair, better_log_prob: PerPair, better_steps: PerPair, *, beta: float, sft_weight: float
) -> PerPair:
    """DPO plus `sft_weight` times the chosen action's negative log-likelihood per step; it has `better_steps`."""
    return dpo_loss(gap, beta=beta) - sft_weight * better_log_prob / better_steps


@dataclass(frozen=True, kw_only=True)
class _Pairwise(common.PairObjective):
    """Everything but the loss of a pair. Accepts `Preferences`, and `Rewards`, of which the higher is better.

    Args:
        beta: KL weight: how strongly the policy is held to the anchor, above 0. A smaller value lets it move further.
        anchor: The policy that log-ratios are to: "reference", or "old" for the policy that collected the batch.
    """

    beta: float = 0.1
    anchor: Literal["reference", "old"] = "reference"
    keep_ties: ClassVar[bool] = False

    def __post_init__(self) -> None:
        common.require_positive(beta=self.beta)
        common.require_choice(common.ANCHORS, anchor=self.anchor)

    def __call__(self, likelihood: Likelihood, target: PairTarget) -> Loss:
        total = likelihood.total()
        better, worse = self.pair_log_ratios(total, target)
        gap = better - worse
        loss = self._pair_loss(gap, common.of_pairs(total.log_prob, target), target, likelihood)
        metrics = common.pair_means(
            accepted_log_ratio=better, rejected_log_ratio=worse, reward_accuracy=(gap > 0).to(gap.dtype),
            reward_margin=self.beta * gap,
        )  # fmt: skip
        return Loss({"policy": loss}, metrics)

    def _pair_loss(self, gap: PerPair, log_prob: Sides, target: PairTarget, likelihood: Likelihood) -> PerPair:
        """The loss of each pair from its gap h and the log-probabilities of the better and the worse action."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class DPO(_Pairwise):
    """Direct preference optimization. Accepts `Preferences`, and `Rewards`, of which the higher is better.

    Args:
        label_smoothing: Assumed probability that a pair is labelled the wrong way round, at least 0 and below 0.5.
    """

    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.label_smoothing < 0.5:
            raise ValueError(f"`label_smoothing` must be in [0, 0.5), got {self.label_smoothing}")

    def _pair_loss(self, gap: PerPair, log_prob: Sides, target: PairTarget, likelihood: Likelihood) -> PerPair:
        return dpo_loss(gap, beta=self.beta, label_smoothing=self.label_smoothing)


@dataclass(frozen=True, kw_only=True)
class IPO(_Pairwise):
    """Identity preference optimization, the usual squared form. Accepts `Preferences` and `Rewards`.

    Args:
        beta: KL weight, above 0: the log-ratio gap of a pair is regressed on 1 / (2 beta) nats. TRL's beta is on means
            over tokens, and is not this one.
    """

    def _pair_loss(self, gap: PerPair, log_prob: Sides, target: PairTarget, likelihood: Likelihood) -> PerPair:
        return ipo_loss(gap, beta=self.beta)


@dataclass(frozen=True, kw_only=True)
class IPOAppendixE(_Pairwise):
    """IPO as the PMPO paper's appendix E writes it: `IPO`'s gradient times beta. Accepts `Preferences` and `Rewards`.

    Args:
        beta: KL weight, above 0: the log-ratio gap of a pair is regressed on 1 / (2 beta) nats.
    """

    def _pair_loss(self, gap: PerPair, log_prob: Sides, target: PairTarget, likelihood: Likelihood) -> PerPair:
        return ipo_appendix_e_loss(*log_prob, gap, beta=self.beta)


@dataclass(frozen=True, kw_only=True)
class RPO(_Pairwise):
    """DPO plus a supervised term on the better action (Pang et al. 2024). Accepts `Preferences` and `Rewards`.

    Needs `likelihood.mask` where actions have several steps.

    Args:
        sft_weight: Weight of the better action's negative log-likelihood per step, at least 0.
    """

    sft_weight: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        common.require_non_negative(sft_weight=self.sft_weight)

    def _pair_loss(self, gap: PerPair, log_prob: Sides, target: PairTarget, likelihood: Likelihood) -> PerPair:
        steps, _ = common.of_pairs(common.step_mask(likelihood, "RPO").sum(-1).clamp(min=1).to(gap.dtype), target)
        return rpo_loss(gap, log_prob[0], steps, beta=self.beta, sft_weight=self.sft_weight)
