"""One suite over all objectives and the feedback that each accepts: what the learner relies on, whatever the method.

The objectives are the dataclasses found in `valence.objectives`, made without arguments, and `SETTINGS`, which have
other fields. Every batch here is ragged, has NaN wherever nothing is, and its last context has no action at all.
"""

from __future__ import annotations

import dataclasses
import importlib
import math
import pkgutil
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

import valence.objectives
from valence.objectives.apa import APA
from valence.objectives.common import PairTarget
from valence.objectives.dpo import DPO, IPO, RPO, IPOAppendixE
from valence.objectives.dro import DRO
from valence.objectives.grpo import GRPO
from valence.objectives.kto import KTO
from valence.objectives.mpo import MPO
from valence.objectives.pmpo import PMPO, pmpo_a, pmpo_ar, pmpo_r
from valence.objectives.policy_gradient import REINFORCE, CoPG
from valence.objectives.ppo import PPO
from valence.objectives.ppo_without_critic import PPOWithoutCritic
from valence.objectives.rebel import REBEL
from valence.objectives.scaled import ScaledLogProb, ScaledTarget
from valence.protocols import Objective
from valence.types import (
    DECOUPLED,
    PER_STEP,
    Action,
    Batch,
    Feedback,
    Labels,
    Likelihood,
    Pairs,
    Preferences,
    Rewards,
    Target,
)

N, K, T = 5, 3, 4
LENGTHS = torch.tensor([[4, 1, 2], [3, 2, 0], [2, 4, 1], [1, 0, 0], [0, 0, 0]])
MICRO_BATCHES = (slice(0, 1), slice(1, 3), slice(3, 5))
NEEDS = frozenset(PER_STEP) | {"value"}


def found_objectives() -> Iterator[tuple[str, Any]]:
    """(name, objective) of every public objective of the folder that can be made without arguments."""
    for file in pkgutil.iter_modules(valence.objectives.__path__, "valence.objectives."):
        module = importlib.import_module(file.name)
        for name, kind in vars(module).items():
            local = isinstance(kind, type) and kind.__module__ == file.name and not name.startswith("_")
            if not (local and dataclasses.is_dataclass(kind) and hasattr(kind, "prepare")):
                continue
            if all(field.default is not dataclasses.MISSING for field in dataclasses.fields(kind) if field.init):
                yield name, kind()


FOUND = dict(found_objectives())
SETTINGS = {
    "pmpo-ar": pmpo_ar(),
    "pmpo-a": pmpo_a(),
    "pmpo-r": pmpo_r(),
    "pmpo-fractions": PMPO(accepted_fraction=0.3, rejected_fraction=0.5),
    "pmpo-scores": PMPO(alpha=0.3, score_temperature=0.7),
    "pmpo-decoupled": PMPO(covariance_beta=2.5),
    "pmpo-bc": PMPO(beta=1.3, regularizer="bc"),
    "dro-token": DRO(tau=0.7),
    "dro-prompt": DRO(tau=0.7, value="prompt"),
    "dro-batch": DRO(tau=0.7, value="batch"),
    "dro-prompt-mean": DRO(tau=0.7, value="prompt-mean"),
    "dro-batch-mean": DRO(tau=0.7, value="batch-mean"),
    "kto": KTO(beta=0.4, undesirable_weight=1.5),
    "kto-no-baseline": KTO(baseline="none"),
    "dpo": DPO(beta=0.5, label_smoothing=0.1),
    "ipo": IPO(beta=0.5),
    "ipo-appendix-e": IPOAppendixE(beta=0.5),
    "rpo": RPO(beta=0.5, sft_weight=0.3),
    "dpo-old": DPO(beta=0.5, anchor="old"),
    "rebel": REBEL(eta=0.7),
    "rebel-old": REBEL(eta=0.7, anchor="old"),
    "reinforce-plain": REINFORCE(baseline="none"),
    "copg": CoPG(beta=0.4),
    "ppo": PPO(clip=0.5),
    "ppo-without-critic": PPOWithoutCritic(clip=0.5),
    "apa": APA(advantage_temperature=0.5),
    "grpo": GRPO(clip=0.5),
    "grpo-free": GRPO(beta=0.0),
    "mpo-whole": MPO(decoupled=False),
    "scaled-rebel-old": ScaledLogProb(objective=REBEL(eta=0.7, anchor="old"), log_prob_scale=0.3),
    "scaled-ppo-without-critic": ScaledLogProb(objective=PPOWithoutCritic(clip=0.2), log_prob_scale=0.3),
    "scaled-grpo": ScaledLogProb(objective=GRPO(clip=0.2), log_prob_scale=0.3),
    "scaled-pmpo": ScaledLogProb(objective=PMPO(), log_prob_scale=0.3),
    "scaled-kto": ScaledLogProb(objective=KTO(beta=0.4), log_prob_scale=0.3),
}
OBJECTIVES = FOUND | SETTINGS


