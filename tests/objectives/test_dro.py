"""DRO: values by hand, where gradients flow, Eq. 7 and 8, Proposition 1, and convergence to pi_ref e^{r / tau}."""

from __future__ import annotations

import math

import pytest
import torch
from torch.autograd import gradcheck

from valence.objectives import DRO, dro_best_value, dro_policy_loss, dro_residual, dro_value_loss
from valence.types import Labels, Likelihood, Rewards

SCORE = torch.tensor([1.0, 0.0, -0.5, 0.5], dtype=torch.float64)


def one(value: float) -> torch.Tensor:
    return torch.tensor([[value]], dtype=torch.float64)


def optimum(bandit, tau: float) -> tuple[torch.Tensor, torch.Tensor]:
    """log pi* and V* = tau log sum pi_ref e^{r / tau}."""
    value = tau * (bandit.log_reference + SCORE / tau).logsumexp(-1)
    return bandit.log_reference + (SCORE - value) / tau, value


def test_value_by_hand():
    """r = 1, V = 1/4, log-ratio = 1/2, tau = 2: delta = 1 - 1/4 - 1 = -1/4; value 1/32; policy 1/64."""
    inputs = one(1.0), one(0.25), one(0.5)
    assert dro_residual(*inputs, tau=2.0).item() == -0.25
    assert dro_value_loss(*inputs, tau=2.0).item() == 1 / 32
    assert dro_policy_loss(*inputs, tau=2.0).item() == 1 / 64


def test_each_term_moves_only_its_own_network():
    """Value term: d/dV = -delta (Eq. 7). Policy term: d/d log pi = -delta (Eq. 8 / tau). Here delta = -1/4."""
    reward = one(1.0)
    for loss, moved, still in ((dro_value_loss, 0, 1), (dro_policy_loss, 1, 0)):
        inputs = [one(0.25).requires_grad_(), one(0.5).requires_grad_()]
        loss(reward, *inputs, tau=2.0).sum().backward()
        assert inputs[still].grad is None
        gradient = inputs[moved].grad
        assert gradient is not None and gradient.item() == 0.25


def test_policy_gradient_is_equation_8_over_tau_and_not_algorithm_1_as_printed():
    """Eq. 8 / tau: -(log pi (r - V) - tau / 2 (log pi / pi_ref)^2). Algorithm 1 prints 1 / 2 for tau / 2."""
    tau, reward, value, log_ref = 3.0, one(1.0), one(0.25), one(-1.5)
    gradients = {}
    for name, loss in {
        "ours": lambda log_prob: dro_policy_loss(reward, value, log_prob - log_ref, tau=tau),
        "equation": lambda log_prob: -(log_prob * (reward - value) - tau / 2 * (log_prob - log_ref).square()),
        "printed": lambda log_prob: -(log_prob * (reward - value) - (log_prob - log_ref).square() / 2),
    }.items():
        log_prob = one(-1.0).requires_grad_()
        loss(log_prob).sum().backward()
        gradients[name] = log_prob.grad.item()
    assert gradients["ours"] == pytest.approx(gradients["equation"])
    assert gradients["ours"] != pytest.approx(gradients["printed"], rel=0.1)


def test_gradcheck():
    generator = torch.Generator().manual_seed(0)
    reward, value, ratio = torch.randn(3, 2, 3, dtype=torch.float64, generator=generator)
    assert gradcheck(lambda v: dro_value_loss(reward, v, ratio, tau=0.7), (value.requires_grad_(),))
    assert gradcheck(lambda a: dro_policy_loss(reward, value.detach(), a, tau=0.7), (ratio.requires_grad_(),))


