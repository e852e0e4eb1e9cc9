"""PPO, APA and GRPO: values by hand, and what clipping lets through."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from valence.objectives import (
    APA,
    GRPO,
    PPO,
    PPOWithoutCritic,
    apa_loss,
    clipped_loss,
    clipped_value_loss,
    group_advantages,
)  # fmt: skip
from valence.objectives.ppo import step_rewards
from valence.types import Likelihood, Rewards


def test_clipped_loss_by_hand():
    """eps 0.2. A = 1: rho 1.5 counts 1.2; A = -1: rho 1.5 counts whole, rho 0.5 counts 0.8."""
    ratio = torch.tensor([1.5, 1.5, 0.5, 1.0], requires_grad=True)
    loss = clipped_loss(ratio, torch.tensor([1.0, -1.0, -1.0, 2.0]), clip=0.2)
    torch.testing.assert_close(loss.detach(), torch.tensor([-1.2, 1.5, 0.8, -2.0]))
    loss.sum().backward()
    assert ratio.grad is not None and ratio.grad.tolist() == [0.0, 1.0, 0.0, -2.0]


def test_clipped_value_loss_by_hand():
    """V from 0 to 1, G = 1, eps 0.2: held, V is 0.2, and the larger error, 0.8^2 / 2, counts; it has no gradient."""
    value = torch.tensor([1.0, 0.1], requires_grad=True)
    loss = clipped_value_loss(value, torch.zeros(2), torch.ones(2), clip=0.2)
    torch.testing.assert_close(loss.detach(), torch.tensor([0.32, 0.405]))
    loss.sum().backward()
    assert value.grad is not None and value.grad[0] == 0 and value.grad[1] < 0


def two_steps(make_batch, **more):
    """One action of two steps, one of one step, rewards 1 and -1, all on the last step; V 0.5, 0.25 and 0."""
    feedback = Rewards(torch.tensor([[1.0, -1.0]]), torch.ones(1, 2, dtype=torch.bool))
    mask = torch.tensor([[[True, True], [True, False]]])
    batch = replace(make_batch(feedback, steps=2, mask=mask), old_log_prob=torch.full((1, 2, 2), -1.0) * mask, **more)
    value = torch.tensor([[[0.5, 0.25], [0.0, torch.nan]]])
    return batch, Likelihood(torch.zeros(1, 2, 2), value=value), mask


def test_ppo_by_hand(make_batch):
    """gamma 1, lambda 1: returns are what is to come: 1, 1 and -1; advantages 0.5, 0.75, -1."""
    batch, frozen, mask = two_steps(make_batch)
    objective = PPO(gae_lambda=1.0, whiten=False, value_weight=1.0)
    target = objective.prepare(batch, frozen)
    assert target.size == 3
    assert target.returns[mask].tolist() == [1.0, 1.0, -1.0]
    assert target.advantage[mask].tolist() == [0.5, 0.75, -1.0]
    likelihood = Likelihood(torch.full((1, 2, 2), -1.0), value=frozen.value, mask=mask)
    loss = objective(likelihood, target)
    # rho = 1 everywhere: minus the advantages; the values' errors are 0.5, 0.75 and 1, squared and halved.
    torch.testing.assert_close(loss.terms["policy"], torch.tensor([[-1.25, 1.0]]))
    torch.testing.assert_close(loss.terms["value"], torch.tensor([[0.125 + 0.28125, 0.5]]))


def test_ppo_whitens_over_the_batch(make_batch):
    batch, frozen, mask = two_steps(make_batch)
    advantage = PPO().prepare(batch, frozen).advantage
    torch.testing.assert_close(advantage[mask].mean(), torch.tensor(0.0), atol=1e-6, rtol=0)
    torch.testing.assert_close(advantage[mask].std(), torch.tensor(1.0), atol=1e-5, rtol=0)
    assert not advantage[~mask].any()


def test_rewards_that_fall_on_steps_are_taken_as_they_are(make_batch):
    given = torch.tensor([[[0.3, 0.7], [-1.0, 0.0]]])
    batch, _, _ = two_steps(make_batch, step_reward=given)
    assert step_rewards(batch) is given
    batch, _, _ = two_steps(make_batch)
    assert step_rewards(batch).tolist() == [[[0.0, 1.0], [-1.0, 0.0]]]


def test_ppo_needs_the_policy_that_collected(make_batch):
    batch, frozen, _ = two_steps(make_batch)
    for objective in (PPO(), GRPO()):
        with pytest.raises(ValueError, match=r"needs `Batch\.old_log_prob`"):
            objective.prepare(replace(batch, old_log_prob=None), frozen)


def test_apa_by_hand(make_batch):
    """log-ratios 1, 0, 0 and lambda 1/2: (1 - 2 * 0.5)^2, (0 - 2 * 0.75)^2, (0 + 2)^2."""
    assert apa_loss(torch.tensor([1.0]), torch.tensor([0.25]), temperature=0.5).item() == 0.25
    batch, frozen, mask = two_steps(make_batch)
    objective = APA(advantage_temperature=0.5, gae_lambda=1.0)
    target = objective.prepare(batch, frozen)
    log_prob = torch.tensor([[[0.0, -1.0], [-1.0, 0.0]]])
    loss = objective(Likelihood(log_prob, torch.full((1, 2, 2), -1.0), value=frozen.value, mask=mask), target)
    torch.testing.assert_close(loss.terms["policy"], torch.tensor([[2.25, 4.0]]))


def test_grpo_by_hand(make_batch):
    """Rewards 1 and -1: mean 0, deviation sqrt 2, advantages +-0.7071; u = ln 2 costs beta (1/2 + ln 2 - 1)."""
    advantage = group_advantages(torch.tensor([[1.0, -1.0], [3.0, 3.0]]), torch.ones(2, 2, dtype=torch.bool))
    torch.testing.assert_close(advantage, torch.tensor([[0.5**0.5, -(0.5**0.5)], [0.0, 0.0]]), atol=1e-5, rtol=0)
    batch, _, mask = two_steps(make_batch)
    objective = GRPO(beta=0.1)
    target = objective.prepare(batch, None)
    likelihood = Likelihood(
        torch.full((1, 2, 2), -1.0), torch.full((1, 2, 2), -1.0 - torch.log(torch.tensor(2.0))), mask=mask
    )
    loss = objective(likelihood, target)
    penalty = 0.1 * (0.5 + torch.log(torch.tensor(2.0)) - 1)
    torch.testing.assert_close(
        loss.terms["policy"], torch.tensor([[-(0.5**0.5), 0.5**0.5]]) + penalty, atol=1e-5, rtol=0
    )


def test_equal_rewards_have_no_advantage():
    """Eight rewards of 3.3: their float32 mean is 3.3000002, and the rounding over 1e-6 was an advantage of -0.19."""
    for value in (3.3, 0.1, -1e6 - 0.3, 1e-30):
        for number in (1, 2, 3, 7, 8):
            reward, present = torch.full((2, number), value), torch.ones(2, number, dtype=torch.bool)
            assert group_advantages(reward, present).tolist() == [[0.0] * number] * 2
    present = torch.tensor([[True, True, False]])
    assert group_advantages(torch.tensor([[3.3, 3.3, torch.nan]]), present).tolist() == [[0.0, 0.0, 0.0]]


def test_a_small_spread_is_no_rounding():
    """Seven rewards of 1 and one of 1 + d, d = 2^-23: the mean is d / 8 above 1, the deviation d / sqrt(8).

    At 1e6 the smallest spread of float32 is d = 1/16: -1 / sqrt(8) and 7 / sqrt(8), all but 1e-6.
    """
    present = torch.ones(1, 8, dtype=torch.bool)
    for offset, d in ((1.0, 2**-23), (1e6, 1 / 16)):
        reward = torch.full((1, 8), offset)
        reward[0, 7] += d
        scale = d / 8**0.5 + 1e-6
        expected = torch.tensor([[-d / 8 / scale] * 7 + [7 * d / 8 / scale]])
        torch.testing.assert_close(group_advantages(reward, present), expected, rtol=1e-4, atol=0)


def test_ppo_whitens_equal_advantages_to_zero(make_batch):
    """gamma 1, lambda 1, V 0: every step's advantage is its action's reward, here 3.3 for all."""
    present, mask = torch.ones(1, 8, dtype=torch.bool), torch.ones(1, 8, 3, dtype=torch.bool)
    batch = make_batch(Rewards(torch.full((1, 8), 3.3), present), steps=3, mask=mask)
    batch = replace(batch, old_log_prob=torch.full((1, 8, 3), -1.0))
    frozen = Likelihood(torch.zeros(1, 8, 3), value=torch.zeros(1, 8, 3))
    assert not PPO(gae_lambda=1.0).prepare(batch, frozen).advantage.any()
    assert PPO(gae_lambda=1.0, whiten=False).prepare(batch, frozen).advantage.unique().tolist() == [pytest.approx(3.3)]


@pytest.mark.parametrize("away", [89.0, 700.0, -89.0, -700.0])
@pytest.mark.parametrize(
    "objective", [PPO(whiten=False), PPOWithoutCritic(), GRPO(beta=0.0)], ids=lambda o: type(o).__name__
)
def test_a_wild_ratio_is_bounded(objective, away, make_batch):
    """log rho is bounded to +-20: with A < 0 and rho above the clip, the loss is e^20 |A|; there is no gradient."""
    rewards = Rewards(torch.tensor([[1.0, -1.0]]), torch.ones(1, 2, dtype=torch.bool))
    batch = replace(make_batch(rewards), old_log_prob=torch.full((1, 2, 1), -800.0))
    value = torch.zeros(1, 2, 1)
    target = objective.prepare(batch, Likelihood(torch.zeros(1, 2, 1), value=value))
    log_prob = torch.full((1, 2, 1), -800.0 + away, requires_grad=True)
    policy = objective(Likelihood(log_prob, value=value), target).terms["policy"]
    advantage = target.advantage.view_as(policy)
    rho = torch.tensor(20.0 if away > 0 else -20.0).exp()
    expected = -torch.minimum(rho * advantage, rho.clamp(0.8, 1.2) * advantage)
    torch.testing.assert_close(policy.detach(), expected)
    policy.sum().backward()
    assert log_prob.grad is not None and not log_prob.grad.any()


def test_grpos_penalty_is_bounded(make_batch):
    """u = -700: e^20 - 21 and no gradient, not inf and NaN. u = +700: 699 exactly, and a gradient of 1."""
    rewards = Rewards(torch.tensor([[3.3, 3.3]]), torch.ones(1, 2, dtype=torch.bool))
    log_prob = torch.tensor([[[-800.0], [-100.0]]], requires_grad=True)
    batch = replace(make_batch(rewards), old_log_prob=log_prob.detach())
    objective = GRPO(beta=1.0)
    reference = torch.tensor([[[-100.0], [-800.0]]])
    policy = objective(Likelihood(log_prob, reference), objective.prepare(batch, None)).terms["policy"]
    torch.testing.assert_close(policy.detach(), torch.tensor([[torch.tensor(20.0).exp().item() - 21, 699.0]]))
    policy.sum().backward()
    assert log_prob.grad is not None and log_prob.grad.flatten().tolist() == [0.0, 1.0]


def test_a_price_that_falls_on_steps_goes_through_the_advantages(make_batch):
    """gamma 1, lambda 1/2, KL's price 0.1 on each step: rewards -0.1, 0.9 | -1.1; V 0.5, 0.25 | 0.

    Last step: 0.9 - 0.25 = 0.65. Step before: delta = -0.1 + 0.25 - 0.5 = -0.35, and half of 0.65: -0.025.
    """
    batch, frozen, mask = two_steps(make_batch, step_reward=torch.tensor([[[-0.1, 0.9], [-1.1, 0.0]]]))
    target = PPO(gae_lambda=0.5, whiten=False).prepare(batch, frozen)
    torch.testing.assert_close(target.advantage[mask], torch.tensor([-0.025, 0.65, -1.1]))
    torch.testing.assert_close(target.returns[mask], torch.tensor([0.475, 0.9, -1.1]))


@pytest.mark.parametrize("objective", [PPO(whiten=False, value_weight=1.0), APA()], ids=lambda one: type(one).__name__)
def test_policy_and_value_learn_apart(objective, make_batch):
    """The policy's term pulls on log pi alone and the value's on V alone: each has its own optimizer."""
    batch, frozen, mask = two_steps(make_batch)
    target = objective.prepare(batch, frozen)
    log_prob = torch.tensor([[[-0.95, -1.0], [-1.1, 0.0]]], requires_grad=True)
    assert frozen.value is not None
    value = (frozen.value.nan_to_num() + 0.1).requires_grad_()
    loss = objective(Likelihood(log_prob, torch.full((1, 2, 2), -1.0), value=value, mask=mask), target)
    for term, moved, still in (("policy", log_prob, value), ("value", value, log_prob)):
        found = torch.autograd.grad(loss.terms[term].sum(), [moved, still], allow_unused=True, retain_graph=True)
        assert found[0] is not None and bool(found[0][mask].any()) and not bool(found[0][~mask].any())
        assert found[1] is None or not bool(found[1].any())