def test_the_objectives_are_found():
    assert {type(objective) for objective in SETTINGS.values()} - {ScaledLogProb} <= {
        type(one) for one in FOUND.values()
    }
    assert {"PMPO", "Supervised", "REINFORCE", "RLOO", "MPO"} <= FOUND.keys()


def feedback_of(kind: type, present: Tensor) -> Feedback:
    """The same judgements as rewards, labels or preferences, with NaN (or a wrong sign) where there is nothing."""
    value = torch.tensor([[1.0, -0.5, 2.0], [0.3, 0.3, 0], [-1.0, 0.5, 0.0], [0.8, 0, 0], [0, 0, 0]])
    value = value.masked_fill(~present, math.nan)
    if kind is Rewards:
        return Rewards(value, present)
    if kind is Labels:
        sign = torch.tensor([[1, -1, 0], [-1, 1, 0], [-1, 1, 1], [0, 0, 0], [0, 0, 0]])
        return Labels(sign.masked_fill(~present, -1), present)
    margin = value[:, :, None] - value[:, None, :]
    observed = present[:, :, None] & present[:, None, :] & ~torch.eye(K, dtype=torch.bool)
    observed[0, 0, 1] = False  # recorded in one direction only
    return Preferences(torch.sigmoid(margin).masked_fill(~observed, math.nan), observed, present)


@dataclass
class World:
    """A batch and the policy's likelihoods on it, as leaves to differentiate."""

    batch: Batch
    leaves: dict[str, Tensor]
    mask: Tensor
    mismatched: Likelihood

    def likelihood(self, names: frozenset[str], rows: slice = slice(None)) -> Likelihood:
        names = names | {"log_prob"}
        parts = {name: leaf if leaf.ndim == 0 else leaf[rows] for name, leaf in self.leaves.items() if name in names}
        return Likelihood(**parts, mask=self.mask[rows])


def make_world(kind: type, value_shape: tuple[int, ...] = (N, K, T), dtype: torch.dtype = torch.float64) -> World:
    generator = torch.Generator().manual_seed(3)
    mask = torch.arange(T) < LENGTHS[..., None]
    draw = torch.randn(4, N, K, T, dtype=torch.float64, generator=generator)
    parts = {
        "log_prob": -draw[0].abs() - 0.1,
        "ref_log_prob": -draw[1].abs() - 0.1,
        "ref_kl": draw[2].abs(),
        "policy_kl": draw[3].abs(),
    }
    leaves = {name: part.masked_fill(~mask, 0.0) for name, part in parts.items()}
    value = torch.randn(value_shape, dtype=torch.float64, generator=generator)
    leaves["value"] = value.masked_fill(~mask, math.nan) if value.ndim == 3 else value
    for name in sorted(DECOUPLED):
        half = torch.randn(N, K, T, dtype=torch.float64, generator=generator).abs()
        leaves[name] = (half if name.startswith("ref_kl") else -half - 0.1).masked_fill(~mask, 0.0)
    leaves = {name: leaf.to(dtype).requires_grad_() for name, leaf in leaves.items()}
    other = torch.tensor([[[0.5, -0.2]], [[0.4, 0.0]]], dtype=dtype)
    mismatched = Action(torch.zeros(2, 1, 2), torch.tensor([[[True, True]], [[True, False]]]))
    old = (leaves["log_prob"].detach() + 0.1 * draw[3].to(dtype)).masked_fill(~mask, 0.0)
    batch = Batch(
        None, Action(torch.zeros(N, K, T), mask), feedback_of(kind, LENGTHS > 0), old_log_prob=old,
        mismatched=mismatched,
    )  # fmt: skip
    return World(batch, leaves, mask, Likelihood(other - 1, torch.full_like(other, -1.0), mask=mismatched.mask))


def prepare(objective, world: World):
    if "mismatched" in objective.frozen_needs:
        return objective.prepare(world.batch, world.mismatched)
    return objective.prepare(world.batch, world.likelihood(objective.frozen_needs) if objective.frozen_needs else None)


