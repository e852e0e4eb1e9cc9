"""REBEL: values by hand, ties, and convergence to pi_ref e^{eta r}."""

from __future__ import annotations

import pytest
import torch
from torch.autograd import gradcheck

from valence.objectives import REBEL, rebel_loss
from valence.types import Likelihood, Preferences, Rewards


def test_value_by_hand():
    """eta = 1/2: (2 (1.5) - 1)^2 = 4."""
    assert rebel_loss(torch.tensor([1.5]), torch.tensor([1.0]), eta=0.5).item() == 4.0


def test_objective_by_hand(make_batch):
    """log-ratios 1, 0, 0; rewards 2, 0, 2; eta = 1. Pairs: (1 - 2)^2 = 1, (1 - 0)^2 = 1 (a tie counts),
    (0 - 2)^2 = 4: mean 2. Two of the pairs have an order: one right, one even."""
    rewards = Rewards(torch.tensor([[2.0, 0.0, 2.0]]), torch.ones(1, 3, dtype=torch.bool))
    target = REBEL().prepare(make_batch(rewards), None)
    log_prob = torch.tensor([[[0.0], [-1.0], [-1.0]]])
    loss = REBEL()(Likelihood(log_prob, torch.full((1, 3, 1), -1.0)), target)
    assert target.size == 3
    assert sorted(loss.terms["policy"].tolist()) == [1.0, 1.0, 4.0]
    assert loss.metrics["reward_accuracy"].item() == 0.5


def test_gaps_of_bare_preferences_and_margins(make_batch):
    """P = 3/4 gives 2 P - 1 = 1/2; a margin of 5 given for the second context replaces it; log-ratio gap 0."""
    win = torch.tensor([[[0.0, 0.75], [0.25, 0.0]]]).expand(2, 2, 2)
    observed = ~torch.eye(2, dtype=torch.bool).expand(2, 2, 2)
    margin = torch.full((2, 2, 2), torch.nan)
    margin[1, 0, 1] = 5.0
    preferences = Preferences(win, observed, torch.ones(2, 2, dtype=torch.bool), margin)
    target = REBEL().prepare(make_batch(preferences), None)
    zeros = torch.zeros(2, 2, 1)
    assert REBEL()(Likelihood(zeros, zeros), target).terms["policy"].tolist() == [0.25, 25.0]


def test_a_tied_preference_is_information(make_batch):
    """P = 1/2 says that the log-ratios should be equal: their gap of 1 costs 1."""
    win = torch.full((1, 2, 2), 0.5)
    observed = ~torch.eye(2, dtype=torch.bool)[None]
    target = REBEL().prepare(make_batch(Preferences(win, observed, torch.ones(1, 2, dtype=torch.bool))), None)
    loss = REBEL()(Likelihood(torch.tensor([[[-1.0], [-2.0]]]), torch.full((1, 2, 1), -1.0)), target)
    assert loss.terms["policy"].tolist() == [1.0]


def test_gradcheck():
    generator = torch.Generator().manual_seed(0)
    ratio_gap, reward_gap = torch.randn(2, 5, dtype=torch.float64, generator=generator)
    assert gradcheck(lambda a: rebel_loss(a, reward_gap, eta=0.7), (ratio_gap.requires_grad_(),))


@pytest.mark.parametrize("tau", [0.5, 2.0])
def test_converges_to_its_optimum(bandit, tau):
    """All gaps can be met at once: (1 / eta) log(pi / pi_ref) = r + constant; eta = 1 / tau."""
    score = torch.tensor([1.0, 0.0, -0.5, 0.5], dtype=torch.float64)
    actions, _ = bandit.rows(accepted=(0, 0, 0, 0))
    rewards = Rewards(score[actions.T], torch.ones(1, 8, dtype=torch.bool))
    policy = bandit.fit(REBEL(eta=1 / tau), rewards, actions.T)
    expected = (bandit.log_reference + score / tau).softmax(-1)
    torch.testing.assert_close(policy, expected, atol=1e-3, rtol=0)


@pytest.mark.parametrize("eta", [0.0, -1.0, float("nan")])
def test_eta_is_validated(eta):
    with pytest.raises(ValueError, match="`eta` must be finite and > 0"):
        REBEL(eta=eta)
