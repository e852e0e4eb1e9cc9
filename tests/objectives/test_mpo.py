"""MPO: the E-step and its dual against optima worked by hand, the M-step's bounds, and where each gradient flows."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import helpers
from helpers import Table, assert_close, table_batch
from valence.objectives.mpo import MPO, Duals, MPOTarget, mpo_temperature_loss, mpo_weights
from valence.policies.gaussian import GaussianPolicy
from valence.training.checkpoint import load_checkpoint, save_checkpoint
from valence.training.learner import Learner
from valence.training.reference import FrozenCopy
from valence.types import Action, Batch, Labels, Likelihood, Rewards

ALL = torch.ones(1, 2, dtype=torch.bool)
GAP = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
"""Two actions, worth 1 and 0."""


def kl_to_uniform(chances: Tensor) -> float:
    """KL(q || uniform), nats."""
    return float(torch.xlogy(chances, chances * chances.shape[-1]).sum(-1).mean())


def bisect(function: Callable[[float], float], low: float, high: float) -> float:
    """Where a falling function crosses 0."""
    for _ in range(200):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if function(middle) > 0 else (low, middle)
    return low


def kl_of_two(temperature: float) -> float:
    """KL(q || uniform) of q = (s, 1 - s) with s = sigmoid(1 / eta), written out."""
    s = 1 / (1 + math.exp(-1 / temperature))
    return math.log(2) + s * math.log(s) + (1 - s) * math.log(1 - s)


def test_weights_by_hand() -> None:
    # e^{1 / 0.5} = e^2 against 1: sigmoid(2).
    assert_close(mpo_weights(GAP, ALL, 0.5), torch.tensor([[0.880797, 0.119203]]), 1e-6)
    # A third action that is absent, worth a lot, and a context of none.
    reward = torch.tensor([[1.0, 0.0, 50.0], [math.nan, 3.0, math.inf]])
    present = torch.tensor([[True, True, False], [False, False, False]])
    assert_close(mpo_weights(reward, present, 0.5), torch.tensor([[0.880797, 0.119203, 0], [0, 0, 0]]), 1e-6)
    # Values that differ by far more than the temperature: all on the best, and no overflow.
    far = torch.tensor([[1e6, -1e6, 0.0]])
    assert mpo_weights(far, far == far, 1e-3).tolist() == [[1, 0, 0]]


@pytest.mark.parametrize("epsilon", [0.01, 0.1, 0.4])
def test_the_temperature_at_the_optimum_spends_the_whole_bound(epsilon: float) -> None:
    """d/d eta of the dual is epsilon - KL(q || pi_ref): at its minimum the E-step moves by exactly epsilon."""
    best = bisect(lambda temperature: kl_of_two(temperature) - epsilon, 1e-3, 1e3)
    assert kl_of_two(best) == pytest.approx(epsilon)
    assert kl_to_uniform(mpo_weights(GAP, ALL, best)) == pytest.approx(epsilon)
    for factor, sign in ((0.5, -1), (1.0, 0), (2.0, 1)):
        temperature = torch.tensor(factor * best, dtype=torch.float64, requires_grad=True)
        loss = mpo_temperature_loss(GAP, ALL, temperature, epsilon=epsilon)
        # eta epsilon + eta log((e^{1 / eta} + 1) / 2)
        by_hand = factor * best * (epsilon + math.log((math.exp(1 / (factor * best)) + 1) / 2))
        assert float(loss.detach()) == pytest.approx(by_hand)
        (slope,) = torch.autograd.grad(loss.sum(), temperature)
        assert float(slope) == pytest.approx(epsilon - kl_of_two(factor * best), abs=1e-9)
        assert sign == 0 or float(slope) * sign > 0


def test_gradient_descent_finds_the_optimal_temperature_over_several_contexts() -> None:
    """Contexts share one temperature: the mean of their KLs meets the bound."""
    reward = torch.tensor([[1.0, 0.0, 9.0], [3.0, -2.0, 0.5], [0.2, 0.1, 0.0]], dtype=torch.float64)
    present = torch.tensor([[True, True, False], [True, True, True], [True, True, True]])
    numbers = present.sum(-1)

    def mean_kl(temperature: float) -> float:
        total = 0.0
        for row, keep, number in zip(reward, present, numbers, strict=True):
            q = torch.softmax(row[keep] / temperature, -1)
            total += float((q * (q * number).log()).sum())
        return total / 3

    best = bisect(lambda temperature: mean_kl(temperature) - 0.1, 1e-3, 1e3)
    duals = Duals(temperature=5.0).double()
    optimizer = torch.optim.Adam(duals.parameters(), lr=0.05)
    for _ in range(800):
        optimizer.zero_grad()
        mpo_temperature_loss(reward, present, duals["temperature"], epsilon=0.1).mean().backward()
        optimizer.step()
    assert float(duals["temperature"].detach()) == pytest.approx(best, rel=1e-4)


def test_a_context_without_actions_moves_no_temperature() -> None:
    reward = torch.tensor([[1.0, 0.0], [math.nan, math.inf]], dtype=torch.float64)
    present = torch.tensor([[True, True], [False, False]])
    temperature = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    loss = mpo_temperature_loss(reward, present, temperature, epsilon=0.1)
    assert loss[1].item() == 0
    (both,) = torch.autograd.grad(loss.sum(), temperature)
    (alone,) = torch.autograd.grad(mpo_temperature_loss(GAP, ALL, temperature, epsilon=0.1).sum(), temperature)
    assert both.item() == alone.item()


def test_duals_start_where_they_are_told_and_stay_positive() -> None:
    duals = Duals(temperature=10.0, covariance=1000.0, penalty=1e-3)
    for name, value in {"temperature": 10.0, "covariance": 1000.0, "penalty": 1e-3}.items():
        assert duals[name].item() == pytest.approx(value, rel=1e-3)
    with torch.no_grad():
        duals.raw["temperature"].fill_(-1e4)
    assert duals["temperature"].item() > 0


def decoupled_leaves(contexts: int = 2, actions: int = 3) -> dict[str, Tensor]:
    draw = torch.randn(5, contexts, actions, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    names = ("log_prob", "log_prob_mean", "log_prob_covariance", "ref_kl_mean", "ref_kl_covariance")
    leaves = dict(zip(names, draw, strict=True))
    for name in ("ref_kl_mean", "ref_kl_covariance"):
        leaves[name] = leaves[name].abs()[:, :1].expand(-1, actions, -1).clone()
    return {name: leaf.requires_grad_() for name, leaf in leaves.items()}


def control_batch(reward: Tensor, present: Tensor | None = None, steps: Tensor | None = None) -> Batch:
    present = torch.ones_like(reward, dtype=torch.bool) if present is None else present
    steps = torch.zeros(*reward.shape, 1, 2) if steps is None else steps
    return Batch(None, Action(steps, present[..., None]), Rewards(reward, present))


REWARD = torch.tensor([[2.0, 0.0, 1.0], [-1.0, 0.5, 5.0]], dtype=torch.float64)
PRESENT = torch.tensor([[True, True, True], [True, True, False]])


def test_the_loss_by_hand() -> None:
    """Per context: -sum_k w_k (log pi_mean + log pi_cov) + lambda_mean KL_mean + lambda_cov KL_cov; duals beside it."""
    objective = MPO(epsilon_penalty=0.0, init_temperature=2.0, init_multiplier=3.0, init_multiplier_covariance=7.0)
    leaves = decoupled_leaves()
    target = objective.prepare(control_batch(REWARD, PRESENT), None)
    assert target.size == 2 and target.penalty is None
    loss = objective(Likelihood(**leaves), target)
    policy, dual = 0.0, 0.0
    for n, keep in enumerate(([0, 1, 2], [0, 1])):
        weight = torch.softmax(REWARD[n, keep] / 2, -1)
        kl_mean, kl_covariance = (leaves[f"ref_kl_{half}"][n, 0, 0].item() for half in ("mean", "covariance"))
        for place, k in enumerate(keep):
            both = leaves["log_prob_mean"][n, k, 0] + leaves["log_prob_covariance"][n, k, 0]
            policy -= (weight[place] * both).item()
        policy += 3 * kl_mean + 7 * kl_covariance
        dual += 2 * (0.1 + float((REWARD[n, keep] / 2).exp().mean().log()))
        dual += 3 * (2.5e-3 - kl_mean) + 7 * (1e-6 - kl_covariance)
    assert loss.terms["policy"].sum().item() == pytest.approx(policy, rel=1e-5)
    assert loss.terms["dual"].sum().item() == pytest.approx(dual, rel=1e-5)
    assert loss.terms["policy"][1, 2] == 0
    kl = [leaves["ref_kl_mean"][n, 0, 0].item() for n in range(2)]
    assert float(loss.metrics["kl_ref_policy_mean"]) == pytest.approx(sum(kl) / 2)
    assert float(loss.metrics["temperature"]) == pytest.approx(2.0)


def test_where_the_gradient_flows() -> None:
    """Log-probabilities by their weights, KLs by the multipliers, nothing to absent actions or the joint log-prob;
    the duals see neither log-probabilities nor each other's terms."""
    objective = MPO(init_temperature=2.0, init_multiplier=3.0, init_multiplier_covariance=7.0)
    leaves, duals = decoupled_leaves(), objective.state()
    steps = torch.zeros(2, 3, 1, 2)
    steps[0, 0] = 4.0
    target = objective.prepare(control_batch(REWARD, PRESENT, steps), None)
    assert target.penalty is not None and target.penalty[0, 0].item() == pytest.approx(3 * 2**0.5)
    loss = objective(Likelihood(**leaves), target)
    policy = torch.autograd.grad(loss.terms["policy"].sum(), list(leaves.values()), allow_unused=True)
    found = dict(zip(leaves, policy, strict=True))
    assert found["log_prob"] is None
    weight = mpo_weights(REWARD, PRESENT, 2.0) + mpo_weights(-target.penalty, PRESENT, 1.0)
    share = torch.tensor([[1 / 3] * 3, [0.5, 0.5, 0.0]])
    for half, multiplier in (("mean", 3.0), ("covariance", 7.0)):
        assert_close(found[f"log_prob_{half}"][..., 0], -weight, 1e-6)
        assert_close(found[f"ref_kl_{half}"][..., 0], multiplier * share, 1e-5)
    assert all(part.grad is None for part in duals.parameters())
    again = objective(Likelihood(**leaves), target).terms["dual"].sum()
    names = list(duals.raw)
    slopes = dict(zip(names, torch.autograd.grad(again, [duals.raw[name] for name in names]), strict=True))
    assert set(names) == {"temperature", "mean", "covariance", "penalty"}
    for half, epsilon in (("mean", 2.5e-3), ("covariance", 1e-6)):
        total = (epsilon - leaves[f"ref_kl_{half}"][:, 0, 0]).sum().item()
        assert float(slopes[half]) == pytest.approx(total * torch.sigmoid(duals.raw[half]).item(), rel=1e-4)
    leaves_seen = torch.autograd.grad(
        objective(Likelihood(**leaves), target).terms["dual"].sum(), list(leaves.values()), allow_unused=True
    )
    assert all(part is None for part in leaves_seen)