def moved_by(objective) -> frozenset[str]:
    """What its loss has a gradient to: learnt apart, the two halves stand for the whole."""
    whole = {"log_prob"} if "log_prob_mean" in objective.needs else set()
    return objective.needs - {"ref_log_prob"} - whole


def loss_and_gradients(objective, world: World, rows: tuple[slice, ...] = (slice(None),)):
    """The loss and its gradients, summed over micro-batches of the collected batch, none normalised on its own."""
    target = prepare(objective, world)
    whole = torch.zeros((), dtype=torch.float64)
    for part in rows:
        micro = target if part == slice(None) else target.select(part)
        whole = whole + objective(world.likelihood(objective.needs, part), micro).total(target.size)
    moved = sorted(moved_by(objective))
    gradients = torch.autograd.grad(whole, [world.leaves[name] for name in moved])
    return whole.detach(), dict(zip(moved, gradients, strict=True))


def value_shape(objective) -> tuple[int, ...]:
    """What its critic gives: a value for each step, unless it learns one for each prompt or for all."""
    return {"prompt": (N, 1), "batch": ()}.get(getattr(objective, "value", ""), (N, K, T))


def cases():
    for name, objective in OBJECTIVES.items():
        for kind in objective.accepts:
            yield pytest.param(objective, kind, value_shape(objective), id=f"{name}-{kind.__name__}")


def of_the_loss(target: Target) -> Target:
    return target.scaled if isinstance(target, ScaledTarget) else target


def tensors_of(target: Target) -> Iterator[Tensor]:
    for item in dataclasses.fields(target):
        value = getattr(target, item.name)
        if isinstance(value, Target):
            yield from tensors_of(value)
        elif isinstance(value, Pairs):
            yield value.gap
        elif isinstance(value, Tensor):
            yield value


every_case = pytest.mark.parametrize(("objective", "kind", "shape"), list(cases()))
every_objective = pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES.keys())


@every_objective
def test_it_is_an_objective(objective):
    assert objective.needs <= NEEDS and "log_prob" in objective.needs
    assert objective.frozen_needs <= NEEDS | {"mismatched"}
    assert objective.accepts and set(objective.accepts) <= {Rewards, Labels, Preferences}
    assert isinstance(objective, Objective) and isinstance(objective.linear, bool)
    learnt = objective.state()
    assert learnt is objective.state()
    assert learnt is None or all(part.requires_grad for part in learnt.parameters())
    assert all(item.kw_only for item in dataclasses.fields(objective))
    for field in dataclasses.fields(objective)[:1]:
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(objective, field.name, 0.5)
    assert replace(objective) == objective


@every_objective
def test_every_field_has_a_help_text_of_its_own(objective):
    """The entries of the docstring's `Args:`, and of its bases', become the help of the options."""
    described = set()
    for kind in type(objective).__mro__:
        arguments = (vars(kind).get("__doc__") or "").partition("Args:")[2].partition("Raises:")[0]
        described |= set(re.findall(r"^        (\w+): \S.{20}", arguments, re.MULTILINE))
    assert described == {field.name for field in dataclasses.fields(objective) if field.init}


@every_objective
def test_other_feedback_is_refused_by_name(objective):
    for kind in {Rewards, Labels, Preferences} - set(objective.accepts):
        with pytest.raises(ValueError, match=f"accepts .*{objective.accepts[0].__name__}.*got {kind.__name__}"):
            prepare(objective, make_world(kind))


@every_case
def test_terms_are_finite_and_zero_where_nothing_is(objective, kind, shape):
    world = make_world(kind, shape)
    target = prepare(objective, world)
    loss = objective(world.likelihood(objective.needs), target)
    assert "policy" in loss.terms and target.size >= 1
    assert ("dual" in loss.terms) is (objective.state() is not None)
    aim = of_the_loss(target)
    total = sum(term.detach().abs().sum().item() for term in loss.terms.values())
    assert math.isfinite(total) and total > 0
    for name, term in loss.terms.items():
        if name == "dual":
            assert term.shape == (N, 1) and not term[~world.batch.present.any(-1)].any()
        elif isinstance(aim, PairTarget):
            assert term.shape == aim.pairs.gap.shape
            assert world.batch.present.flatten()[aim.pairs.index].all()
        else:
            assert term.shape == (N, K) and (term[~world.batch.present] == 0).all()
    assert loss.metrics
    for metric in loss.metrics.values():
        assert metric.ndim == 0 and bool(metric.isfinite()) and not metric.requires_grad


