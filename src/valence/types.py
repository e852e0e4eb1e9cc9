"""The words of Valence as types: actions, feedback, batches, likelihoods, targets and losses.

Shape legend, used in every docstring:
    N contexts · K actions per context · T steps per action · V vocabulary · P pairs.

K may be ragged offline: absent actions are masked by `present [N, K]`. Log-probabilities and KLs are in nats.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def select_rows(value: Any, rows: slice) -> Any:
    """Rows of a context, whatever it is: None, a tensor, a sequence, or anything with `select(rows)`."""
    if value is None:
        return None
    if hasattr(value, "select") and not isinstance(value, Tensor):
        return value.select(rows)
    return value[rows]


@dataclass(frozen=True)
class Action:
    """What the policy did in each context.

    Args:
        steps: tokens, vectors or latents, `[N, K, T, ...]`.
        mask: which steps are part of the action, `[N, K, T]`.
        initial_latent: the noise that a denoiser's path starts from, `[N, K, ...]`; None for other policies.
        output: the decoded text or image of each action, `[N][K]`, for reward functions.
    """

    steps: Tensor
    mask: Bool[Tensor, "N K T"]
    initial_latent: Tensor | None = None
    output: Sequence[Sequence[Any]] | None = None

    def select(self, rows: slice) -> Action:
        latent, output = select_rows(self.initial_latent, rows), select_rows(self.output, rows)
        return Action(self.steps[rows], self.mask[rows], latent, output)


@dataclass(frozen=True)
class TokenContext:
    """Prompts as token ids, padded on the left: `ids [N, S]`, `mask [N, S]`."""

    ids: Int[Tensor, "N S"]
    mask: Bool[Tensor, "N S"]

    def select(self, rows: slice) -> TokenContext:
        return TokenContext(self.ids[rows], self.mask[rows])


@dataclass(frozen=True)
class Rewards:
    """Scalar feedback: `value [N, K]`, in the unit of whoever gave it."""

    value: Float[Tensor, "N K"]
    present: Bool[Tensor, "N K"]

    def select(self, rows: slice) -> Rewards:
        return Rewards(self.value[rows], self.present[rows])


@dataclass(frozen=True)
class Labels:
    """Accept / reject feedback: `sign [N, K]` is +1 accepted, -1 rejected, 0 unlabelled (still feeds KL and BC)."""

    sign: Int[Tensor, "N K"]
    present: Bool[Tensor, "N K"]

    def select(self, rows: slice) -> Labels:
        return Labels(self.sign[rows], self.present[rows])


@dataclass(frozen=True)
class Preferences:
    """Comparisons: `win[n, i, j]` is the probability that action i beats j, known where `observed[n, i, j]`.

    `margin [N, K, K]`, where the annotator gave one, is score i minus score j.
    """

    win: Float[Tensor, "N K K"]
    observed: Bool[Tensor, "N K K"]
    present: Bool[Tensor, "N K"]
    margin: Float[Tensor, "N K K"] | None = None

    def select(self, rows: slice) -> Preferences:
        return Preferences(self.win[rows], self.observed[rows], self.present[rows], select_rows(self.margin, rows))


Feedback = Rewards | Labels | Preferences


@dataclass(frozen=True)
class Batch:
    """Contexts, actions and what was said of them.

    Args:
        context: anything the policy understands with N rows; None where there is none.
        action: the actions, `[N, K, T, ...]`.
        feedback: rewards, labels or preferences over them.
        old_log_prob: log pi_t of each step under the policy that collected them, `[N, K, T]`.
        on_policy: which actions were drawn from pi_t, `[N, K]`.
        mismatched: KTO's unrelated completions: actions of other contexts, K = 1.
        step_reward: the parts of a reward that fall on single steps, `[N, K, T]`, the verdict on the last one: summed,
            they are `feedback`'s. None where all of it falls on the last.
    """

    context: Any
    action: Action
    feedback: Feedback
    old_log_prob: Float[Tensor, "N K T"] | None = None
    on_policy: Bool[Tensor, "N K"] | None = None
    mismatched: Action | None = None
    step_reward: Float[Tensor, "N K T"] | None = None

    @property
    def present(self) -> Bool[Tensor, "N K"]:
        return self.feedback.present

    @property
    def num_contexts(self) -> int:
        return self.present.shape[0]

    def select(self, rows: slice) -> Batch:
        return Batch(**{item.name: select_rows(getattr(self, item.name), rows) for item in fields(self)})


DECOUPLED = frozenset({"log_prob_mean", "log_prob_covariance", "ref_kl_mean", "ref_kl_covariance"})
"""What only Gaussian policies have."""
PER_STEP = ("log_prob", "ref_log_prob", "ref_kl", "policy_kl", *sorted(DECOUPLED))
"""What a `Likelihood` holds for each step."""


@dataclass(frozen=True)
class Likelihood:
    """What a policy says of the actions of a batch, per step, zero where an action has no step.

    After `total()` the step dimension is summed away: `[N, K]`, which is what most objectives read.

    Args:
        log_prob: log pi(y_t | x, y_<t), `[N, K, T]`. Differentiable.
        ref_log_prob: the same under pi_ref. Constant.
        ref_kl: KL(pi_ref || pi) of each step's distribution, `[N, K, T]`. Differentiable, exact, >= 0.
        policy_kl: KL(pi || pi_ref) of each step's distribution, `[N, K, T]`. For reports.
        log_prob_mean, log_prob_covariance: a Gaussian's log-prob with pi's mean and pi_ref's covariance, and with
            pi_ref's mean and pi's covariance, `[N, K, T]`: what learns the two apart (MPO). Differentiable.
        ref_kl_mean, ref_kl_covariance: KL(pi_ref || those two), `[N, K, T]`. Differentiable, exact.
        value: V, filled by the learner from a critic: per step `[N, K, T]`, per context `[N, 1]`, or a scalar `[]`.
        mask: which steps exist, `[N, K, T]`.
    """

    log_prob: Float[Tensor, "N K *T"]
    ref_log_prob: Float[Tensor, "N K *T"] | None = None
    ref_kl: Float[Tensor, "N K *T"] | None = None
    policy_kl: Float[Tensor, "N K *T"] | None = None
    log_prob_mean: Float[Tensor, "N K *T"] | None = None
    log_prob_covariance: Float[Tensor, "N K *T"] | None = None
    ref_kl_mean: Float[Tensor, "N K *T"] | None = None
    ref_kl_covariance: Float[Tensor, "N K *T"] | None = None
    value: Float[Tensor, "..."] | None = None
    mask: Bool[Tensor, "N K T"] | None = None

    def total(self) -> Likelihood:
        """Sum every per-step quantity over steps: log pi(y|x) and KL of the whole action, nats."""
        parts = {name: getattr(self, name) for name in PER_STEP}
        summed = {name: part.sum(-1) for name, part in parts.items() if part is not None}
        return replace(self, **summed)

    def detach(self) -> Likelihood:
        parts: dict[str, Any] = {item.name: getattr(self, item.name) for item in fields(self)}
        return replace(self, **{name: part.detach() for name, part in parts.items() if part is not None})


@dataclass(frozen=True)
class Pairs:
    """Comparisons within contexts, which DPO, IPO, RPO and REBEL take.

    Args:
        index: (better, worse) positions in the flattened `[N * K]` actions, `[P, 2]`; for REBEL the order is
            arbitrary and `gap` carries the sign.
        gap: reward (or score) of the first minus the second, `[P]`; a bare preference has gap 2 P(win) - 1.
    """

    index: Int[Tensor, "P 2"]
    gap: Float[Tensor, " P"]

    def select(self, rows: slice, num_actions: int, num_contexts: int) -> Pairs:
        """The pairs of the contexts in `rows`, renumbered from that slice's first context."""
        start, stop, _ = rows.indices(num_contexts)
        context = self.index[:, 0] // num_actions
        keep = (context >= start) & (context < stop)
        return Pairs(self.index[keep] - start * num_actions, self.gap[keep])


