"""The words of Valence as types: actions, feedback, batches, likelihoods, targets and losses.

Shape legend, used in every docstring:
    N contexts · K actions per context · T steps per action · V vocabulary · P pairs.

K may be ragged offline: absent actions are masked by `present [N, K]`. Log-probabilities and KLs are in nats.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@runtime_checkable
class Selectable(Protocol):
    """What gives the rows of some of its contexts."""

    def select(self, rows: slice) -> Any: ...


def select_rows(value: Any, rows: slice) -> Any:
    """The rows of some contexts, of None, a tensor, a sequence, or anything with `select(rows)`."""
    if value is None:
        return None
    # A tensor has a `select` of its own, which does something else.
    if isinstance(value, Selectable) and not isinstance(value, Tensor):
        return value.select(rows)
    return value[rows]


def sum_steps(value: Float[Tensor, "*shape T"]) -> Float[Tensor, "*shape"]:
    """The sum over steps, in float32 at least: in bfloat16 a long sum would lose its last terms."""
    return value.sum(-1, dtype=torch.promote_types(value.dtype, torch.float32))


R = TypeVar("R", bound="Rows")


@dataclass(frozen=True)
class Rows:
    """A dataclass whose fields have one row for each context, or are None."""

    def select(self: R, rows: slice) -> R:
        return replace(self, **{item.name: select_rows(getattr(self, item.name), rows) for item in fields(self)})


@dataclass(frozen=True)
class Action(Rows):
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


@dataclass(frozen=True)
class TokenContext(Rows):
    """Prompts as token ids, padded on the left.

    Args:
        ids: token ids, `[N, S]`; anything where `mask` is False.
        mask: which ids are real, `[N, S]`.
    Raises:
        ValueError: padding stands behind or between real ids, which would be dropped with it.
    """

    ids: Int[Tensor, "N S"]
    mask: Bool[Tensor, "N S"]

    def __post_init__(self) -> None:
        # Only where the mask can be read without waiting for a GPU.
        if self.mask.device.type == "cpu" and bool((self.mask[:, :-1] & ~self.mask[:, 1:]).any()):
            raise ValueError("`mask` has padding behind real tokens: pad prompts on the left")


@dataclass(frozen=True)
class Rewards(Rows):
    """Scalar feedback: `value [N, K]`, in the unit of its source."""

    value: Float[Tensor, "N K"]
    present: Bool[Tensor, "N K"]


@dataclass(frozen=True)
class Labels(Rows):
    """Accept / reject feedback: `sign [N, K]` is +1 accepted, -1 rejected, 0 unlabelled.

    Unlabelled actions still count in KL terms and in behaviour cloning.
    """

    sign: Int[Tensor, "N K"]
    present: Bool[Tensor, "N K"]


@dataclass(frozen=True)
class Preferences(Rows):
    """Comparisons: `win[n, i, j]` is the probability that action i beats j, known where `observed[n, i, j]`.

    `margin [N, K, K]`, where the annotator gave one, is score i minus score j.
    """

    win: Float[Tensor, "N K K"]
    observed: Bool[Tensor, "N K K"]
    present: Bool[Tensor, "N K"]
    margin: Float[Tensor, "N K K"] | None = None


Feedback = Rewards | Labels | Preferences


@dataclass(frozen=True)
class Batch(Rows):
    """Contexts, actions and the feedback on them.

    Args:
        context: anything the policy understands with N rows; None where there is none.
        action: the actions, `[N, K, T, ...]`.
        feedback: rewards, labels or preferences over them.
        old_log_prob: log pi_t of each step under the policy that collected them, `[N, K, T]`.
        on_policy: which actions were drawn from pi_t, `[N, K]`.
        mismatched: for KTO, one completion of another context for each context, K = 1.
        step_reward: the reward of each step, `[N, K, T]`; its sum over steps is the reward in `feedback`. None: all of
            the reward falls on the last step.
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


DECOUPLED = frozenset({"log_prob_mean", "log_prob_covariance", "ref_kl_mean", "ref_kl_covariance"})
"""The fields of a `Likelihood` that only Gaussian policies have."""
PER_STEP = ("log_prob", "ref_log_prob", "ref_kl", "policy_kl", *sorted(DECOUPLED))
"""The fields of a `Likelihood` that have a value for each step."""


