"""What the rooms call of each other: a few methods each. A class fits by having them; it inherits from nothing here.

Shape legend: see `valence.types`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor, nn

from valence.types import Action, Batch, Likelihood, Loss, Target

TargetT = TypeVar("TargetT", bound=Target)


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

    def parameters(self) -> Iterator[nn.Parameter]:
        """All parameters, also those that do not learn."""
        ...

    def trainable(self) -> dict[str, nn.Parameter]:
        """Name -> parameter, of those that learn."""
        ...

    def frozen_copy(self, *, dtype: torch.dtype | None = None, device: str | None = None) -> Policy:
        """A copy that does not learn, optionally in another precision or on another device."""
        ...

    def save(self, folder: Path) -> None:
        """Write the policy to `folder`, for the loader of its kind."""
        ...


@runtime_checkable
class LinearPolicy(Policy, Protocol):
    """A policy that measures and pulls back in one pass, where the gradient is known before anything is measured."""

    def likelihood_and_backward(
        self, batch: Batch, reference: Reference | None, needs: frozenset[str], grads: Mapping[str, Tensor]
    ) -> Likelihood:
        """`likelihood` and `backward` in one. Returns the likelihood without its graph."""
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
class Objective(Protocol[TargetT]):
    """A frozen dataclass: pure arithmetic on a batch's likelihoods.

    Class attributes, or properties where they depend on the dataclass's fields:
        needs: the fields of `Likelihood` that the loss reads.
        frozen_needs: those that `prepare` reads, without gradient; "mismatched" is the likelihood of
            `Batch.mismatched`.
        accepts: the feedback types that `prepare` accepts.
        linear: whether the loss is linear in the likelihoods, so that its gradient is known before they are measured.
    """

    @property
    def needs(self) -> frozenset[str]: ...

    @property
    def frozen_needs(self) -> frozenset[str]: ...

    @property
    def accepts(self) -> tuple[type, ...]: ...

    @property
    def linear(self) -> bool: ...

    def prepare(self, batch: Batch, frozen: Likelihood | None) -> TargetT:
        """Turn feedback into a target, once per collected batch, without gradient."""
        ...

    def __call__(self, likelihood: Likelihood, target: TargetT) -> Loss:
        """The loss of each action or pair."""
        ...

    def state(self) -> nn.Module | None:
        """A small module with parameters that the objective learns besides the policy's (MPO's duals), or None."""
        ...


@runtime_checkable
class Source(Protocol):
    """Gives one batch after another.

    Attributes:
        unit: what speed is counted in, such as "tokens" or "env_steps".
        num_units: how many units the last batch took.
        figures: name -> number, of the last batch, to log beside the learner's metrics.
    """

    unit: str
    num_units: int
    figures: dict[str, float]

    def next(self, policy: Policy) -> Batch:
        """The next batch; online sources sample it from `policy`."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint must hold to go on exactly here."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


@runtime_checkable
class Critic(Protocol):
    """A value estimate that the learner trains beside the policy."""

    def value(self, batch: Batch) -> Tensor:
        """V of the batch's actions, differentiable: per step `[N, K, T]`, per context `[N, 1]`, or a scalar `[]`."""
        ...

    def parameters(self) -> Iterator[nn.Parameter]:
        """All parameters of its own, also those that do not learn."""
        ...

    def trainable(self) -> dict[str, nn.Parameter]:
        """Name -> parameter, of those that learn."""
        ...
