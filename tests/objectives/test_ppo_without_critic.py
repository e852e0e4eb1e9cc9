"""PPO without a critic: values and gradients by hand, the textbook's mean over steps, what the clip lets through."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from valence.objectives import REINFORCE, PPOWithoutCritic
from valence.types import Likelihood, Rewards

OLD = -1.0


def two_actions(make_batch):
    """One action of two steps worth 2, one of one step worth -1, each step of log pi_t = -1."""
    feedback = Rewards(torch.tensor([[2.0, -1.0]]), torch.ones(1, 2, dtype=torch.bool))
    mask = torch.tensor([[[True, True], [True, False]]])
    return replace(make_batch(feedback, steps=2, mask=mask), old_log_prob=OLD * mask), mask


def ratios(values, mask):
    """A likelihood whose ratios to pi_t are these."""
    return Likelihood(OLD + torch.tensor(values).log(), mask=mask)


def test_at_the_policy_that_collected(make_batch):
    """rho = 1: minus the rewards, and each step of an action has its equal share of the gradient, -A / |y|."""
    batch, mask = two_actions(make_batch)
    objective = PPOWithoutCritic()
    target = objective.prepare(batch, None)
    log_prob = torch.full((1, 2, 2), OLD, requires_grad=True)
    loss = objective(Likelihood(log_prob, mask=mask), target)
    torch.testing.assert_close(loss.terms["policy"].detach(), torch.tensor([[-2.0, 1.0]]))
    assert target.size == 2 and loss.total(target.size).item() == pytest.approx(-0.5)
    loss.terms["policy"].sum().backward()
    torch.testing.assert_close(log_prob.grad, torch.tensor([[[-1.0, -1.0], [1.0, 0.0]]]))
    assert loss.metrics["clipped"].item() == 0


def test_what_the_clip_lets_through(make_batch):
    """eps 0.2. A = 2: rho 1.5 counts 1.2 and is let go, rho 0.5 counts whole. A = -1: rho 1.5 counts whole."""
    batch, mask = two_actions(make_batch)
    objective = PPOWithoutCritic(clip=0.2)
    target = objective.prepare(batch, None)
    log_prob = ratios([[[1.5, 0.5], [1.5, 1.0]]], mask).log_prob.requires_grad_()
    loss = objective(Likelihood(log_prob, mask=mask), target)
    torch.testing.assert_close(loss.terms["policy"].detach(), torch.tensor([[-(2.4 + 1.0) / 2, 1.5]]))
    loss.terms["policy"].sum().backward()
    torch.testing.assert_close(log_prob.grad, torch.tensor([[[0.0, -0.5], [1.5, 0.0]]]))
    assert loss.metrics["clipped"].item() == 1
    # A = -1 and rho 0.5: it is 0.8 that counts, and nothing more is to be gained.
    lower = ratios([[[1.0, 1.0], [0.5, 1.0]]], mask).log_prob.requires_grad_()
    loss = objective(Likelihood(lower, mask=mask), target)
    assert loss.terms["policy"][0, 1].item() == pytest.approx(0.8)
    loss.terms["policy"].sum().backward()
    assert lower.grad is not None and lower.grad[0, 1].tolist() == [0.0, 0.0]
    assert loss.metrics["clipped"].item() == pytest.approx(1 / 3)


def test_it_is_the_textbooks_mean_over_steps(make_batch):
    """Where actions have as many steps each, as a sampler's have: its last step, which drew nothing, is no step."""
    generator = torch.Generator().manual_seed(4)
    value = torch.randn(3, 2, generator=generator)
    mask = torch.ones(3, 2, 5, dtype=torch.bool)
    mask[..., -1] = False
    old, new = (torch.randn(3, 2, 5, generator=generator) * 0.4 for _ in range(2))
    batch = make_batch(Rewards(value, torch.ones(3, 2, dtype=torch.bool)), steps=5, mask=mask)
    objective = PPOWithoutCritic(clip=0.3)
    target = objective.prepare(replace(batch, old_log_prob=old), None)
    ours = objective(Likelihood(new, mask=mask), target).total(target.size).item()
    found = []
    for row in range(3):
        for column in range(2):
            for step in range(4):
                ratio = math.exp(new[row, column, step].item() - old[row, column, step].item())
                reward = value[row, column].item()
                found.append(min(ratio * reward, min(max(ratio, 0.7), 1.3) * reward))
    assert ours == pytest.approx(-sum(found) / len(found), rel=1e-5)
    assert any(part != 0 for part in found)


def test_on_policy_its_gradient_is_reinforces_over_the_number_of_steps(make_batch):
    """REINFORCE without a baseline is a mean over actions of a sum over steps; this one is a mean over steps too."""
    batch, mask = two_actions(make_batch)
    gradients = []
    for objective in (PPOWithoutCritic(), REINFORCE(baseline="none")):
        log_prob = torch.full((1, 2, 2), OLD, requires_grad=True)
        target = objective.prepare(batch, None)
        objective(Likelihood(log_prob, mask=mask), target).total(target.size).backward()
        assert log_prob.grad is not None
        gradients.append(log_prob.grad[mask])
    torch.testing.assert_close(gradients[0] * torch.tensor([2.0, 2.0, 1.0]), gradients[1])


def test_it_learns_from_rewards_of_a_collecting_policy_alone(make_batch):
    batch, _ = two_actions(make_batch)
    with pytest.raises(ValueError, match=r"PPOWithoutCritic needs `Batch\.old_log_prob`"):
        PPOWithoutCritic().prepare(replace(batch, old_log_prob=None), None)
    with pytest.raises(ValueError, match="`clip` must be finite and > 0"):
        PPOWithoutCritic(clip=0.0)