@pytest.mark.parametrize(("kl", "rises"), [(0.02, True), (0.0, False)])
def test_multipliers_rise_above_their_bound_and_fall_below_it(kl: float, rises: bool) -> None:
    objective = MPO(epsilon_mean=0.01, epsilon_covariance=0.01, epsilon_penalty=0.0)
    duals = objective.state()
    before = {half: duals[half].item() for half in ("mean", "covariance")}
    optimizer = torch.optim.SGD(duals.parameters(), lr=1.0)
    leaves = {name: torch.zeros(2, 3, 1) for name in decoupled_leaves()}
    leaves["ref_kl_mean"] += kl
    leaves["ref_kl_covariance"] += 0.01
    target = objective.prepare(control_batch(REWARD.float()), None)
    objective(Likelihood(**leaves), target).terms["dual"].sum().backward()
    optimizer.step()
    assert (duals["mean"].item() > before["mean"]) is rises and duals["mean"].item() != before["mean"]
    # On its bound it stays.
    assert duals["covariance"].item() == pytest.approx(before["covariance"], rel=1e-7)


def test_the_penalty_prefers_actions_within_the_bounds() -> None:
    """Equal values: without it all weigh the same; with it the action outside weighs less, whatever its side."""
    steps = torch.tensor([0.3, 2.0, -1.0, -1.5])[None, :, None, None]
    reward = torch.zeros(1, 4)
    leaves = {name: torch.zeros(1, 4, 1, requires_grad=True) for name in decoupled_leaves()}
    weights = {}
    for epsilon in (0.0, 1e-3):
        objective = MPO(epsilon_penalty=epsilon)
        target = objective.prepare(control_batch(reward, steps=steps), None)
        loss = objective(Likelihood(**leaves), target).terms["policy"].sum()
        (slope,) = torch.autograd.grad(loss, leaves["log_prob_mean"])
        weights[epsilon] = -slope[0, :, 0]
    assert_close(weights[0.0], torch.full((4,), 0.25), 1e-6)
    # On top of that, softmax(-distance) at the penalty's first temperature of 1: distances 0, 1, 0, 0.5.
    assert_close(weights[1e-3] - weights[0.0], torch.softmax(torch.tensor([0.0, -1.0, 0.0, -0.5]), 0), 1e-5)


