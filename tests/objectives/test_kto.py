"""KTO: values by hand, its baseline, and its optimum, which keeps only what is accepted often enough."""

from __future__ import annotations

import math

import pytest
import torch
from torch.autograd import gradcheck

from valence.objectives import KTO, kto_baseline, kto_loss
from valence.types import Action, Labels, Likelihood


def test_value_by_hand():
    """sigmoid(log 3) = 3/4. beta = 1/2, z0 = 1: a log-ratio of 1 + 2 log 3 is worth sigmoid(log 3) above the baseline.

    accepted, lambda_D = 2: 2 (1 - 3/4) = 1/2; rejected, lambda_U = 3: 3 (1 - 1/4) = 9/4; unlabelled: 0.
    """
    ratio = torch.full((1, 3), 1 + 2 * math.log(3), dtype=torch.float64)
    weight = torch.tensor([[2.0, -3.0, 0.0]], dtype=torch.float64)
    loss = kto_loss(ratio, torch.tensor(1.0, dtype=torch.float64), weight, beta=0.5)
    assert loss[0].tolist() == pytest.approx([0.5, 2.25, 0.0])


def test_gradcheck():
    generator = torch.Generator().manual_seed(0)
    ratio, weight = torch.randn(2, 3, 2, dtype=torch.float64, generator=generator)
    baseline = torch.tensor(0.3, dtype=torch.float64)
    assert gradcheck(lambda a: kto_loss(a, baseline, weight, beta=0.8), (ratio.requires_grad_(),))


def test_baseline_is_the_clamped_mean_over_what_is_there():
    """(3 - 1) / 2 = 1, the third completion is absent; a negative mean is no KL, so 0; nothing at all gives 0."""
    ratio = torch.tensor([[3.0], [-1.0], [math.nan]], requires_grad=True)
    present = torch.tensor([[True], [True], [False]])
    baseline = kto_baseline(ratio, present)
    assert baseline.item() == 1.0 and not baseline.requires_grad
    assert kto_baseline(-ratio, present).item() == 0.0
    assert kto_baseline(ratio, torch.zeros_like(present)).item() == 0.0


def test_prepare_reads_the_mismatched_completions(make_batch):
    """Log-ratios of the two mismatched completions: (-1 + 2) + 0 = 1 and 0 + 3 = 3, and an empty one: z0 = 2.

    Then an accepted action at log-ratio 2 has loss sigmoid(0) = 1/2.
    """
    labels = Labels(torch.tensor([[1], [-1], [0]]), torch.ones(3, 1, dtype=torch.bool))
    mask = torch.tensor([[[True, True]], [[True, True]], [[False, False]]])
    mismatched = Action(torch.zeros(3, 1, 2), mask)
    log_prob = torch.tensor([[[-1.0, 0.0]], [[0.0, 0.0]], [[0.0, 0.0]]])
    reference = torch.tensor([[[-2.0, 0.0]], [[0.0, -3.0]], [[0.0, 0.0]]])
    target = KTO().prepare(make_batch(labels, mismatched=mismatched), Likelihood(log_prob, reference, mask=mask))
    assert target.baseline.item() == 2.0
    assert target.size == 2
    at_baseline = Likelihood(torch.full((3, 1, 1), 2.0), torch.zeros(3, 1, 1))
    assert KTO()(at_baseline, target).terms["policy"].flatten().tolist() == [0.5, 0.5, 0.0]


def test_prepare_without_the_mismatched_likelihood_is_refused(make_batch):
    labels = Labels(torch.tensor([[1]]), torch.ones(1, 1, dtype=torch.bool))
    with pytest.raises(ValueError, match=r'`Batch.mismatched`, completions of other prompts: use `baseline="none"`'):
        KTO().prepare(make_batch(labels), None)


def test_gradient_signs_and_saturation(make_batch):
    """Accepted actions are pushed up, rejected ones down, and hardly any more far from z0."""
    labels = Labels(torch.tensor([[1, -1, 1]]), torch.ones(1, 3, dtype=torch.bool))
    objective = KTO(beta=1.0, baseline="none")
    log_prob = torch.tensor([[[0.0], [0.0], [20.0]]], requires_grad=True)
    target = objective.prepare(make_batch(labels), None)
    objective(Likelihood(log_prob, torch.zeros(1, 3, 1)), target).total(1.0).backward()
    assert log_prob.grad is not None
    up, down, saturated = log_prob.grad.flatten().tolist()
    assert up == -0.25 and down == 0.25 and -1e-6 < saturated < 0


@pytest.mark.parametrize("z0", [0.0, 0.2])
@pytest.mark.parametrize("undesirable_weight", [1.0, 0.5])
def test_converges_to_its_own_optimum(bandit, z0, undesirable_weight):
    """KTO's optimum on the simplex, at beta = 1 and z0 fixed.

    With action probabilities mu = pi_ref and acceptance s, the expected loss is a constant plus
    sum mu c p, c = (1 - s) lambda_U - s lambda_D, p = sigmoid(log(pi / mu) - z0) = pi / (pi + e mu), e = exp(z0).
    Where c >= 0 the least is pi = 0. Where c < 0, stationarity mu |c| e mu / (pi + e mu)^2 = const gives
    pi = mu (k sqrt|c| - e), with k from sum pi = 1 (here all such pi are > 0). Unlike DRO's pi_ref e^{r / tau},
    nothing keeps actions that are rejected more than (lambda-weighted) half of the time.
    """
    actions, feedback = bandit.rows(accepted=(1, 1, 2, 0))
    acceptance = torch.tensor([1, 1 / 2, 2 / 3, 0], dtype=torch.float64)
    pull = (acceptance - (1 - acceptance) * undesirable_weight).clamp(min=0)
    kept, shift = bandit.reference * (pull > 0), math.exp(z0)
    scale = (1 + shift * kept.sum()) / (bandit.reference * pull.sqrt()).sum()
    expected = kept * (scale * pull.sqrt() - shift)
    assert expected.min() >= 0 and expected.sum().item() == pytest.approx(1)

    frozen = Likelihood(torch.full((1, 1, 1), z0, dtype=torch.float64), torch.zeros(1, 1, 1, dtype=torch.float64))
    objective = KTO(beta=1.0, undesirable_weight=undesirable_weight)
    policy = bandit.fit(objective, feedback, actions, frozen)
    torch.testing.assert_close(policy, expected, atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"beta": 0.0}, "`beta` must be finite and > 0"),
        ({"desirable_weight": -1.0}, "`desirable_weight` must be finite and >= 0"),
        ({"desirable_weight": 0.0, "undesirable_weight": 0.0}, "must not both be 0"),
    ],
)
def test_fields_are_validated(fields, message):
    with pytest.raises(ValueError, match=message):
        KTO(**fields)
