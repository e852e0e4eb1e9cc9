"""Gaussian and binned categorical policies: likelihoods, KLs, samples and gradients against plain computations."""

from __future__ import annotations

import copy
import math
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical, Independent, MultivariateNormal, Normal, kl_divergence

import helpers
from helpers import assert_close, assert_near, chi_square_limit
from valence.policies.actor import Actor
from valence.policies.categorical import CategoricalPolicy
from valence.policies.gaussian import GaussianPolicy
from valence.protocols import Policy
from valence.training.reference import FrozenCopy
from valence.types import DECOUPLED, Action, Batch, Labels, Likelihood

N, K, SEEN, D, BINS = 4, 5, 3, 2, 5
EVERY = frozenset({"log_prob", "ref_log_prob", "ref_kl", "policy_kl"})
KINDS = {"gaussian": GaussianPolicy, "categorical": CategoricalPolicy}


def actor(kind: str, *, seed: int = 0, size: float = 0.4, **options: Any) -> Any:
    """A policy whose weights are moved, so that its distributions differ by context and dimension."""
    if kind == "categorical":
        options = {"bins": BINS} | options
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        policy = KINDS[kind](SEEN, D, (16, 8), **options)
    helpers.shake(policy, seed=seed, size=size)
    return policy


@pytest.fixture(params=list(KINDS))
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


def observations(number: int = N) -> Tensor:
    return torch.randn(number, SEEN, generator=torch.Generator().manual_seed(11))


def make_batch(policy: Actor, *, absent: bool = True) -> Batch:
    """Actions that another policy of the same kind drew; two are absent."""
    other = actor("gaussian" if isinstance(policy, GaussianPolicy) else "categorical", seed=5)
    context = observations()
    action = other.sample(context, K, torch.Generator().manual_seed(2))
    mask = action.mask.clone()
    if absent:
        mask[1, 3] = mask[2, 0] = False
    sign = torch.where(mask[..., 0], 1, 0)
    return Batch(context, Action(action.steps, mask), Labels(sign, mask[..., 0]))


def doubled(batch: Batch) -> Batch:
    """The same in double precision; bins' numbers stay integers."""
    steps = batch.action.steps
    steps = steps.double() if steps.is_floating_point() else steps
    return Batch(batch.context.double(), Action(steps, batch.action.mask), batch.feedback)


def moved(kind: str) -> tuple[Any, FrozenCopy]:
    """A policy that has moved away from its reference, and the reference."""
    policy = actor(kind)
    reference = FrozenCopy(policy)
    helpers.shake(policy, seed=9, size=0.3)
    return policy, reference


def slow_log_prob(policy: Any, seen: Tensor, step: Tensor) -> Tensor:
    """log pi of one action in one context, a dimension at a time, from the density's formula."""
    if isinstance(policy, GaussianPolicy):
        mean, scale = (part.flatten() for part in policy.moments(seen[None]))
        parts = [
            -((step[d] - mean[d]) ** 2) / (2 * scale[d] ** 2) - scale[d].log() - 0.5 * math.log(2 * math.pi)
            for d in range(D)
        ]
        return torch.stack(parts).sum()
    logits = policy.logits(seen[None])[0, 0, 0]
    return torch.stack([logits[d].log_softmax(-1)[int(step[d])] for d in range(D)]).sum()


def test_they_are_policies(kind: str) -> None:
    assert isinstance(actor(kind), Policy)


def test_log_prob_equals_the_obvious_computation(kind: str) -> None:
    policy, reference = moved(kind)
    batch = make_batch(policy)
    found = policy.likelihood(batch, reference, EVERY)
    assert found.log_prob.shape == (N, K, 1) and found.mask is batch.action.mask
    for n, k in product(range(N), range(K)):
        if not batch.present[n, k]:
            assert not any(part[n, k].any() for part in (found.log_prob, found.ref_log_prob, found.ref_kl))
            continue
        step = batch.action.steps[n, k, 0]
        assert_close(found.log_prob[n, k, 0], slow_log_prob(policy, batch.context[n], step), 1e-4)
        assert_close(found.ref_log_prob[n, k, 0], slow_log_prob(reference.copy, batch.context[n], step), 1e-4)


