"""Supervised: the mean negative log-likelihood of what was accepted, and its optimum."""

from __future__ import annotations

import pytest
import torch
from torch.autograd import gradcheck

from valence.objectives import Supervised, supervised_loss
from valence.types import Labels, Likelihood


def test_value_by_hand(make_batch):
    """Accepted rows at log pi = -1 - 1 and -4: mean 3. With a given fraction 1/4: (2 + 4) / (1/4) / 4 rows = 6."""
    sign = torch.tensor([[1], [-1], [1], [0]])
    batch = make_batch(Labels(sign, torch.ones(4, 1, dtype=torch.bool)), steps=2)
    log_prob = torch.tensor([[[-1.0, -1.0]], [[-9.0, 0.0]], [[-4.0, 0.0]], [[-9.0, 0.0]]])
    for fraction, expected in ((None, 3.0), (0.25, 6.0)):
        objective = Supervised(accepted_fraction=fraction)
        target = objective.prepare(batch, None)
        loss = objective(Likelihood(log_prob), target)
        assert loss.total(target.size).item() == expected
        assert loss.metrics["accepted_log_prob"].item() == -3.0


def test_nothing_accepted_is_no_loss(make_batch):
    batch = make_batch(Labels(torch.tensor([[-1], [0]]), torch.ones(2, 1, dtype=torch.bool)))
    target = Supervised().prepare(batch, None)
    loss = Supervised()(Likelihood(torch.full((2, 1, 1), -3.0)), target)
    assert loss.total(target.size).item() == 0.0
    assert loss.metrics == {}


def test_gradcheck():
    generator = torch.Generator().manual_seed(0)
    log_prob, weight = torch.randn(2, 3, 2, dtype=torch.float64, generator=generator)
    assert gradcheck(lambda a: supervised_loss(a, weight), (log_prob.requires_grad_(),))


def test_converges_to_what_was_accepted(bandit):
    """The maximum likelihood of the accepted rows: pi_ref s / Z = their counts 1, 1, 2, 0 over 4."""
    actions, feedback = bandit.rows(accepted=(1, 1, 2, 0))
    policy = bandit.fit(Supervised(), feedback, actions)
    torch.testing.assert_close(policy, torch.tensor([0.25, 0.25, 0.5, 0.0], dtype=torch.float64), atol=1e-3, rtol=0)


@pytest.mark.parametrize(("fraction", "message"), [(0.0, "above 0"), (-0.1, "in .0, 1."), (1.1, "in .0, 1.")])
def test_fraction_is_validated(fraction, message):
    with pytest.raises(ValueError, match=f"`accepted_fraction` must be {message}"):
        Supervised(accepted_fraction=fraction)
