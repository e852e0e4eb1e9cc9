"""Likelihoods from small distributions: a control policy's Normals and Categoricals."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical, Distribution, Independent, Normal, kl_divergence

from helpers import assert_close
from valence.policies.base import likelihood_from_distributions, pull_back

ALL = frozenset({"log_prob", "ref_log_prob", "ref_kl", "policy_kl"})
SHAPE = (2, 3, 2)


def normals(mean: float, deviation: float, *, leaf: bool = False) -> tuple[Normal, Tensor]:
    location = torch.full(SHAPE, mean, dtype=torch.float64, requires_grad=leaf)
    return Normal(location, torch.tensor(deviation, dtype=torch.float64)), location


def mask() -> Tensor:
    kept = torch.ones(SHAPE, dtype=torch.bool)
    kept[0, 1] = False
    kept[1, :, 1] = False
    return kept


def test_normal_by_hand() -> None:
    ours, _ = normals(1.0, 2.0)
    theirs, _ = normals(0.0, 1.0)
    steps = torch.full(SHAPE, 3.0, dtype=torch.float64)
    found = likelihood_from_distributions(ours, theirs, steps, mask(), ALL)
    # log N(3; 1, 2) = -log 2 - log(2 pi) / 2 - ((3 - 1) / 2)^2 / 2
    assert math.isclose(found.log_prob[0, 0, 0], -math.log(2) - math.log(2 * math.pi) / 2 - 0.5)
    assert found.ref_log_prob is not None and found.ref_kl is not None and found.policy_kl is not None
    assert math.isclose(found.ref_log_prob[0, 0, 0], -math.log(2 * math.pi) / 2 - 4.5)
    # KL(N(0, 1) || N(1, 2)) = log 2 + (1 + 1) / (2 * 4) - 1/2;  the other way: -log 2 + (4 + 1) / 2 - 1/2
    assert math.isclose(found.ref_kl[0, 0, 0], math.log(2) + 0.25 - 0.5)
    assert math.isclose(found.policy_kl[0, 0, 0], -math.log(2) + 2.5 - 0.5)
    for name in ALL:
        assert not getattr(found, name)[~mask()].any()
    assert found.mask is not None and torch.equal(found.mask, mask())
    # Two steps of the first action, one of the last.
    assert_close(found.total().log_prob[0, 0], found.log_prob[0, 0, 0] * 2, 1e-12)
    assert_close(found.total().log_prob[1, 2], found.log_prob[1, 2, 0], 1e-12)


def test_categorical_sums_to_one_and_its_kls_are_those_of_torch() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, *SHAPE, 4, generator=generator, dtype=torch.float64)
    ours, theirs = Categorical(logits=logits[0]), Categorical(logits=logits[1])
    everything = torch.ones(SHAPE, dtype=torch.bool)
    total = torch.zeros(SHAPE, dtype=torch.float64)
    for token in range(4):
        steps = torch.full(SHAPE, token)
        total += likelihood_from_distributions(ours, theirs, steps, everything, ALL).log_prob.exp()
    assert_close(total, torch.ones(SHAPE, dtype=torch.float64), 1e-12)
    found = likelihood_from_distributions(ours, theirs, torch.zeros(SHAPE, dtype=torch.long), everything, ALL)
    assert_close(found.ref_kl, (theirs.probs * (theirs.probs / ours.probs).log()).sum(-1), 1e-12)
    assert_close(found.policy_kl, (ours.probs * (ours.probs / theirs.probs).log()).sum(-1), 1e-12)


def test_independent_counts_a_vector_as_one_step() -> None:
    generator = torch.Generator().manual_seed(0)
    mean, other, steps = torch.randn(3, *SHAPE, 5, generator=generator, dtype=torch.float64)
    ours, theirs = Independent(Normal(mean, 1.0), 1), Independent(Normal(other, 1.0), 1)
    found = likelihood_from_distributions(ours, theirs, steps, mask(), ALL)
    assert found.log_prob.shape == SHAPE
    assert_close(found.log_prob, Normal(mean, 1.0).log_prob(steps).sum(-1) * mask(), 1e-12)
    assert_close(found.ref_kl, (mean - other).square().sum(-1) / 2 * mask(), 1e-12)


@pytest.mark.parametrize("kind", ["normal", "categorical"])
def test_where_the_gradient_flows(kind: str) -> None:
    ours, theirs, leaf, other = distributions(kind)
    steps = torch.ones(SHAPE, dtype=torch.long if kind == "categorical" else torch.float64)
    found = likelihood_from_distributions(ours, theirs, steps, mask(), ALL)
    assert found.ref_log_prob is not None and not found.ref_log_prob.requires_grad
    grads = {name: torch.ones(SHAPE, dtype=torch.float64) for name in ("log_prob", "ref_kl")}
    pull_back(found, grads)
    assert leaf.grad is not None
    ours, theirs, again, _ = distributions(kind)
    expected = torch.autograd.grad(((ours.log_prob(steps) + kl_divergence(theirs, ours)) * mask()).sum(), again)
    assert_close(leaf.grad, expected[0], 1e-12)
    assert leaf.grad[~mask()].abs().sum() == 0
    assert other.grad is None


def distributions(kind: str) -> tuple[Distribution, Distribution, Tensor, Tensor]:
    if kind == "normal":
        ours, leaf = normals(0.5, 1.5, leaf=True)
        theirs, other = normals(-0.3, 1.0)
        return ours, theirs, leaf, other
    generator = torch.Generator().manual_seed(0)
    leaf, other = torch.randn(2, *SHAPE, 4, generator=generator, dtype=torch.float64)
    leaf = leaf.clone().requires_grad_()
    return Categorical(logits=leaf), Categorical(logits=other), leaf, other


def test_a_reference_quantity_without_a_reference_is_refused() -> None:
    ours, _ = normals(0.0, 1.0)
    steps = torch.zeros(SHAPE, dtype=torch.float64)
    for name in ("ref_log_prob", "ref_kl", "policy_kl"):
        with pytest.raises(ValueError, match=name):
            likelihood_from_distributions(ours, None, steps, mask(), frozenset({name}))
    assert likelihood_from_distributions(ours, None, steps, mask(), frozenset({"log_prob"})).ref_kl is None


def test_pull_back_ignores_what_is_constant() -> None:
    ours, leaf = normals(0.5, 1.5, leaf=True)
    theirs, _ = normals(0.0, 1.0)
    found = likelihood_from_distributions(ours, theirs, torch.ones(SHAPE, dtype=torch.float64), mask(), ALL)
    pull_back(found, {"ref_log_prob": torch.ones(SHAPE, dtype=torch.float64)})
    assert leaf.grad is None
    pull_back(found, {})
    assert leaf.grad is None