def test_per_step_value_by_hand(make_batch):
    """Steps 1 and 2 exist, step 3 is padding with NaN in V. r = 1, tau = 2, log-ratios 1/2 and -1/4, V = 1/4, 1.

    to come: 1/4, -1/4; delta = 1 - 1/4 - 1/2 = 1/4 and 1 - 1 + 1/2 = 1/2; mean of delta^2 = (1/16 + 1/4) / 2 = 5/32;
    value = 5/64, policy = 5/128. d policy / d log pi_2 sees both steps: -(1/4 + 1/2) / 2; log pi_1 only its own: -1/8.
    """
    mask = torch.tensor([[[True, True, False]]])
    feedback = Rewards(one(1.0), torch.ones(1, 1, dtype=torch.bool))
    log_prob = torch.tensor([[[-0.5, -1.25, 0.0]]], dtype=torch.float64, requires_grad=True)
    value = torch.tensor([[[0.25, 1.0, math.nan]]], dtype=torch.float64, requires_grad=True)
    reference = torch.tensor([[[-1.0, -1.0, 0.0]]], dtype=torch.float64)
    objective = DRO(tau=2.0)
    target = objective.prepare(make_batch(feedback, steps=3, mask=mask), None)
    loss = objective(Likelihood(log_prob, reference, value=value, mask=mask), target)
    assert loss.terms["value"].item() == pytest.approx(5 / 64)
    assert loss.terms["policy"].item() == pytest.approx(5 / 128)
    loss.total(target.size).backward()
    assert log_prob.grad is not None and log_prob.grad[0, 0].tolist() == pytest.approx([-1 / 8, -3 / 8, 0])
    assert value.grad is not None and value.grad[0, 0].tolist() == pytest.approx([-1 / 8, -1 / 4, 0])


def test_per_step_value_needs_the_mask(make_batch):
    feedback = Rewards(one(1.0), torch.ones(1, 1, dtype=torch.bool))
    target = DRO().prepare(make_batch(feedback, steps=2), None)
    steps = torch.zeros(1, 1, 2, dtype=torch.float64)
    with pytest.raises(ValueError, match="mask"):
        DRO()(Likelihood(steps, steps, value=steps), target)


def test_labels_are_rewards_of_plus_and_minus_one(make_batch):
    """log-ratio 0, V = 1/2: delta = 1/2 for accepted, -3/2 for rejected; unlabelled takes no part."""
    labels = Labels(torch.tensor([[1, -1, 0]]), torch.ones(1, 3, dtype=torch.bool))
    target = DRO().prepare(make_batch(labels), None)
    zeros = torch.zeros(1, 3, 1, dtype=torch.float64)
    loss = DRO()(Likelihood(zeros, zeros, value=torch.tensor(0.5, dtype=torch.float64)), target)
    assert target.size == 2
    assert loss.terms["value"].tolist() == [[0.125, 1.125, 0.0]]


@pytest.mark.parametrize("tau", [0.5, 1.0, 2.0])
def test_both_gradients_vanish_at_the_optimum(bandit, tau):
    """Theorem 1: at pi* and V* every residual is 0."""
    log_policy, best = optimum(bandit, tau)
    assert log_policy.exp().sum().item() == pytest.approx(1)
    logits, value = log_policy.clone().requires_grad_(), best.clone().requires_grad_()
    ratio = logits.log_softmax(-1) - bandit.log_reference
    residual = dro_residual(SCORE, value, ratio, tau=tau)
    assert residual.abs().max() < 1e-12
    (dro_value_loss(SCORE, value, ratio, tau=tau) + dro_policy_loss(SCORE, value, ratio, tau=tau)).sum().backward()
    assert logits.grad is not None and logits.grad.abs().max() < 1e-12
    assert value.grad is not None and value.grad.abs() < 1e-12


def test_best_value_by_hand():
    """tau = 2; r - 2 log-ratio = 1 - 1 = 0, 3 + 1 = 4; in the second prompt 5 - 0 = 5: means 2, 5; of all, 3."""
    reward = torch.tensor([[1.0, 3.0], [5.0, math.nan]])
    ratio = torch.tensor([[0.5, -0.5], [0.0, math.nan]])
    present = torch.tensor([[True, True], [True, False]])
    assert dro_best_value(reward, ratio, present, tau=2.0, per_prompt=True).tolist() == [[2.0], [5.0]]
    assert dro_best_value(reward, ratio, present, tau=2.0, per_prompt=False).item() == 3.0


@pytest.mark.parametrize("per_prompt", [True, False])
def test_proposition_1_best_values_minimise_the_loss_for_a_fixed_policy(per_prompt):
    generator = torch.Generator().manual_seed(1)
    reward, ratio = torch.randn(2, 3, 4, dtype=torch.float64, generator=generator)
    present = torch.ones(3, 4, dtype=torch.bool)
    value = dro_best_value(reward, ratio, present, tau=0.7, per_prompt=per_prompt).requires_grad_()
    best = dro_value_loss(reward, value.expand(3, 4), ratio, tau=0.7).sum()
    (gradient,) = torch.autograd.grad(best, value)
    assert gradient.abs().max() < 1e-12
    for step in (-0.1, 0.1):
        assert dro_value_loss(reward, (value + step).expand(3, 4), ratio, tau=0.7).sum() > best


