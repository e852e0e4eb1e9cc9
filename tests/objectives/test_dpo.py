"""DPO, IPO, IPO of appendix E, RPO: values by hand, identities, and each one's own optimum."""

from __future__ import annotations

import math

import pytest
import torch
from torch.autograd import gradcheck

from valence.objectives import (
    DPO,
    IPO,
    RPO,
    IPOAppendixE,
    dpo_loss,
    ipo_appendix_e_loss,
    ipo_loss,
    rebel_loss,
    rpo_loss,
)
from valence.types import Likelihood, Preferences, Rewards

STRENGTH = (1, 2, 3, 6)
"""Bradley-Terry strengths e^r: P(a beats b) = strength_a / (strength_a + strength_b)."""


def vector(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def comparisons() -> tuple[torch.Tensor, Preferences, torch.Tensor]:
    """2520 judgements of each pair of actions, won at exactly P; also P itself.

    2520 / (strength_a + strength_b) is whole for all sums 3, 4, 5, 7, 8, 9.
    """
    actions, wins = [], []
    strength = torch.tensor(STRENGTH, dtype=torch.float64)
    chance = strength[:, None] / (strength[:, None] + strength[None, :])
    for first in range(4):
        for second in range(first + 1, 4):
            won = 2520 * STRENGTH[first] // (STRENGTH[first] + STRENGTH[second])
            assert won == pytest.approx(2520 * chance[first, second].item())
            actions += [[first, second]] * 2520
            wins += [1.0] * won + [0.0] * (2520 - won)
    win = torch.zeros(len(wins), 2, 2)
    win[:, 0, 1], win[:, 1, 0] = torch.tensor(wins), 1 - torch.tensor(wins)
    observed = ~torch.eye(2, dtype=torch.bool).expand(len(wins), 2, 2)
    return torch.tensor(actions), Preferences(win, observed, torch.ones(len(wins), 2, dtype=torch.bool)), chance


def test_dpo_by_hand():
    """beta h = log 3: sigmoid = 3/4. -log 3/4; smoothed by 1/4: -3/4 log 3/4 - 1/4 log 1/4."""
    gap = vector(2 * math.log(3))
    assert dpo_loss(gap, beta=0.5).item() == pytest.approx(-math.log(0.75))
    expected = -0.75 * math.log(0.75) - 0.25 * math.log(0.25)
    assert dpo_loss(gap, beta=0.5, label_smoothing=0.25).item() == pytest.approx(expected)


def test_ipo_by_hand():
    """beta = 1/4: the gap's target is 2; at h = 3/2 the loss is 1/4."""
    assert ipo_loss(vector(1.5), beta=0.25).item() == pytest.approx(0.25)


def test_ipo_appendix_e_by_hand():
    """log pi(y_w) = -1, log pi(y_l) = -3, h = 2, beta = 1/4: 1 - 3 + 1 = -1."""
    assert ipo_appendix_e_loss(vector(-1.0), vector(-3.0), vector(2.0), beta=0.25).item() == -1.0


def test_rpo_by_hand():
    """h = 0: log 2; chosen log pi = -6 over 3 steps, weight 1/2: + 1."""
    loss = rpo_loss(vector(0.0), vector(-6.0), vector(3.0), beta=0.1, sft_weight=0.5)
    assert loss.item() == pytest.approx(math.log(2) + 1)


def test_objective_by_hand(make_batch):
    """Two contexts, steps summed; the better action is the second in context 0 and the first in context 1.

    log-ratios: context 0: (-3 + 1) = -2 and (-1 + 2) = 1, so h = 3; context 1: -1 + 1 = 0 and -4 + 2 = -2, so h = 2.
    IPO at beta = 1/2 (target 1): 4 and 1, mean 5/2.
    """
    log_prob = torch.tensor([[[-1.0, -2.0], [-1.0, 0.0]], [[-1.0, 0.0], [-2.0, -2.0]]])
    reference = torch.tensor([[[-1.0, 0.0], [-1.0, -1.0]], [[0.0, -1.0], [-1.0, -1.0]]])
    rewards = Rewards(torch.tensor([[0.0, 1.0], [5.0, 2.0]]), torch.ones(2, 2, dtype=torch.bool))
    objective = IPO(beta=0.5)
    target = objective.prepare(make_batch(rewards, steps=2), None)
    loss = objective(Likelihood(log_prob, reference), target)
    assert loss.terms["policy"].tolist() == [4.0, 1.0]
    assert loss.total(target.size).item() == 2.5
    metrics = {name: metric.item() for name, metric in loss.metrics.items()}
    expected = {"accepted_log_ratio": 0.5, "rejected_log_ratio": -2.0, "reward_accuracy": 1.0, "reward_margin": 1.25}
    assert metrics == expected


def test_rpo_reads_the_length_of_the_chosen_action(make_batch):
    """Chosen: two of three steps, log pi = -3; weight 2, beta h = 0: log 2 + 2 (3 / 2)."""
    mask = torch.tensor([[[True, True, False], [True, True, True]]])
    log_prob = torch.tensor([[[-1.0, -2.0, 0.0], [-1.0, -1.0, -1.0]]])
    rewards = Rewards(torch.tensor([[1.0, 0.0]]), torch.ones(1, 2, dtype=torch.bool))
    objective = RPO(sft_weight=2.0)
    target = objective.prepare(make_batch(rewards, steps=3, mask=mask), None)
    loss = objective(Likelihood(log_prob, log_prob, mask=mask), target)
    assert loss.terms["policy"].item() == pytest.approx(math.log(2) + 3)
    with pytest.raises(ValueError, match="mask"):
        objective(Likelihood(log_prob, log_prob), target)


def test_ties_and_lone_actions_form_no_pair(make_batch):
    rewards = Rewards(torch.tensor([[1.0, 1.0], [2.0, 3.0]]), torch.tensor([[True, True], [True, False]]))
    target = DPO().prepare(make_batch(rewards), None)
    assert target.pairs is not None and target.pairs.index.shape == (0, 2)
    log_prob = torch.zeros(2, 2, 1, requires_grad=True)
    loss = DPO()(Likelihood(log_prob, torch.zeros(2, 2, 1)), target)
    loss.total(target.size).backward()
    assert loss.metrics == {}
    assert log_prob.grad is not None and log_prob.grad.abs().sum() == 0


def test_gradcheck():
    generator = torch.Generator().manual_seed(0)
    gap, better, worse = torch.randn(3, 4, dtype=torch.float64, generator=generator).unbind()
    inputs = [tensor.requires_grad_() for tensor in (gap, better, worse)]
    steps = vector(1, 2, 3, 4)
    assert gradcheck(lambda a: dpo_loss(a, beta=0.7, label_smoothing=0.1), inputs[:1])
    assert gradcheck(lambda a: ipo_loss(a, beta=0.7), inputs[:1])
    assert gradcheck(lambda a, b, c: ipo_appendix_e_loss(b, c, a, beta=0.7), inputs)
    assert gradcheck(lambda a, b: rpo_loss(a, b, steps, beta=0.7, sft_weight=0.3), inputs[:2])


def test_ipo_is_a_squared_gap_regression():
    """(h - eta)^2 = eta^2 (h / eta - 1)^2 with eta = 1 / (2 beta): REBEL at gap 1, times eta^2."""
    gap, beta = torch.linspace(-3, 3, 7, dtype=torch.float64), 0.3
    eta = 1 / (2 * beta)
    torch.testing.assert_close(ipo_loss(gap, beta=beta), eta**2 * rebel_loss(gap, torch.ones_like(gap), eta=eta))


def test_appendix_e_has_ipo_gradient_times_beta(make_batch):
    """beta (h - 1 / (2 beta))^2 = beta h^2 - h + 1 / (4 beta), and -h is -log pi(y_w) + log pi(y_l) + constants."""
    rewards = Rewards(torch.tensor([[0.0, 1.0, 3.0]]), torch.ones(1, 3, dtype=torch.bool))
    gradients = []
    for objective in (IPO(beta=0.3), IPOAppendixE(beta=0.3)):
        log_prob = torch.tensor([[[-1.0], [-2.5], [-0.5]]], dtype=torch.float64, requires_grad=True)
        target = objective.prepare(make_batch(rewards), None)
        objective(Likelihood(log_prob, torch.full_like(log_prob, -1.5).detach()), target).total(1.0).backward()
        gradients.append(log_prob.grad)
    assert gradients[0].abs().max() > 0.1
    torch.testing.assert_close(gradients[1], 0.3 * gradients[0])


def test_appendix_e_regulariser_is_twice_the_variance(bandit):
    """For y, y' independent from pi_ref: E[(X - X')^2] = 2 Var[X], X = log pi / pi_ref; IPO-E has it times beta."""
    log_policy = torch.tensor([0.3, -0.2, 0.1, 0.5], dtype=torch.float64).log_softmax(-1)
    ratio, zero = log_policy - bandit.log_reference, torch.zeros(16, dtype=torch.float64)
    gap = (ratio[:, None] - ratio[None, :]).flatten()
    weight = (bandit.reference[:, None] * bandit.reference[None, :]).flatten()
    expected_square = (weight * ipo_appendix_e_loss(zero, zero, gap, beta=1.0)).sum()
    mean = bandit.reference @ ratio
    variance = bandit.reference @ (ratio - mean).square()
    assert variance > 0.01
    torch.testing.assert_close(expected_square, 2 * variance)


@pytest.mark.parametrize("beta", [0.7, 2.0])
def test_dpo_converges_to_its_optimum(bandit, beta):
    """On P(y beats y') = sigmoid(r - r'), the logistic loss is least where beta h = r - r': pi_ref e^{r / beta}."""
    actions, preferences, _ = comparisons()
    policy = bandit.fit(DPO(beta=beta), preferences, actions)
    expected = (bandit.log_reference + vector(*STRENGTH).log() / beta).softmax(-1)
    torch.testing.assert_close(policy, expected, atol=1e-3, rtol=0)


@pytest.mark.parametrize("kind", [IPO, IPOAppendixE])
def test_ipo_converges_to_its_optimum(bandit, kind):
    """Each pair's mean loss is least where h = (2 P - 1) / (2 beta); with all pairs judged equally often, the least
    squares fit of one g per action is g_i = mean_j (2 P_ij - 1) / (2 beta): pi_ref e^{g}. Appendix E shares it."""
    actions, preferences, chance = comparisons()
    policy = bandit.fit(kind(beta=0.4), preferences, actions)
    lead = (2 * chance - 1).mean(-1) / 0.8
    torch.testing.assert_close(policy, (bandit.log_reference + lead).softmax(-1), atol=1e-3, rtol=0)


def test_rpo_converges_to_a_stationary_mixture_of_its_two_terms(bandit):
    """At RPO's optimum, beta sum (1[w] - 1[l]) sigmoid(-beta h) / P + weight (chosen - pi) = 0, chosen = how often each
    action is the better one. The gap parts alone leave pi_ref e^{r / beta}; here both pull, and the sum is zero."""
    actions, preferences, chance = comparisons()
    policy = bandit.fit(RPO(beta=0.7, sft_weight=0.5), preferences, actions)
    ratio = 0.7 * (policy.log() - bandit.log_reference)
    pull = (chance - torch.sigmoid(ratio[:, None] - ratio[None, :])).sum(-1) * 0.7 / 6
    off = ~torch.eye(4, dtype=torch.bool)
    chosen = (chance * off).sum(-1) / 6
    torch.testing.assert_close(pull, 0.5 * (policy - chosen), atol=1e-4, rtol=0)
    assert pull.abs().max() > 0.01


@pytest.mark.parametrize("kind", [DPO, IPO, IPOAppendixE, RPO])
def test_beta_is_validated(kind):
    with pytest.raises(ValueError, match="`beta` must be finite and > 0"):
        kind(beta=0.0)


def test_other_fields_are_validated():
    with pytest.raises(ValueError, match=r"`label_smoothing` must be in \[0, 0.5\)"):
        DPO(label_smoothing=0.5)
    with pytest.raises(ValueError, match="`sft_weight` must be finite and >= 0"):
        RPO(sft_weight=-1.0)