def test_not_decoupled_it_bounds_the_whole_kl_of_any_policy() -> None:
    objective = MPO(decoupled=False, init_temperature=0.5, init_multiplier=4.0)
    assert objective.needs == {"log_prob", "ref_kl"} and set(objective.state().raw) == {
        "temperature",
        "mean",
        "penalty",
    }
    policy = Table(torch.randn(2, 1, 3, generator=torch.Generator().manual_seed(0)))
    reference = FrozenCopy(policy)
    helpers.shake(policy, size=0.5)
    present = torch.ones(2, 2, dtype=torch.bool)
    batch = table_batch(Rewards(REWARD[:, :2], present), [[0, 2], [1, 1]])
    # Tokens and bins have no bounds to lie outside of, also where the penalty was not switched off.
    target = objective.prepare(batch, None)
    measured = policy.likelihood(batch, reference, objective.needs)
    loss = objective(measured, target).terms["policy"].sum(-1).detach()
    weight = mpo_weights(REWARD[:, :2], present, 0.5)
    expected = -(weight * measured.log_prob[..., 0]).sum(-1) + 4.0 * measured.ref_kl[:, 0, 0]
    assert_close(loss, expected.detach(), 1e-5)


@pytest.mark.slow
def test_a_loose_bound_lets_the_policy_reach_the_e_step() -> None:
    """One context, every action once: sum_k w_k log pi(k) is largest at pi = w, the E-step's q."""
    policy, value = Table(torch.zeros(1, 1, 4)), torch.tensor([[1.0, 0.0, -0.5, 0.3]])
    objective = MPO(decoupled=False, epsilon=0.2, epsilon_mean=50.0, epsilon_penalty=0.0, init_multiplier=1e-3)
    learner = mpo_learner(policy, objective, FrozenCopy(policy), lr=0.1, dual_lr=0.05)
    batch = table_batch(Rewards(value, torch.ones(1, 4, dtype=torch.bool)), [[0, 1, 2, 3]])
    for _ in range(400):
        learner.update(batch)
    q = mpo_weights(value, batch.present, objective.state()["temperature"].detach())
    assert_close(policy.logits.detach()[0].softmax(-1), q, 2e-3)
    assert kl_to_uniform(q.double()) == pytest.approx(0.2, abs=2e-3)
    assert q.max() > 0.45