@pytest.mark.parametrize("offset", [-0.4, 0.3])
def test_proposition_1_policy_against_a_fixed_value(bandit, minimise, offset):
    """With V fixed off V*, the best policy solves Eq. 5 and stays within Eq. 6 of pi*. mu = pi_ref, tau = 0.8.

    Stationarity on the simplex: mu delta tau / pi is one constant, so delta = (pi / mu) (V^pi - V).
    """
    tau, mu = 0.8, bandit.reference
    log_best, best_value = optimum(bandit, tau)
    value = best_value + offset
    logits = bandit.log_reference.clone().requires_grad_()

    def loss() -> torch.Tensor:
        ratio = logits.log_softmax(-1) - bandit.log_reference
        return (mu * dro_policy_loss(SCORE, value, ratio, tau=tau)).sum()

    minimise(loss, logits)
    log_policy = logits.detach().log_softmax(-1)
    own_value = (mu * (SCORE - tau * (log_policy - bandit.log_reference))).sum()
    slack = log_policy.exp() / mu * (own_value - value)
    solved = (bandit.log_reference + (SCORE - slack) / tau).log_softmax(-1)
    torch.testing.assert_close(log_policy, solved, atol=1e-5, rtol=0)
    distance = (log_policy - log_best).abs()
    bound = 2 / tau * ((own_value - value) * (1 - log_policy.exp() / mu)).abs().max()
    assert distance.max() > 0.01
    assert (distance <= bound).all()


@pytest.mark.parametrize("tau", [0.5, 2.0])
@pytest.mark.parametrize("shape", [(), (1, 1), (1, 8, 1)])
def test_learned_value_and_policy_converge_together(bandit, make_batch, tau, shape):
    """Two optimizers' worth of gradient descent, on V as a scalar, per prompt and per step."""
    actions, _ = bandit.rows(accepted=(0, 0, 0, 0))
    actions = actions.T
    feedback = Rewards(SCORE[actions], torch.ones(1, 8, dtype=torch.bool))
    objective = DRO(tau=tau)
    target = objective.prepare(make_batch(feedback), None)
    logits, value = bandit.log_reference.clone().requires_grad_(), torch.zeros((), dtype=torch.float64)
    value.requires_grad_()
    for _ in range(600):
        loss = objective(bandit.likelihood(logits, actions, value.expand(shape)), target)
        gradients = torch.autograd.grad(loss.total(target.size), (logits, value))
        with torch.no_grad():
            logits -= 2.0 / tau * gradients[0]
            value -= 0.5 * gradients[1]
    log_best, best_value = optimum(bandit, tau)
    torch.testing.assert_close(logits.detach().softmax(-1), log_best.exp(), atol=1e-3, rtol=0)
    assert value.item() == pytest.approx(best_value.item(), abs=1e-3)


@pytest.mark.parametrize("value", ["prompt-mean", "batch-mean"])
@pytest.mark.parametrize("tau", [0.5, 2.0])
def test_closed_form_value_converges(bandit, value, tau):
    actions, _ = bandit.rows(accepted=(0, 0, 0, 0))
    feedback = Rewards(SCORE[actions.T], torch.ones(1, 8, dtype=torch.bool))
    policy = bandit.fit(DRO(tau=tau, value=value), feedback, actions.T)
    torch.testing.assert_close(policy, optimum(bandit, tau)[0].exp(), atol=1e-3, rtol=0)


def test_prompt_mean_of_lone_actions_is_refused(make_batch):
    """V would equal each action's own r - tau log-ratio: delta is 0 whatever the policy."""
    feedback = Rewards(torch.zeros(3, 1), torch.ones(3, 1, dtype=torch.bool))
    frozen = Likelihood(torch.zeros(3, 1, 1), torch.zeros(3, 1, 1))
    with pytest.raises(ValueError, match="two rewards"):
        DRO(value="prompt-mean").prepare(make_batch(feedback), frozen)


def test_closed_form_without_frozen_likelihood_is_refused(make_batch):
    feedback = Rewards(torch.zeros(1, 2), torch.ones(1, 2, dtype=torch.bool))
    with pytest.raises(ValueError, match="needs log_prob"):
        DRO(value="batch-mean").prepare(make_batch(feedback), None)


@pytest.mark.parametrize("tau", [0.0, -1.0, math.inf, math.nan])
def test_tau_is_validated(tau):
    with pytest.raises(ValueError, match="`tau` must be finite and > 0"):
        DRO(tau=tau)
