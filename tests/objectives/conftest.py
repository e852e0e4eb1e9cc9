"""A bandit small enough to enumerate: expectations are exact because a data set of whole counts spells them out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from valence.types import Action, Batch, Feedback, Labels, Likelihood

REFERENCE = (1, 2, 3, 2)
"""How often each action stands in the data: pi_ref = counts / 8."""


def make_batch(
    feedback: Feedback, steps: int = 1, mask: Tensor | None = None, mismatched: Action | None = None
) -> Batch:
    """A batch of nameless actions; objectives never look at them."""
    shape = (*feedback.present.shape, steps)
    mask = feedback.present[..., None].expand(shape) if mask is None else mask
    return Batch(None, Action(torch.zeros(shape), mask), feedback, mismatched=mismatched)


@dataclass(frozen=True)
class Bandit:
    """One context, a handful of actions, a softmax policy over them."""

    reference: Tensor

    @property
    def log_reference(self) -> Tensor:
        return self.reference.log()

    def rows(self, *, accepted: tuple[int, ...]) -> tuple[Tensor, Labels]:
        """One row for each count of `REFERENCE`, of which `accepted[a]` rows of action a are accepted."""
        actions, signs = [], []
        for action, (total, good) in enumerate(zip(REFERENCE, accepted, strict=True)):
            actions += [action] * total
            signs += [1] * good + [-1] * (total - good)
        sign = torch.tensor(signs)[:, None]
        return torch.tensor(actions)[:, None], Labels(sign, torch.ones_like(sign, dtype=torch.bool))

    def likelihood(self, logits: Tensor, actions: Tensor, value: Tensor | None = None) -> Likelihood:
        """Exact likelihoods of `actions [N, K]` under softmax(logits), one step each."""
        log_policy = logits.log_softmax(-1)
        ref_kl = (self.reference * (self.log_reference - log_policy)).sum()
        return Likelihood(
            log_prob=log_policy[actions][..., None],
            ref_log_prob=self.log_reference[actions][..., None],
            ref_kl=ref_kl.expand(*actions.shape, 1),
            value=value,
            mask=torch.ones(*actions.shape, 1, dtype=torch.bool),
        )

    def fit(self, objective, feedback: Feedback, actions: Tensor, frozen: Likelihood | None = None) -> Tensor:
        """The policy at the minimum, by L-BFGS from pi_ref. `prepare` sees the current policy each time."""
        logits = self.log_reference.clone().requires_grad_()
        batch = make_batch(feedback)

        def loss() -> Tensor:
            likelihood = self.likelihood(logits, actions)
            target = objective.prepare(batch, likelihood.detach() if frozen is None else frozen)
            return objective(likelihood, target).total(target.size)

        minimise(loss, logits)
        return logits.detach().softmax(-1)


def minimise(loss: Callable[[], Tensor], parameter: Tensor, steps: int = 400) -> None:
    optimizer = torch.optim.LBFGS(
        [parameter], max_iter=steps, line_search_fn="strong_wolfe", tolerance_grad=1e-9, tolerance_change=1e-13
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss()
        value.backward()
        return value

    optimizer.step(closure)


@pytest.fixture
def bandit() -> Bandit:
    return Bandit(torch.tensor(REFERENCE, dtype=torch.float64) / sum(REFERENCE))


@pytest.fixture(name="make_batch")
def _make_batch():
    return make_batch


@pytest.fixture(name="minimise")
def _minimise():
    return minimise