def plain(policy: Any, seen: Tensor) -> Any:
    """The distribution of one context, built from the network's outputs by torch.distributions."""
    if isinstance(policy, GaussianPolicy):
        mean, scale = (part.flatten() for part in policy.moments(seen[None]))
        return MultivariateNormal(mean, torch.diag(scale**2))
    return Independent(Categorical(logits=policy.logits(seen[None])[0, 0, 0]), 1)


@torch.no_grad()
def test_kls_equal_those_of_torch_and_those_of_samples(kind: str) -> None:
    policy, reference = moved(kind)
    batch = make_batch(policy)
    found = policy.likelihood(batch, reference, EVERY)
    for n in range(N):
        ours, theirs = plain(policy, batch.context[n]), plain(reference.copy, batch.context[n])
        present = batch.present[n]
        for value, first, second in ((found.ref_kl, theirs, ours), (found.policy_kl, ours, theirs)):
            assert_close(value[n, present, 0], kl_divergence(first, second).expand(int(present.sum())), 1e-4)
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(n)
                draws = first.sample((20_000,))
            ratio = first.log_prob(draws) - second.log_prob(draws)
            error = ratio.std() / len(draws) ** 0.5
            assert abs(ratio.mean() - value[n, present, 0][0]) < 5 * error
    # The two directions differ, so an implementation that swaps them fails.
    assert (found.ref_kl - found.policy_kl).abs().max() > 0.01
    assert bool((found.ref_kl[batch.present] > 0).all())


@torch.no_grad()
def test_categorical_probabilities_sum_to_one_over_all_actions_and_their_kl_is_the_sum() -> None:
    policy, reference = moved("categorical")
    every = torch.tensor(list(product(range(BINS), repeat=D)))
    steps = every[None, :, None].expand(N, -1, -1, -1)
    mask = torch.ones(steps.shape[:3], dtype=torch.bool)
    batch = Batch(observations(), Action(steps, mask), Labels(mask[..., 0].long(), mask[..., 0]))
    found = policy.likelihood(batch, reference, EVERY).total()
    assert_close(found.log_prob.exp().sum(-1), torch.ones(N), 1e-5)
    kl = (found.ref_log_prob.exp() * (found.ref_log_prob - found.log_prob)).sum(-1)
    assert_close(found.ref_kl, kl[:, None].expand(N, len(every)), 1e-4)


@torch.no_grad()
def test_gaussian_halves_are_pis_mean_and_pis_covariance_with_the_references_other() -> None:
    policy, reference = moved("gaussian")
    batch = make_batch(policy)
    found = policy.likelihood(batch, reference, EVERY | DECOUPLED)
    for n in range(N):
        (mean, scale), (old_mean, old_scale) = (
            [part.flatten() for part in each.moments(batch.context[n][None])] for each in (policy, reference.copy)
        )
        old = Independent(Normal(old_mean, old_scale), 1)
        present, steps = batch.present[n], batch.action.steps[n, :, 0]
        for half, own in {"mean": Normal(mean, old_scale), "covariance": Normal(old_mean, scale)}.items():
            own = Independent(own, 1)
            assert_close(getattr(found, f"log_prob_{half}")[n, present, 0], own.log_prob(steps)[present], 1e-4)
            kl = kl_divergence(old, own).expand(int(present.sum()))
            assert_close(getattr(found, f"ref_kl_{half}")[n, present, 0], kl, 1e-4)
            assert not getattr(found, f"log_prob_{half}")[n, ~present].any()
    alone = policy.likelihood(batch, reference, EVERY)
    for name in EVERY:
        assert torch.equal(getattr(found, name), getattr(alone, name))


