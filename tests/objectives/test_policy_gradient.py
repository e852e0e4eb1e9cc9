"""REINFORCE, RLOO, CoPG: values by hand, and how they stand to REBEL."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from valence.objectives import REBEL, REINFORCE, RLOO, CoPG, copg_loss, leave_one_out_advantages
from valence.types import Likelihood, Rewards


def rewards_of(*rows: tuple[float, ...]) -> Rewards:
    value = torch.tensor(rows, dtype=torch.float64)
    return Rewards(value, torch.ones_like(value, dtype=torch.bool))


def test_leave_one_out_by_hand():
    """1, 2, 6: the others' means are 4, 3.5 and 1.5; an absent action counts nowhere; an action alone has 0."""
    reward = torch.tensor([[1.0, 2.0, 6.0], [1.0, 3.0, torch.nan], [5.0, torch.nan, torch.nan]])
    present = torch.tensor([[True] * 3, [True, True, False], [True, False, False]])
    found = leave_one_out_advantages(reward, present)
    assert found.tolist() == [[-3.0, -1.5, 4.5], [-2.0, 2.0, 0.0], [0.0, 0.0, 0.0]]


def test_leave_one_out_does_not_cancel_at_a_large_offset():
    """Rewards of 1e6 + 0, 1/16, 1/8, 1/4, all exact in float32: others' means are 7/48, 1/8, 5/48, 1/16 above 1e6.

    The sum of four of them, 4e6, has a spacing of 1/4 in float32. Equal rewards have advantages of exactly 0.
    """
    above = torch.tensor([[0.0, 1 / 16, 1 / 8, 1 / 4]])
    reward = 1e6 + above
    assert reward.dtype == torch.float32 and torch.equal(reward - 1e6, above)
    expected = above - torch.tensor([[7 / 48, 1 / 8, 5 / 48, 1 / 16]])
    present = torch.ones(1, 4, dtype=torch.bool)
    torch.testing.assert_close(leave_one_out_advantages(reward, present), expected, atol=1e-7, rtol=0)
    for value in (3.3, 1e6 + 0.3, -7e-5):
        assert not leave_one_out_advantages(torch.full((1, 8), value), torch.ones(1, 8, dtype=torch.bool)).any()


def test_objectives_keep_small_differences_of_large_rewards(make_batch):
    above = torch.tensor([[0.0, 1 / 16, 1 / 8, 1 / 4]])
    batch = make_batch(Rewards(1e6 + above, torch.ones(1, 4, dtype=torch.bool)))
    expected = above - torch.tensor([[7 / 48, 1 / 8, 5 / 48, 1 / 16]])
    for objective in (RLOO(), REINFORCE()):
        torch.testing.assert_close(objective.prepare(batch, None).advantage, expected, atol=1e-7, rtol=0)


def test_rloo_by_hand(make_batch):
    """Advantages -3, -1.5, 4.5 on log-probs of -1, -2, -3: losses -3, -3, 13.5 (minus advantage times log pi)."""
    target = RLOO().prepare(make_batch(rewards_of((1.0, 2.0, 6.0))), None)
    log_prob = torch.tensor([[[-1.0], [-2.0], [-3.0]]], dtype=torch.float64)
    loss = RLOO()(Likelihood(log_prob), target)
    assert loss.terms["policy"].tolist() == [[-3.0, -3.0, 13.5]] and target.size == 3


def test_reinforce_has_one_baseline_for_all_contexts(make_batch):
    """Rewards 0, 4 and 8, 12 of two contexts: the mean of the other three is 8, 20/3, 16/3, 4."""
    batch = make_batch(rewards_of((0.0, 4.0), (8.0, 12.0)))
    log_prob = torch.full((2, 2, 1), -1.0, dtype=torch.float64)
    loss = REINFORCE()(Likelihood(log_prob), REINFORCE().prepare(batch, None))
    expected = torch.tensor([[-8.0, 4 - 20 / 3], [8 - 16 / 3, 8.0]], dtype=torch.float64)
    torch.testing.assert_close(loss.terms["policy"], expected)
    plain = REINFORCE(baseline="none")
    assert plain(Likelihood(log_prob), plain.prepare(batch, None)).terms["policy"].tolist() == [[0.0, 4.0], [8.0, 12.0]]


