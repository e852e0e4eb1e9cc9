"""What the rooms ask of each other: a few methods each, nothing to inherit from.

Shape legend: see `valence.types`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from valence.types import DECOUPLED, Action, Batch, Feedback, Likelihood, Loss, Target

NEEDS = frozenset({"log_prob", "ref_log_prob", "ref_kl", "policy_kl", "value"}) | DECOUPLED


@runtime_checkable
class Policy(Protocol):
    """A product of T conditional distributions."""

    def sample(self, context: Any, num_samples: int, generator: torch.Generator) -> Action:
        """Draw `num_samples` actions for each context: steps `[N, num_samples, T, ...]`."""
        ...

    def likelihood(self, batch: Batch, reference: Reference | None, needs: frozenset[str]) -> Likelihood:
        """Measure: the per-step likelihoods in `needs` of `batch`'s actions, differentiable in the policy."""
        ...

    def backward(
        self, batch: Batch, reference: Reference | None, likelihood: Likelihood, grads: Mapping[str, Tensor]
    ) -> None:
        """Pull back: add to the parameters' `.grad` the gradient `grads` of the loss w.r.t. `likelihood`'s tensors.

        `likelihood` is what `likelihood()` returned for this batch; a policy that kept its graph walks it, one that
        did not may measure again in its own cheapest way.
        """
        ...

    def parameters(self) -> Any:
        """The trainable parameters."""
        ...


@runtime_checkable
class Reference(Protocol):
    """What the KL is to."""

    def active(self) -> AbstractContextManager[Any]:
        """Inside, the value is a policy with the reference's weights; no gradient flows into it."""
        ...

    def after_step(self, policy: Any, step: int) -> None:
        """Called by the learner after optimizer step number `step`, counted from 1."""
        ...

    def trainable(self) -> dict[str, nn.Parameter]:
        """The weights that a checkpoint must hold: none where the reference can be made again from the policy."""
        ...


@runtime_checkable
class LogProbCache(Reference, Protocol):
    """A reference that stores log pi_ref of the rows that it has measured."""

    def recall_log_probs(self, rows: Any, measure: Callable[[Any], Tensor]) -> Tensor:
        """log pi_ref of the M real steps of `rows`, row by row, `[M]`; `measure` gives them for rows not yet stored."""
        ...


@runtime_checkable
class HiddenCache(Reference, Protocol):
    """A reference that stores its last hidden states of the rows that it has measured."""

    def recall_hidden(self, rows: Any, measure: Callable[[Any], Tensor]) -> Tensor:
        """The hidden states at the M real steps of `rows`, row by row, `[M, H]`; `measure` gives them for new rows."""
        ...


@runtime_checkable
class Objective(Protocol):
    """A frozen dataclass: pure arithmetic on a batch's likelihoods.

    One whose loss is linear in them (PMPO, supervised) says so by a class variable `linear = True`: its gradient with
    respect to them is then known before anything is measured.
    """

    @property
    def needs(self) -> frozenset[str]:
        """Which of `NEEDS` it reads."""
        ...

    @property
    def frozen_needs(self) -> frozenset[str]:
        """What `prepare` must be given without gradient: of `NEEDS`, or "mismatched" for KTO's completions."""
        ...

    @property
    def accepts(self) -> tuple[type, ...]:
        """The feedback types that it takes."""
        ...

    def prepare(self, batch: Batch, frozen: Likelihood | None) -> Target:
        """Turn feedback into targets, once per collected batch, without gradient."""
        ...

    def __call__(self, likelihood: Likelihood, target: Target, state: nn.Module | None = None) -> Loss:
        """Judge."""
        ...

    def state(self) -> nn.Module | None:
        """A small module for what it learns on the side (MPO's duals), or None."""
        ...


@runtime_checkable
class FeedbackFn(Protocol):
    """Whoever judges: a reward function, a reward model, an ensemble, a preference judge, a Q-critic."""

    def __call__(self, context: Any, action: Action) -> Feedback: ...


@runtime_checkable
class Source(Protocol):
    """Where batches come from.

    Attributes:
        unit, num_units: what speed is counted in ("tokens", "env_steps"), and how many the last batch took.
    """

    unit: str
    num_units: int

    def next(self, policy: Policy) -> Batch: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


@runtime_checkable
class Critic(Protocol):
    """A value estimate owned by the learner: `[N, K, T]` per step, `[N, 1]` per context, or a scalar."""

    def value(self, batch: Batch) -> Tensor: ...

    def parameters(self) -> Any: ...