def test_halves_have_gradients_of_their_own() -> None:
    policy, reference = moved("gaussian")
    batch = make_batch(policy)
    mean_rows, scale_rows = slice(0, D), slice(D, 2 * D)
    for half, own, other in (("mean", mean_rows, scale_rows), ("covariance", scale_rows, mean_rows)):
        for name in (f"log_prob_{half}", f"ref_kl_{half}"):
            policy.zero_grad()
            getattr(policy.likelihood(batch, reference, DECOUPLED), name).sum().backward()
            slope = policy.head.weight.grad
            assert slope[own].abs().max() > 1e-3 and not slope[other].any(), name


@pytest.mark.parametrize("names", [("log_prob",), ("ref_kl",), ("log_prob", "ref_kl")])
def test_pull_back_is_autograd_and_leaves_the_reference_alone(kind: str, names: tuple[str, ...]) -> None:
    policy, reference = moved(kind)
    batch = doubled(make_batch(policy))
    policy.double()
    reference.copy.double()
    weights = torch.randn(2, N, K, 1, generator=torch.Generator().manual_seed(1)).double()
    grads = dict(zip(names, weights, strict=False))
    policy.backward(batch, reference, policy.likelihood(batch, reference, EVERY), grads)
    ours = helpers.gradients(policy)
    policy.zero_grad()
    slow = torch.zeros((), dtype=torch.float64)
    for n, k in product(range(N), range(K)):
        if not batch.present[n, k]:
            continue
        if "log_prob" in names:
            slow = slow + weights[0, n, k, 0] * slow_log_prob(policy, batch.context[n], batch.action.steps[n, k, 0])
        if "ref_kl" in names:
            kl = kl_divergence(plain(reference.copy, batch.context[n]), plain(policy, batch.context[n]))
            slow = slow + grads["ref_kl"][n, k, 0] * kl
    slow.backward()
    theirs = helpers.gradients(policy)
    assert len(theirs) == len(list(policy.parameters()))
    # In double precision: a scale near its lower bound makes gradients of 2e4, whose float32 rounds by 1e-3.
    assert_near(ours, theirs, 1e-10)
    assert not any(part.requires_grad or part.grad is not None for part in reference.copy.parameters())


@torch.no_grad()
def test_gaussian_samples_have_its_moments() -> None:
    policy, number = actor("gaussian"), 20_000
    context = observations()
    steps = policy.sample(context, number, torch.Generator().manual_seed(0)).steps
    assert steps.shape == (N, number, 1, D)
    mean, scale = (part[:, 0, 0] for part in policy.moments(context))
    assert ((steps[:, :, 0].mean(1) - mean).abs() < 5 * scale / number**0.5).all()
    assert_close(steps[:, :, 0].std(1), scale, 0.03)
    # Dimensions and contexts are independent.
    together = torch.corrcoef(steps[:, :, 0].permute(0, 2, 1).reshape(N * D, number))
    assert (together - torch.eye(N * D)).abs().max() < 5 / number**0.5


@torch.no_grad()
def test_categorical_samples_are_as_frequent_as_their_likelihood_says() -> None:
    policy, number = actor("categorical"), 10_000
    context = observations()
    action = policy.sample(context, number, torch.Generator().manual_seed(0))
    assert action.steps.shape == (N, number, 1, D) and action.steps.dtype == torch.long
    chances = policy.logits(context)[:, 0, 0].double().softmax(-1)
    for n in range(N):
        together = action.steps[n, :, 0, 0] * BINS + action.steps[n, :, 0, 1]
        expected = number * (chances[n, 0][:, None] * chances[n, 1][None]).flatten()
        counts = torch.bincount(together, minlength=BINS**2)
        assert ((counts - expected) ** 2 / expected).sum() < chi_square_limit(BINS**2)


def test_a_seed_reproduces_samples_and_the_global_generator_is_left_alone(kind: str) -> None:
    policy, context, before = actor(kind), observations(), torch.get_rng_state()
    draws = [policy.sample(context, K, torch.Generator().manual_seed(seed)).steps for seed in (3, 3, 4)]
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])
    assert torch.equal(before, torch.get_rng_state()) and not draws[0].requires_grad