@pytest.mark.slow
def test_a_tight_bound_is_kept() -> None:
    """With a bound between 0 and what the E-step asks for, KL(pi_ref || pi) settles on it."""
    policy, value = Table(torch.zeros(1, 1, 4)), torch.tensor([[1.0, 0.0, -0.5, 0.3]])
    objective = MPO(decoupled=False, epsilon=0.2, epsilon_mean=0.05, epsilon_penalty=0.0, init_multiplier=1.0)
    learner = mpo_learner(policy, objective, FrozenCopy(policy), lr=0.03, dual_lr=0.05)
    batch = table_batch(Rewards(value, torch.ones(1, 4, dtype=torch.bool)), [[0, 1, 2, 3]])
    for _ in range(600):
        figures = learner.update(batch)
    assert figures["kl_ref_policy_mean"] == pytest.approx(0.05, rel=0.02)
    assert kl_to_uniform(policy.logits.detach()[0].softmax(-1)) < 0.1


def mpo_learner(policy: Any, objective: MPO, reference: Any, *, lr: float, dual_lr: float, **options: Any) -> Learner:
    optimizers: dict[str, torch.optim.Optimizer] = {
        "policy": torch.optim.Adam(policy.parameters(), lr=lr),
        "dual": torch.optim.Adam(objective.state().parameters(), lr=dual_lr),
    }
    return Learner(policy, objective, reference, optimizers, max_grad_norm=0.0, **options)


