"""SimPO: values worked by hand, where the gradient flows, and what length and margin do."""

from __future__ import annotations

import math

import pytest
import torch

from valence.objectives.simpo import SimPO, simpo_loss
from valence.types import Likelihood, Preferences, Rewards

MASK = torch.tensor([[[1, 1], [1, 0]]], dtype=torch.bool)
PRESENT = torch.ones(1, 2, dtype=torch.bool)


def judged(make_batch, log_prob: torch.Tensor, mask: torch.Tensor = MASK, **fields: float):
    """(loss, target) of one context whose first action is better than its second."""
    objective = SimPO(**fields)
    target = objective.prepare(make_batch(Rewards(torch.tensor([[1.0, 0.0]]), PRESENT), 2, mask), None)
    return objective(Likelihood(log_prob=log_prob, mask=mask), target), target


def test_the_loss_by_hand(make_batch) -> None:
    # The better action has two steps, the worse one. Means of a step: (-1 - 3) / 2 = -2 and -1.5, so the gap is -0.5
    # and beta gap - gamma = -1 - 0.5 = -1.5.
    loss, target = judged(make_batch, torch.tensor([[[-1.0, -3.0], [-1.5, 0.0]]]), beta=2.0, gamma=0.5)
    assert loss.total(target.size).item() == pytest.approx(math.log1p(math.exp(1.5)), rel=1e-6)
    assert loss.metrics["reward_margin"].item() == pytest.approx(-1.0)
    assert loss.metrics["reward_accuracy"].item() == 0.0


def test_the_gradient_flows_into_every_step_over_the_action_s_length(make_batch) -> None:
    log_prob = torch.tensor([[[-1.0, -3.0], [-1.5, 0.0]]], requires_grad=True)
    loss, target = judged(make_batch, log_prob, beta=2.0, gamma=0.5)
    loss.total(target.size).backward()
    # d/dm of -log sigmoid(u) is -(1 - sigmoid(u)) beta; each of two steps has half of it, the single step all.
    strength = 2.0 / (1 + math.exp(-1.5))
    expected = torch.tensor([[[-strength / 2, -strength / 2], [strength, 0.0]]])
    assert log_prob.grad is not None
    torch.testing.assert_close(log_prob.grad[MASK], expected[MASK])


def test_the_length_of_an_action_changes_nothing(make_batch) -> None:
    once, twice = (torch.tensor([[[1, more], [1, 1]]], dtype=torch.bool) for more in (0, 1))
    short, _ = judged(make_batch, torch.tensor([[[-1.0, 0.0], [-2.0, -2.0]]]), once)
    long, _ = judged(make_batch, torch.tensor([[[-1.0, -1.0], [-2.0, -2.0]]]), twice)
    torch.testing.assert_close(short.terms["policy"], long.terms["policy"])
    torch.testing.assert_close(short.terms["policy"], simpo_loss(torch.tensor([1.0]), beta=2.0, gamma=1.0))


def test_it_asks_for_no_reference_and_drops_ties(make_batch) -> None:
    assert SimPO().needs == {"log_prob"} and not SimPO().frozen_needs
    tie = torch.full((1, 2, 2), 0.5)
    feedback = Preferences(tie, ~torch.eye(2, dtype=torch.bool)[None], PRESENT)
    target = SimPO().prepare(make_batch(feedback, 2, MASK), None)
    assert len(target.pairs.gap) == 0


def test_descent_reaches_the_margin(make_batch) -> None:
    """A softmax over two one-step actions: the gap of log pi is the logit gap, which grows past gamma / beta."""
    logits = torch.zeros(2, requires_grad=True)
    mask = torch.ones(1, 2, 1, dtype=torch.bool)
    objective = SimPO(beta=2.0, gamma=3.0)
    target = objective.prepare(make_batch(Rewards(torch.tensor([[1.0, 0.0]]), PRESENT)), None)
    for _ in range(400):
        loss = objective(Likelihood(log_prob=logits.log_softmax(-1)[None, :, None], mask=mask), target)
        (grad,) = torch.autograd.grad(loss.total(target.size), logits)
        with torch.no_grad():
            logits -= 0.5 * grad
    assert (logits[0] - logits[1]).item() > 3.0 / 2.0


@pytest.mark.parametrize("fields", [{"beta": 0.0}, {"beta": math.inf}, {"gamma": -1.0}, {"gamma": math.nan}])
def test_fields_out_of_range_are_refused(fields: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(fields))):
        SimPO(**fields)