@every_case
def test_gradient_goes_only_where_it_is_needed(objective, kind, shape):
    """Measured with everything, it gives the loss and gradients of being measured with its needs alone."""
    world = make_world(kind, shape)
    target = prepare(objective, world)
    alone, gradients = loss_and_gradients(objective, world)
    loss = objective(world.likelihood(NEEDS), target).total(target.size)
    assert loss.item() == alone.item()
    loss.backward()
    for name, leaf in world.leaves.items():
        if name in gradients:
            assert leaf.grad is not None and bool(leaf.grad.isfinite().all()) and leaf.grad.abs().sum() > 0
            torch.testing.assert_close(leaf.grad, gradients[name])
        else:
            assert leaf.grad is None
    assert not any(tensor.requires_grad for tensor in tensors_of(target))


@every_case
def test_micro_batches_add_up(objective, kind, shape):
    world = make_world(kind, shape)
    whole, gradients = loss_and_gradients(objective, world)
    parts, sums = loss_and_gradients(objective, world, MICRO_BATCHES)
    torch.testing.assert_close(parts, whole)
    torch.testing.assert_close(sums, gradients)


@every_case
def test_a_minibatch_is_a_batch_of_its_own(objective, kind, shape):
    """An optimizer step on some contexts divides by their own number of elements, whatever it counts."""
    world = make_world(kind, shape)
    target = prepare(objective, world)
    for rows in MICRO_BATCHES:
        part = target.minibatch(rows)
        alone = of_the_loss(part)
        counted = of_the_loss(target.select(rows)).count()
        assert part.size == alone.size == max(counted, 1)
        losses = [objective(world.likelihood(objective.needs, rows), aim) for aim in (target.select(rows), part)]
        assert losses[0].total(1.0).item() == losses[1].total(1.0).item()
    assert target.minibatch(slice(None)).size == target.size
    assert sum(of_the_loss(target.select(rows)).count() for rows in MICRO_BATCHES) == target.size


@every_case
def test_half_precision_is_summed_in_single(objective, kind, shape):
    """Log-probabilities in bfloat16: the terms are float32."""
    world = make_world(kind, shape, torch.bfloat16)
    target = prepare(objective, world)
    loss = objective(world.likelihood(objective.needs), target)
    assert {term.dtype for term in loss.terms.values()} == {torch.float32}
    whole = make_world(kind, shape, torch.float32)
    with torch.no_grad():
        for name, leaf in whole.leaves.items():
            leaf.copy_(world.leaves[name].float())
    assert whole.batch.old_log_prob is not None and world.batch.old_log_prob is not None
    batch = replace(whole.batch, old_log_prob=world.batch.old_log_prob.float())
    single = World(batch, whole.leaves, whole.mask, world.mismatched)
    exact = objective(single.likelihood(objective.needs), prepare(objective, single)).total(target.size).item()
    assert loss.total(target.size).item() == pytest.approx(exact, rel=0.05, abs=0.02)


@every_case
def test_a_micro_batch_without_actions_is_zero(objective, kind, shape):
    world = make_world(kind, shape)
    empty = slice(N - 1, N)
    target = prepare(objective, world)
    loss = objective(world.likelihood(objective.needs, empty), target.select(empty))
    assert loss.total(target.size).item() == 0
    assert all(bool(metric.isfinite()) for metric in loss.metrics.values())


def pad(world: World) -> World:
    """Two more masked steps, one more absent action and one more context without any, all full of NaN where allowed."""
    present = torch.nn.functional.pad(world.batch.present, (0, 1, 0, 1))
    mask = torch.nn.functional.pad(world.mask, (0, 2, 0, 1, 0, 1))
    leaves = {}
    for name, leaf in world.leaves.items():
        fill = math.nan if name == "value" else 0.0
        widths = {3: (0, 2, 0, 1, 0, 1), 2: (0, 0, 0, 1)}.get(leaf.ndim)
        padded = leaf.detach() if widths is None else torch.nn.functional.pad(leaf.detach(), widths, value=fill)
        leaves[name] = padded.clone().requires_grad_()
    feedback = world.batch.feedback
    if isinstance(feedback, Rewards):
        feedback = Rewards(torch.nn.functional.pad(feedback.value, (0, 1, 0, 1), value=math.nan), present)
    elif isinstance(feedback, Labels):
        feedback = Labels(torch.nn.functional.pad(feedback.sign, (0, 1, 0, 1), value=1), present)
    else:
        widths = (0, 1, 0, 1, 0, 1)
        # `observed` lies about what is absent: `present` has the last word.
        win = torch.nn.functional.pad(feedback.win, widths, value=math.nan)
        feedback = Preferences(win, torch.nn.functional.pad(feedback.observed, widths, value=True), present)
    assert world.batch.old_log_prob is not None
    old = torch.nn.functional.pad(world.batch.old_log_prob, (0, 2, 0, 1, 0, 1))
    batch = replace(world.batch, action=Action(torch.zeros(mask.shape), mask), feedback=feedback, old_log_prob=old)
    return World(batch, leaves, mask, world.mismatched)