def test_decode_and_mode() -> None:
    bins = actor("categorical")
    assert bins.decode(torch.arange(BINS)).tolist() == [-1.0, -0.5, 0.0, 0.5, 1.0]
    context = observations()
    best = bins.logits(context)[:, 0, 0].argmax(-1)
    assert torch.equal(bins.mode(context), bins.decode(best)) and len(set(bins.mode(context).flatten().tolist())) > 2
    normal = actor("gaussian")
    assert normal.decode(torch.tensor([-3.0, -0.2, 1.5])).tolist() == pytest.approx([-1.0, -0.2, 1.0])
    assert torch.equal(normal.mode(context), normal.moments(context)[0][:, 0, 0].detach())
    assert not normal.mode(context).requires_grad


def test_a_gaussian_starts_at_its_scale_around_the_middle_and_never_falls_below_its_least() -> None:
    policy = GaussianPolicy(SEEN, D, (16,), init_scale=0.3, min_scale=0.01)
    mean, scale = policy.moments(observations())
    assert mean.abs().max() < 0.05
    assert_close(scale, torch.full_like(scale, 0.3), 0.01)
    with torch.no_grad():
        policy.head.bias.fill_(-100.0)
    mean, scale = policy.moments(observations())
    assert_close(scale, torch.full_like(scale, 0.01), 1e-6)
    assert bool((mean >= -1).all())


def test_bins_start_even() -> None:
    chances = CategoricalPolicy(SEEN, D, (16,), bins=7).logits(observations()).softmax(-1)
    assert_close(chances, torch.full_like(chances, 1 / 7), 0.01)


def test_a_frozen_copy_stays_until_it_is_refreshed(kind: str) -> None:
    policy = actor(kind)
    reference = FrozenCopy(policy, refresh_every=3)
    batch = make_batch(policy)
    at_start = policy.likelihood(batch, reference, EVERY)
    assert at_start.ref_kl.abs().max() < 1e-6 and torch.equal(at_start.ref_log_prob, at_start.log_prob.detach())
    helpers.shake(policy)
    for step in (1, 2):
        reference.after_step(policy, step)
        left = policy.likelihood(batch, reference, EVERY)
        assert torch.equal(left.ref_log_prob, at_start.ref_log_prob) and left.ref_kl.max() > 1e-3
    reference.after_step(policy, 3)
    assert policy.likelihood(batch, reference, EVERY).ref_kl.abs().max() < 1e-6
    assert all(
        ours is not theirs for ours, theirs in zip(policy.parameters(), reference.copy.parameters(), strict=True)
    )


def test_float64_likelihoods_agree(kind: str) -> None:
    policy, reference = moved(kind)
    batch = make_batch(policy)
    exact, exact_reference = policy.frozen_copy(dtype=torch.float64), FrozenCopy(reference.copy, dtype=torch.float64)
    ours, theirs = policy.likelihood(batch, reference, EVERY), exact.likelihood(doubled(batch), exact_reference, EVERY)
    for name in EVERY:
        assert getattr(theirs, name).dtype == torch.float64
        assert_close(getattr(ours, name), getattr(theirs, name), 1e-4)


def test_a_reference_quantity_without_a_reference_is_refused(kind: str) -> None:
    policy = actor(kind)
    batch = make_batch(policy)
    for needs in (frozenset({"ref_kl"}), frozenset({"ref_log_prob"})):
        with pytest.raises(ValueError, match="need a reference"):
            policy.likelihood(batch, None, needs)
    assert policy.likelihood(batch, None, frozenset({"log_prob"})).ref_kl is None


def test_halves_without_a_reference_are_refused() -> None:
    policy = actor("gaussian")
    with pytest.raises(ValueError, match="need a reference"):
        policy.likelihood(make_batch(policy), None, DECOUPLED)