def gaussian_batch(policy: GaussianPolicy, reference: Any, *, contexts: int = 6) -> Batch:
    context = torch.randn(contexts, 2, generator=torch.Generator().manual_seed(1))
    action = reference.copy.sample(context, 5, torch.Generator().manual_seed(2))
    value = -((action.steps[:, :, 0, 0] - 0.5) ** 2)
    return Batch(context, action, Rewards(value, torch.ones_like(value, dtype=torch.bool)))


def gaussian_learner(micro_batch_size: int = 0) -> tuple[Learner, Batch]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        policy = GaussianPolicy(2, 1, (8,))
    reference = FrozenCopy(policy, refresh_every=4)
    learner = mpo_learner(policy, MPO(), reference, lr=1e-2, dual_lr=1e-2, micro_batch_size=micro_batch_size)
    return learner, gaussian_batch(policy, reference)


def test_updates_and_figures_do_not_depend_on_micro_batches() -> None:
    (whole, batch), (parts, _) = gaussian_learner(), gaussian_learner(micro_batch_size=2)
    for _ in range(3):
        ours, theirs = whole.update(batch), parts.update(batch)
        assert ours.keys() == theirs.keys()
        for name, value in ours.items():
            assert theirs[name] == pytest.approx(value, rel=1e-4, abs=1e-7), name
    assert ours["kl_ref_policy_mean"] > 1e-4
    for first, second in zip(whole.policy.parameters(), parts.policy.parameters(), strict=True):
        assert_close(first.detach(), second.detach(), 1e-5)
    for name, part in whole.objective.state().raw.items():
        assert_close(part.detach(), parts.objective.state().raw[name].detach(), 1e-5)


class NoSource:
    """A source without a state."""

    unit, num_units, figures = "steps", 1, {}

    def next(self, policy: Any) -> Batch:
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        assert state == {}