@every_case
def test_padding_changes_nothing(objective, kind, shape):
    world = make_world(kind, shape)
    padded = pad(world)
    assert prepare(objective, padded).size == prepare(objective, world).size
    whole, gradients = loss_and_gradients(objective, world)
    other, wider = loss_and_gradients(objective, padded)
    torch.testing.assert_close(other, whole)
    for name, gradient in wider.items():
        if gradient.ndim == 3:
            assert (gradient[~padded.batch.present] == 0).all()
        # At masked steps of actions that exist a gradient is no concern: likelihoods are constant zeros there.
        narrow = {3: (world.mask, padded.mask), 2: (slice(None), slice(N)), 0: ((), ())}[gradient.ndim]
        torch.testing.assert_close(gradient[narrow[1]], gradients[name][narrow[0]])


def permute(world: World, contexts: Tensor, actions: Tensor) -> World:
    """The same batch with contexts, and the actions within each, in another order."""
    grid = (contexts[:, None], actions[None, :])
    mask, feedback = world.mask[grid], world.batch.feedback
    present = feedback.present[grid]
    leaves = {}
    for name, leaf in world.leaves.items():
        moved = leaf.detach()[grid] if leaf.ndim == 3 else leaf.detach()[contexts] if leaf.ndim == 2 else leaf.detach()
        leaves[name] = moved.clone().requires_grad_()
    if isinstance(feedback, Rewards):
        feedback = Rewards(feedback.value[grid], present)
    elif isinstance(feedback, Labels):
        feedback = Labels(feedback.sign[grid], present)
    else:
        cube = (contexts[:, None, None], actions[None, :, None], actions[None, None, :])
        feedback = Preferences(feedback.win[cube], feedback.observed[cube], present)
    assert world.batch.old_log_prob is not None
    action, old = Action(torch.zeros(mask.shape), mask), world.batch.old_log_prob[grid]
    batch = replace(world.batch, action=action, feedback=feedback, old_log_prob=old)
    return World(batch, leaves, mask, world.mismatched)


@every_case
def test_order_changes_nothing(objective, kind, shape):
    world = make_world(kind, shape)
    whole, gradients = loss_and_gradients(objective, world)
    contexts, actions = torch.tensor([3, 0, 4, 2, 1]), torch.tensor([2, 0, 1])
    other, moved = loss_and_gradients(objective, permute(world, contexts, actions))
    # Rewards are in float32: the order of their sum changes a mean's last digits.
    torch.testing.assert_close(other, whole, rtol=1e-5, atol=1e-6)
    grid = (contexts[:, None], actions[None, :])
    for name, gradient in moved.items():
        if gradient.ndim == 3:
            torch.testing.assert_close(gradient, gradients[name][grid], rtol=1e-5, atol=1e-6)


@every_case
def test_precision_is_kept(objective, kind, shape):
    losses = {}
    for dtype in (torch.float32, torch.float64):
        world = make_world(kind, shape, dtype)
        target = prepare(objective, world)
        loss = objective(world.likelihood(objective.needs), target)
        assert {term.dtype for term in loss.terms.values()} == {dtype}
        losses[dtype] = loss.total(target.size).item()
    assert losses[torch.float32] == pytest.approx(losses[torch.float64], rel=1e-4, abs=1e-5)


@every_objective
def test_a_missing_quantity_is_named(objective):
    world = make_world(objective.accepts[0])
    target = prepare(objective, world)
    for name in objective.needs - {"log_prob"}:
        with pytest.raises(ValueError, match=f"needs {name}"):
            objective(world.likelihood(objective.needs - {name}), target)