def fit(policy: Any, target: Tensor, steps: int = 250) -> Likelihood:
    """Maximum likelihood on actions of four contexts."""
    mask = torch.ones(target.shape[:3], dtype=torch.bool)
    batch = Batch(observations(), Action(target, mask), Labels(mask[..., 0].long(), mask[..., 0]))
    optimizer = torch.optim.Adam(policy.parameters(), lr=0.02)
    for _ in range(steps):
        optimizer.zero_grad()
        found = policy.likelihood(batch, None, frozenset({"log_prob"}))
        policy.backward(batch, None, found, {"log_prob": -torch.ones_like(found.log_prob) / found.log_prob.numel()})
        optimizer.step()
    return policy.likelihood(batch, None, frozenset({"log_prob"}))


def test_maximum_likelihood_finds_the_moments_and_the_frequencies() -> None:
    draw = torch.Generator().manual_seed(6)
    centres = torch.rand(N, 1, 1, D, generator=draw) - 0.5
    target = centres + 0.2 * torch.randn(N, 32, 1, D, generator=draw)
    policy = actor("gaussian")
    fit(policy, target)
    mean, scale = policy.moments(observations())
    assert_close(mean[:, 0, 0], target.mean(1)[:, 0], 0.03)
    assert_close(scale[:, 0, 0], target.std(1, unbiased=False)[:, 0], 0.03)
    picks = torch.randint(0, BINS, (N, 32, 1, D), generator=draw)
    bins = actor("categorical")
    found = fit(bins, picks)
    shares = torch.nn.functional.one_hot(picks, BINS).double().mean(1)[:, 0]
    best = torch.xlogy(shares, shares).sum((-1, -2)).mean()
    assert float(found.log_prob.detach().mean()) == pytest.approx(float(best), abs=0.01)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GaussianPolicy(0, 1), "`observation_size` is 0"),
        (lambda: CategoricalPolicy(1, 0), "`action_size` is 0"),
        (lambda: GaussianPolicy(1, 1, ()), "at least one layer"),
        (lambda: CategoricalPolicy(1, 1, (8, 0)), "at least one unit"),
        (lambda: CategoricalPolicy(1, 1, bins=1), "`bins` is 1"),
        (lambda: GaussianPolicy(1, 1, init_scale=0.001, min_scale=0.01), "`min_scale` < `init_scale`"),
        (lambda: GaussianPolicy(1, 1, min_scale=-0.1), "0 <= `min_scale`"),
    ],
)
def test_bad_sizes_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@torch.no_grad()
def test_no_bin_falls_below_its_floor_and_kls_stay_finite() -> None:
    policy = CategoricalPolicy(SEEN, D, (16,), bins=7, min_prob=0.01)
    other = copy.deepcopy(policy)
    with torch.no_grad():
        # Logits far beyond what a float's softmax can hold, in opposite directions.
        policy.head.bias.copy_(torch.linspace(-300, 300, D * 7))
        other.head.bias.copy_(torch.linspace(300, -300, D * 7))
    ours, theirs = policy.distribution(observations()), other.distribution(observations())
    chances = ours.base_dist.probs
    assert chances.min() >= 0.01 - 1e-6 and torch.allclose(chances.sum(-1), torch.ones(()))
    # For each dimension, at most the log of the largest probability over the floor.
    kl = torch.distributions.kl_divergence(theirs, ours)
    assert bool((kl > 0).all()) and float(kl.max()) <= D * math.log(0.94 / 0.01) + 1e-4
    bare = CategoricalPolicy(SEEN, D, (16,), bins=7, min_prob=0.0)
    with torch.no_grad():
        bare.head.bias.copy_(torch.linspace(-300, 300, D * 7))
        other.min_prob = 0.0
    kl = torch.distributions.kl_divergence(other.distribution(observations()), bare.distribution(observations()))
    assert bool(kl.isfinite().all())


@pytest.mark.parametrize("floor", [-0.1, 1 / 7, 0.5])
def test_a_floor_that_leaves_nothing_is_refused(floor: float) -> None:
    with pytest.raises(ValueError, match="min_prob"):
        CategoricalPolicy(SEEN, D, (16,), bins=7, min_prob=floor)