def test_checkpoints_keep_the_duals_and_a_resumed_run_goes_on_to_the_bit(tmp_path: Any) -> None:
    unbroken, batch = gaussian_learner()
    for _ in range(10):
        unbroken.update(batch)
    first, _ = gaussian_learner()
    for _ in range(5):
        first.update(batch)
    place = save_checkpoint(tmp_path, first, NoSource())
    second, _ = gaussian_learner()
    load_checkpoint(place, second, NoSource())
    for name, part in first.objective.state().raw.items():
        assert torch.equal(part, second.objective.state().raw[name]) and not part.equal(MPO().state().raw[name])
    for _ in range(5):
        second.update(batch)
    for ours, theirs in zip(second.policy.parameters(), unbroken.policy.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    for name, part in unbroken.objective.state().raw.items():
        assert torch.equal(part, second.objective.state().raw[name])


def test_its_size_is_contexts_also_where_they_are_ragged() -> None:
    """Contexts of 1, 3, 0 and 2 actions: 3 contexts in all; of the first two, 2; of the last two, 1. By its
    share of the actions, the second context alone would count as 3 * 3 / 6 = 1.5."""
    present = torch.tensor([[True, False, False], [True, True, True], [False, False, False], [True, True, False]])
    target = MPOTarget(present=present, reward=torch.zeros(4, 3))
    assert target.size == 3
    for rows, contexts in ((slice(0, 1), 1), (slice(1, 2), 1), (slice(0, 2), 2), (slice(2, 4), 1), (slice(2, 3), 1)):
        assert target.minibatch(rows).size == contexts
        assert target.select(rows).size == 3


def test_each_instance_has_duals_of_its_own() -> None:
    first, second = MPO(), MPO()
    assert first == second and first.state() is not second.state()
    assert first.state() is first.state()


def test_what_it_cannot_take_is_refused() -> None:
    for name in ("epsilon", "epsilon_mean", "epsilon_covariance", "init_temperature", "init_multiplier"):
        for wrong in (0.0, -1.0, math.nan, math.inf):
            with pytest.raises(ValueError, match=f"^`{name}` must be"):
                MPO(**{name: wrong})
    with pytest.raises(ValueError, match="`epsilon_penalty` must be"):
        MPO(epsilon_penalty=-1.0)
    with pytest.raises(ValueError, match="MPO accepts Rewards, got Labels"):
        MPO().prepare(Batch(None, Action(torch.zeros(1, 2, 1, 1), ALL[..., None]), Labels(ALL.long(), ALL)), None)
    target = MPO().prepare(control_batch(REWARD), None)
    with pytest.raises(ValueError, match="MPO needs log_prob_mean"):
        MPO()(Likelihood(torch.zeros(2, 3, 1)), target)
    with pytest.raises(ValueError, match="MPO needs ref_kl"):
        MPO(decoupled=False)(Likelihood(torch.zeros(2, 3, 1)), target)


@pytest.mark.slow
def test_the_covariances_bound_is_felt_within_a_thousand_updates() -> None:
    # One Gaussian whose values ask for no spread at all: each reference is left as fast as the bound allows.
    import torch
    from torch import nn

    ends = {}
    for bound in (1e-4, 1e-2):
        objective = MPO(epsilon_mean=1.0, epsilon_covariance=bound, epsilon_penalty=0.0)
        log_scale, dual = nn.Parameter(torch.zeros(())), torch.optim.Adam(objective.state().parameters(), lr=1e-2)
        adam = torch.optim.Adam([log_scale], lr=1e-3)
        reference, draws = 1.0, torch.randn(64, 4, 1, generator=torch.Generator().manual_seed(0))
        present = torch.ones(64, 4, dtype=torch.bool)
        for step in range(1000):
            steps = draws * reference
            scale = log_scale.exp()
            log_prob = (-0.5 * (steps / scale) ** 2 - log_scale).expand(64, 4, 1)
            kl = (torch.log(scale / reference) + 0.5 * (reference / scale) ** 2 - 0.5).expand(64, 4, 1)
            zero = torch.zeros(64, 4, 1)
            likelihood = Likelihood(
                log_prob, log_prob_mean=zero, log_prob_covariance=log_prob, ref_kl_mean=zero, ref_kl_covariance=kl
            )
            target = MPOTarget(present=present, reward=-(steps[..., 0] ** 2))
            adam.zero_grad()
            dual.zero_grad()
            objective(likelihood, target).total(64.0).backward()
            adam.step()
            dual.step()
            if (step + 1) % 25 == 0:
                reference = float(log_scale.detach().exp())
        ends[bound] = reference
    assert ends[1e-2] < 0.8 * ends[1e-4]