@dataclass(frozen=True)
class Target:
    """What an objective aims at, made once per *collected* batch, without gradient, so that micro-batches are exact.

    Args:
        present: which actions exist, `[N, K]`.
        size: how many elements (actions or pairs) the objective is a mean over: those of the whole collected batch.
        weight: signed weight of each action, `[N, K]` (PMPO, KTO, supervised).
        reward: scalar reward of each action, `[N, K]` (DRO).
        baseline: KTO's KL or DRO's closed-form V: `[N, 1]` or a scalar `[]`.
        pairs: comparisons (DPO, IPO, RPO, REBEL).
        beta: KL weight read off the collected batch's class fractions, `[]` (PMPO).
        penalty: how far each action lies outside its bounds, `[N, K]` (MPO).
        old_log_prob: log pi_t of each step, `[N, K, T]`: what objectives of collected actions are anchored at.
        advantage, returns, old_value: of each step, `[N, K, T]` (PPO, APA; GRPO's advantage).
        steps: how many steps each action has, `[N, K]`, where the mean is over steps (PPO, APA).
    """

    present: Bool[Tensor, "N K"]
    size: float
    weight: Float[Tensor, "N K"] | None = None
    reward: Float[Tensor, "N K"] | None = None
    baseline: Float[Tensor, "..."] | None = None
    pairs: Pairs | None = None
    beta: Float[Tensor, ""] | None = None
    penalty: Float[Tensor, "N K"] | None = None
    old_log_prob: Float[Tensor, "N K T"] | None = None
    advantage: Float[Tensor, "N K T"] | None = None
    returns: Float[Tensor, "N K T"] | None = None
    old_value: Float[Tensor, "N K T"] | None = None
    steps: Int[Tensor, "N K"] | None = None

    def select(self, rows: slice) -> Target:
        num_contexts, num_actions = self.present.shape
        pairs = None if self.pairs is None else self.pairs.select(rows, num_actions, num_contexts)
        per_context = self.baseline is not None and self.baseline.ndim > 0
        return replace(
            self,
            present=self.present[rows],
            weight=select_rows(self.weight, rows),
            reward=select_rows(self.reward, rows),
            penalty=select_rows(self.penalty, rows),
            old_log_prob=select_rows(self.old_log_prob, rows),
            advantage=select_rows(self.advantage, rows),
            returns=select_rows(self.returns, rows),
            old_value=select_rows(self.old_value, rows),
            steps=select_rows(self.steps, rows),
            baseline=select_rows(self.baseline, rows) if per_context else self.baseline,
            pairs=pairs,
        )

    def minibatch(self, rows: slice) -> Target:
        """As `select`, for an optimizer step on these rows alone: the mean is over their own elements."""
        part = self.select(rows)
        if part.pairs is not None:
            return replace(part, size=float(max(len(part.pairs.gap), 1)))
        if part.steps is not None:
            return replace(part, size=max(float(part.steps.sum()), 1.0))
        share = float(part.present.sum()) / max(float(self.present.sum()), 1.0)
        return replace(part, size=max(self.size * share, 1.0))


@dataclass(frozen=True)
class Loss:
    """An objective's verdict, unreduced.

    Args:
        terms: "policy", "value", "dual" -> per-action `[N, K]` or per-pair `[P]` losses, zero where absent. What is
            minimised is each term's sum over the collected batch divided by `Target.size`.
        metrics: name -> scalar, constant, a mean over this (micro-)batch.
    """

    terms: Mapping[str, Tensor]
    metrics: Mapping[str, Tensor] = field(default_factory=dict)

    def total(self, size: float) -> Tensor:
        """The scalar to differentiate: all terms summed, divided by `size`."""
        return torch.stack([term.sum() for term in self.terms.values()]).sum() / size
