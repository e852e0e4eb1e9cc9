"""The paper's protocol on the package's learner: its numbers by plain autograd, and that it learns."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from experiments.bandit.gradient import GradientSearch
from valence.objectives.dpo import DPO
from valence.objectives.pmpo import PMPO, pmpo_a, pmpo_ar, pmpo_r
from valence.search.space import Box, Unbounded

VALUES = [[3.0, 1.0, 4.0, 2.0], [0.1, 0.4, 0.3, 0.2], [9.0, 8.0, 7.0, 6.0], [1.0, 2.0, 3.0, 4.0]]


def by_hand(draws: list[np.ndarray], objective: Any, lag: int, lr: float) -> tuple[Tensor, Tensor]:
    """The same steps written out, latent units being x's own."""
    mean = torch.tensor([0.5, -1.0], dtype=torch.float64, requires_grad=True)
    log_std = torch.full((2,), math.log(0.7), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([mean, log_std], lr=lr)
    old = Normal(mean.detach().clone(), log_std.detach().exp())
    for step, (x, values) in enumerate(zip(draws, VALUES, strict=True), 1):
        new, order = Normal(mean, log_std.exp()), np.argsort(values)
        logs = new.log_prob(torch.as_tensor(x)).sum(-1)
        if isinstance(objective, PMPO):
            kl = kl_divergence(old, new).sum()
            alpha, beta = float(objective.alpha), float(objective.beta)
            loss = -alpha * logs[order[:2]].mean() + (1 - alpha) * logs[order[2:]].mean() + beta * kl
        else:
            ratio = logs - old.log_prob(torch.as_tensor(x)).sum(-1)
            loss = -torch.nn.functional.logsigmoid(objective.beta * (ratio[order[0]] - ratio[order[3]]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % lag == 0:
            old = Normal(mean.detach().clone(), log_std.detach().exp())
    return mean.detach(), log_std.detach()


@pytest.mark.parametrize("objective", [pmpo_ar(), pmpo_a(), pmpo_r(), DPO(beta=0.7)])
def test_steps_are_the_objectives_by_plain_autograd(objective: Any) -> None:
    search = GradientSearch(
        Unbounded(0, 1, 2), objective, refresh_every=2, lr=0.05, start=[0.5, -1.0], sigma=0.7, seed=1
    )
    draws = []
    for values in VALUES:
        draws.append(search.ask())
        search.tell(draws[-1], values)
    mean, log_std = by_hand(draws, objective, lag=2, lr=0.05)
    # The objectives' class weights are float32.
    torch.testing.assert_close(search.policy.mean.detach(), mean, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(search.policy.log_std.detach(), log_std, rtol=1e-5, atol=1e-6)
    assert (mean - torch.tensor([0.5, -1.0])).abs().min() > 0.01


def test_samples_come_from_the_lagging_reference() -> None:
    search = GradientSearch(Unbounded(0, 1, 1), pmpo_a(), refresh_every=3, lr=0.5, seed=1)
    means = []
    for _ in range(6):
        x = search.ask(500)
        means.append(float(x.mean()))
        search.tell(x, x[:, 0])
    np.testing.assert_allclose(means[:3], 0, atol=0.15)
    assert max(means[3:]) < -0.3


@pytest.mark.parametrize("objective", [pmpo_ar(), DPO(beta=1.0)])
def test_labels_and_preferences_move_it_to_the_minimum(objective: Any) -> None:
    search = GradientSearch(Box(-5, 5, 1), objective, refresh_every=20, lr=0.02, seed=0)
    for _ in range(100):
        x = search.ask()
        search.tell(x, (x[:, 0] - 2) ** 2)
    assert abs(search.mean[0] - 2) < 1.0


def test_a_seed_gives_the_same_bits() -> None:
    means = []
    for _ in range(2):
        search = GradientSearch(Box(-5, 5, 2), pmpo_r(), refresh_every=3, seed=2)
        for _ in range(8):
            x = search.ask()
            search.tell(x, (x**2).sum(-1))
        means.append(search.policy.mean.detach().clone())
    assert torch.equal(*means)


def test_the_best_value_is_kept_and_bad_arguments_are_refused() -> None:
    search = GradientSearch(Box(-5, 5, 1), pmpo_ar(), start=[1.0])
    assert search.best == math.inf and search.mean == pytest.approx([1.0])
    search.tell(np.array([[0.0], [1.0]]), [1.0, 0.5])
    search.tell(np.array([[0.0], [1.0]]), [2.0, 0.75])
    assert search.best == 0.5
    with pytest.raises(ValueError, match="`num_samples` is 1"):
        GradientSearch(Box(-5, 5, 1), pmpo_ar(), num_samples=1)