def test_copg_by_hand():
    """beta 1/2, log-ratio gap 2, reward gap 3: (3 - 1)^2 / 1 = 4."""
    assert copg_loss(torch.tensor([2.0]), torch.tensor([3.0]), beta=0.5).item() == 4.0


def gradient(objective, batch, likelihood: Likelihood, log_prob: Tensor) -> Tensor:
    target = objective.prepare(batch, None)
    return torch.autograd.grad(objective(likelihood, target).total(target.size), log_prob)[0]


@pytest.mark.parametrize("eta", [0.3, 2.0])
def test_rebel_at_the_anchor_is_four_over_eta_times_rloo(eta, make_batch):
    """REBEL paper, section 3.2: with two actions at pi = pi_t (RLOO averaged over the two)."""
    from dataclasses import replace

    value = torch.randn(6, 2, dtype=torch.float64)
    log_prob = (-torch.rand(6, 2, 1, dtype=torch.float64)).requires_grad_()
    batch = make_batch(Rewards(value, torch.ones(6, 2, dtype=torch.bool)))
    batch = replace(batch, old_log_prob=log_prob.detach())
    ours = gradient(REBEL(eta=eta, anchor="old"), batch, Likelihood(log_prob), log_prob)
    theirs = gradient(RLOO(), batch, Likelihood(log_prob), log_prob)
    torch.testing.assert_close(ours, 4 / eta * theirs, rtol=0, atol=1e-12)


def test_copg_is_rebel_anchored_at_the_reference(make_batch):
    """With eta = 1 / beta: REBEL's loss over 2 beta, beta^2 of it inside the square."""
    value = torch.randn(4, 3, dtype=torch.float64)
    log_prob = (-torch.rand(4, 3, 1, dtype=torch.float64)).requires_grad_()
    batch = make_batch(Rewards(value, torch.ones(4, 3, dtype=torch.bool)))
    likelihood, beta = Likelihood(log_prob, -torch.rand(4, 3, 1, dtype=torch.float64)), 0.4
    ours = gradient(CoPG(beta=beta), batch, likelihood, log_prob)
    theirs = gradient(REBEL(eta=1 / beta), batch, likelihood, log_prob)
    torch.testing.assert_close(ours, theirs / (2 * beta), rtol=0, atol=1e-12)


@pytest.mark.parametrize("objective", [RLOO(), REBEL(eta=0.5), CoPG(beta=0.3)], ids=["rloo", "rebel", "copg"])
def test_what_depends_on_the_context_alone_changes_nothing(objective, make_batch):
    value = torch.randn(5, 3, dtype=torch.float64)
    log_prob = (-torch.rand(5, 3, 1, dtype=torch.float64)).requires_grad_()
    likelihood = Likelihood(log_prob, -torch.rand(5, 3, 1, dtype=torch.float64))
    present = torch.ones(5, 3, dtype=torch.bool)
    moved = value + 7 * torch.randn(5, 1, dtype=torch.float64)
    first, second = (gradient(objective, make_batch(Rewards(v, present)), likelihood, log_prob) for v in (value, moved))
    torch.testing.assert_close(first, second, rtol=0, atol=1e-10)
    assert float(first.abs().max()) > 0


def test_copg_converges_to_the_regularised_optimum(bandit):
    score = torch.tensor([1.0, 0.0, -0.5, 0.5], dtype=torch.float64)
    actions, _ = bandit.rows(accepted=(0, 0, 0, 0))
    rewards = Rewards(score[actions.T], torch.ones(1, 8, dtype=torch.bool))
    policy = bandit.fit(CoPG(beta=0.5), rewards, actions.T)
    torch.testing.assert_close(policy, (bandit.log_reference + score / 0.5).softmax(-1), atol=1e-3, rtol=0)
