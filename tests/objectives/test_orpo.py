"""ORPO: values worked by hand, where the gradient flows, and certain actions."""

from __future__ import annotations

import math

import pytest
import torch

from valence.objectives.orpo import ORPO, log_odds, orpo_loss
from valence.types import Likelihood, Rewards

MASK = torch.tensor([[[1, 1], [1, 0]]], dtype=torch.bool)
PRESENT = torch.ones(1, 2, dtype=torch.bool)


def test_log_odds_by_hand() -> None:
    probability = torch.tensor([0.5, 0.8, 0.1], dtype=torch.float64)
    expected = torch.tensor([0.0, math.log(4.0), -math.log(9.0)], dtype=torch.float64)
    torch.testing.assert_close(log_odds(probability.log()), expected)


def test_the_loss_by_hand(make_batch) -> None:
    # Means of a step are log 0.8 and log 0.5, so the odds are 4 and 1, and sigmoid(log 4) = 0.8.
    log_prob = torch.tensor([[[2 * math.log(0.8), 0.0], [math.log(0.5), 0.0]]])
    objective = ORPO(odds_weight=0.25)
    target = objective.prepare(make_batch(Rewards(torch.tensor([[1.0, 0.0]]), PRESENT), 2, MASK), None)
    loss = objective(Likelihood(log_prob=log_prob, mask=MASK), target)
    assert loss.total(target.size).item() == pytest.approx(-1.25 * math.log(0.8), rel=1e-5)
    assert loss.metrics["log_odds_ratio"].item() == pytest.approx(math.log(4.0), rel=1e-5)
    assert loss.metrics["reward_accuracy"].item() == 1.0


def test_the_gradient_is_the_papers() -> None:
    """Eq. 7: the odds-ratio term's gradient is -delta (grad log P_w / (1 - P_w) - grad log P_l / (1 - P_l)) with
    delta = 1 / (1 + odds_w / odds_l)."""
    better = torch.tensor([math.log(0.6)], dtype=torch.float64, requires_grad=True)
    worse = torch.tensor([math.log(0.3)], dtype=torch.float64, requires_grad=True)
    orpo_loss(better, worse, weight=2.0).sum().backward()
    delta = 1 / (1 + (0.6 / 0.4) / (0.3 / 0.7))
    assert better.grad is not None and worse.grad is not None
    assert better.grad.item() == pytest.approx(-1 - 2 * delta / 0.4)
    assert worse.grad.item() == pytest.approx(2 * delta / 0.7)


def test_a_certain_action_has_finite_loss_and_gradient() -> None:
    better = torch.zeros(1, requires_grad=True)
    loss = orpo_loss(better, torch.tensor([-1.0]), weight=0.1)
    loss.sum().backward()
    assert better.grad is not None and bool(loss.isfinite().all()) and bool(better.grad.isfinite().all())


def test_without_its_weight_it_is_the_mean_negative_log_likelihood_of_the_better() -> None:
    better, worse = torch.tensor([-0.7, -2.0]), torch.tensor([-0.1, -3.0])
    torch.testing.assert_close(orpo_loss(better, worse, weight=0.0), -better)


def test_descent_prefers_the_better_action(make_batch) -> None:
    logits = torch.zeros(3, requires_grad=True)
    mask, present = torch.ones(1, 2, 1, dtype=torch.bool), torch.ones(1, 2, dtype=torch.bool)
    objective = ORPO(odds_weight=1.0)
    target = objective.prepare(make_batch(Rewards(torch.tensor([[1.0, 0.0]]), present)), None)
    for _ in range(300):
        log_prob = logits.log_softmax(-1)[:2][None, :, None]
        (grad,) = torch.autograd.grad(objective(Likelihood(log_prob=log_prob, mask=mask), target).total(1.0), logits)
        with torch.no_grad():
            logits -= 0.5 * grad
    first, second, other = logits.softmax(-1).tolist()
    # The supervised term lowers both others; the odds ratio lowers the worse one further.
    assert first > 0.9 and second < other


def test_a_negative_weight_is_refused() -> None:
    with pytest.raises(ValueError, match="odds_weight"):
        ORPO(odds_weight=-0.1)