@dataclass(frozen=True)
class Likelihood:
    """Log-probabilities, KLs and values of a batch's actions, per step, zero where an action has no step.

    `total()` sums over steps, to `[N, K]`: most objectives read that.

    Args:
        log_prob: log pi(y_t | x, y_<t), `[N, K, T]`. Differentiable.
        ref_log_prob: the same under pi_ref. Constant.
        ref_kl: KL(pi_ref || pi) of each step's distribution, `[N, K, T]`. Differentiable, exact, >= 0.
        policy_kl: KL(pi || pi_ref) of each step's distribution, `[N, K, T]`. For reports.
        log_prob_mean: log-prob of the Gaussian with pi's mean and pi_ref's covariance, `[N, K, T]`. Differentiable.
        log_prob_covariance: the same with pi_ref's mean and pi's covariance, `[N, K, T]`. Differentiable.
        ref_kl_mean: KL(pi_ref || the Gaussian of `log_prob_mean`), `[N, K, T]`. Differentiable, exact.
        ref_kl_covariance: KL(pi_ref || the Gaussian of `log_prob_covariance`), `[N, K, T]`. Differentiable, exact.
        value: V, which the learner takes from a critic: per step `[N, K, T]`, per context `[N, 1]`, or a scalar `[]`.
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
        """Sum every per-step quantity over steps: log pi(y|x) and KL of the whole action, nats, float32 at least."""
        return self.map(sum_steps, PER_STEP)

    def detach(self) -> Likelihood:
        return self.map(Tensor.detach, [item.name for item in fields(self)])

    def map(self, change: Callable[[Tensor], Tensor], names: Iterable[str]) -> Likelihood:
        """`change` applied to the quantities `names`, those that are None aside."""
        parts: dict[str, Any] = {name: getattr(self, name) for name in names}
        return replace(self, **{name: change(part) for name, part in parts.items() if part is not None})


@dataclass(frozen=True)
class Pairs:
    """Pairs of actions of the same context, as DPO, IPO, RPO, REBEL and CoPG compare them.

    Args:
        index: (better, worse) positions in the flattened `[N * K]` actions, `[P, 2]`. The order of a tie is arbitrary.
        gap: reward of the first minus the second, `[P]`; a preference without scores has gap 2 P(win) - 1.
    """

    index: Int[Tensor, "P 2"]
    gap: Float[Tensor, " P"]

    def select(self, rows: slice, num_actions: int, num_contexts: int) -> Pairs:
        """The pairs of the contexts in `rows`, renumbered from that slice's first context."""
        start, stop, _ = rows.indices(num_contexts)
        context = self.index[:, 0] // num_actions
        keep = (context >= start) & (context < stop)
        return Pairs(self.index[keep] - start * num_actions, self.gap[keep])


PER_CONTEXT, PER_PAIR, PER_BATCH = {"per": "context"}, {"per": "pair"}, {"per": "batch"}
"""Metadata of a `Target`'s fields: rows of contexts, `Pairs`, and one value for all contexts."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """What an objective compares likelihoods with. Each objective has a subclass with fields of its own.

    Every field has `PER_CONTEXT`, `PER_PAIR` or `PER_BATCH` as its metadata. A target is made once per *collected*
    batch, without gradient, so that the loss does not depend on micro-batches.

    Args:
        present: which actions exist, `[N, K]`.
        size: what the objective's sum is divided by: the number of elements of the collected batch, at least 1. By
            default it is counted (see `count`).
    """

    present: Bool[Tensor, "N K"] = field(metadata=PER_CONTEXT)
    size: float = field(default=0.0, metadata=PER_BATCH)

    def __post_init__(self) -> None:
        if not self.size:
            object.__setattr__(self, "size", max(float(self.count()), 1.0))

    def count(self) -> int:
        """How many elements the objective is a mean over: present actions, unless a subclass counts others."""
        return int(self.present.sum())

    def select(self, rows: slice) -> Target:
        """The target of some contexts, for a micro-batch: `size` stays the collected batch's."""
        num_contexts, num_actions = self.present.shape
        parts: dict[str, Any] = {}
        for item in fields(self):
            value = getattr(self, item.name)
            if item.metadata == PER_PAIR:
                parts[item.name] = value.select(rows, num_actions, num_contexts)
            elif item.metadata == PER_CONTEXT:
                parts[item.name] = select_rows(value, rows)
        return replace(self, **parts)

    def minibatch(self, rows: slice) -> Target:
        """The target of some contexts, for an optimizer step of their own: `size` is counted anew."""
        return replace(self.select(rows), size=0.0)


@dataclass(frozen=True)
class Loss:
    """The loss of each action or pair, unreduced.

    Args:
        terms: "policy", "value", "dual" -> per-action `[N, K]`, per-pair `[P]` or per-context `[N, 1]` losses, zero
            where absent. The learner minimises the sum of all terms divided by `Target.size`.
        metrics: name -> scalar, constant, a mean over this (micro-)batch.
    """

    terms: Mapping[str, Tensor]
    metrics: Mapping[str, Tensor] = field(default_factory=dict)

    def total(self, size: float) -> Tensor:
        """The scalar to differentiate: all terms summed, divided by `size`."""
        return torch.stack([term.sum() for term in self.terms.values()]).sum() / size
