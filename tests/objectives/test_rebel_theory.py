"""What the REBEL paper proves, on bandits small enough to enumerate: exact expectations, no sampling."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from valence.feedback.conversions import preferences_to_self_play
from valence.objectives import rebel_loss
from valence.types import Preferences

REWARD = torch.tensor([1.0, -0.4, 0.3, 0.0, 2.0], dtype=torch.float64)


def expected_loss(log_policy: Tensor, log_old: Tensor, reward: Tensor, *, eta: float) -> Tensor:
    """REBEL's loss over y, y' drawn from pi_t, written out."""
    ratio = log_policy - log_old
    gaps = (ratio[:, None] - ratio[None]).flatten(), (reward[:, None] - reward[None]).flatten()
    old = log_old.exp()
    return ((old[:, None] * old[None]).flatten() * rebel_loss(*gaps, eta=eta)).sum()


def solve(log_old: Tensor, reward: Tensor, *, eta: float, minimise) -> Tensor:
    logits = log_old.clone().requires_grad_()
    minimise(lambda: expected_loss(logits.log_softmax(-1), log_old, reward, eta=eta), logits)
    return logits.detach().log_softmax(-1)


@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_exact_rebel_is_mirror_descent_and_improves_each_time(eta, minimise):
    """Section 3.2: pi_{t+1} = pi_t e^{eta r} / Z, to 1e-4, and the mean reward rises."""
    log_policy = torch.tensor([0.1, 0.3, 0.2, 0.3, 0.1], dtype=torch.float64).log()
    means = [float((log_policy.exp() * REWARD).sum())]
    for _ in range(5):
        following = solve(log_policy, REWARD, eta=eta, minimise=minimise)
        mirror = (log_policy + eta * REWARD).log_softmax(-1)
        torch.testing.assert_close(following.exp(), mirror.exp(), rtol=0, atol=1e-4)
        log_policy = following
        means.append(float((log_policy.exp() * REWARD).sum()))
    assert all(later > earlier for earlier, later in pairwise(means))


def test_one_gauss_newton_step_is_the_natural_policy_gradient():
    """Claim 1 with mu = pi_t: the minimum-norm least squares step is eta F^+ E[grad log pi A], for a policy whose
    parameters are fewer than its actions."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(5, 3, dtype=torch.float64, generator=generator)
    theta, eta = torch.randn(3, dtype=torch.float64, generator=generator), 0.7
    policy = (features @ theta).softmax(-1)
    scores = features - policy @ features  # grad log pi of each action
    # Least squares over pairs, weighted by pi(y) pi(y').
    weight = (policy[:, None] * policy[None]).flatten()
    rows = (scores[:, None] - scores[None]).flatten(0, 1) / eta
    aims = (REWARD[:, None] - REWARD[None]).flatten()
    step = torch.linalg.pinv(weight[:, None].sqrt() * rows) @ (weight.sqrt() * aims)
    advantage = REWARD - policy @ REWARD
    fisher = scores.T @ (policy[:, None] * scores)
    natural = eta * torch.linalg.pinv(fisher) @ (scores.T @ (policy * advantage))
    torch.testing.assert_close(step, natural, rtol=0, atol=1e-8)
    # And it is the step of our own loss: at theta its gradient and Gauss-Newton matrix.
    theta = theta.requires_grad_()
    log_old = policy.log()
    loss = expected_loss((features @ theta).log_softmax(-1), log_old, REWARD, eta=eta)
    gradient = torch.autograd.grad(loss, theta)[0]
    matrix = 2 * rows.T @ (weight[:, None] * rows)
    torch.testing.assert_close(-torch.linalg.pinv(matrix) @ gradient, natural, rtol=0, atol=1e-8)


BEATS = torch.tensor([[0.5, 1.0, 0.0], [0.0, 0.5, 1.0], [1.0, 0.0, 0.5]], dtype=torch.float64)
"""Rock beats scissors, scissors beat paper, paper beats rock."""


def duality_gap(policy: Tensor) -> float:
    """The most that another may gain against it, and it may lose: 0 for the uniform policy alone."""
    edge = (2 * BEATS - 1) @ policy
    return float(edge.max() - (-edge).min())


def test_averaged_self_play_finds_the_winner_that_no_reward_describes(minimise):
    """SPO with REBEL from (0.8, 0.1, 0.1): the average of the iterates; a Bradley-Terry reward of the same
    comparisons sends the policy to one corner."""
    start = torch.tensor([0.8, 0.1, 0.1], dtype=torch.float64)
    log_policy, total, eta, steps = start.log(), torch.zeros(3, dtype=torch.float64), 0.1, 10_000
    for step in range(steps):
        policy = log_policy.exp()
        total += policy
        reward = (2 * BEATS - 1) @ policy
        if step < 20:
            # Solving the regression is mirror descent (shown above): solved at first, written out after.
            solved = solve(log_policy, reward, eta=eta, minimise=minimise)
            mirror = (log_policy + eta * reward).log_softmax(-1)
            torch.testing.assert_close(solved.exp(), mirror.exp(), rtol=0, atol=1e-4)
        log_policy = (log_policy + eta * reward).log_softmax(-1)
    assert duality_gap(total / steps) < 0.02
    assert duality_gap(start) > 1
    # Bradley-Terry on comparisons of pairs drawn from the start: r maximises E[log sigmoid(r_y - r_y')].
    scores = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    pairs = start[:, None] * start[None] * (1 - torch.eye(3, dtype=torch.float64))

    def loss() -> Tensor:
        gaps = scores[:, None] - scores[None]
        return -(pairs * (BEATS * torch.nn.functional.logsigmoid(gaps))).sum() + 1e-6 * scores.square().sum()

    minimise(loss, scores)
    fitted = (start.log() + eta * steps * scores.detach()).log_softmax(-1).exp()
    assert duality_gap(fitted) > 1


def test_the_regression_on_sampled_comparisons_has_the_right_size():
    """The best additive fit to the gaps of `preferences_to_self_play` is l(y, pi) itself, for 2 and for 4 samples: all
    tuples of samples are enumerated."""
    policy = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    edge = (2 * BEATS - 1) @ policy
    for count in (2, 4):
        tuples = torch.cartesian_prod(*[torch.arange(3)] * count)
        weight = policy[tuples].prod(-1)
        observed = (~torch.eye(count, dtype=torch.bool)).expand(len(tuples), -1, -1)
        win = BEATS[tuples[:, :, None], tuples[:, None, :]]
        told = preferences_to_self_play(Preferences(win, observed, torch.ones(len(tuples), count, dtype=torch.bool)))
        rows = torch.nn.functional.one_hot(tuples[:, 0], 3) - torch.nn.functional.one_hot(tuples[:, 1], 3)
        gap = told.value[:, 0] - told.value[:, 1]
        fit = torch.linalg.lstsq(weight[:, None].sqrt() * rows.double(), weight.sqrt() * gap, driver="gelsd").solution
        torch.testing.assert_close(fit - fit @ policy, edge - edge @ policy, rtol=0, atol=1e-8)
