"""Objectives whose log-probabilities and KLs are scaled: identities with the objectives' own settings."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from valence.objectives import DPO, GRPO, KTO, PMPO, REBEL, REINFORCE, RLOO, PPOWithoutCritic, ScaledLogProb
from valence.types import Action, Labels, Likelihood, Preferences, Rewards

SHAPE = (3, 2, 4)


def world(make_batch, kind: type = Rewards, seed: int = 0):
    """A batch with log pi_t, and the policy's likelihood as a leaf."""
    generator = torch.Generator().manual_seed(seed)
    draws = [torch.randn(SHAPE, generator=generator, dtype=torch.float64) for _ in range(4)]
    present = torch.ones(SHAPE[:2], dtype=torch.bool)
    value = torch.randn(SHAPE[:2], generator=generator, dtype=torch.float64)
    feedback = Rewards(value, present) if kind is Rewards else Labels(value.sign().long(), present)
    batch = replace(make_batch(feedback, steps=SHAPE[2]), old_log_prob=draws[0] - 100)
    leaf = (draws[1] - 100).requires_grad_()
    likelihood = Likelihood(
        leaf, ref_log_prob=draws[2] - 100, ref_kl=(leaf + 100).square() / 7, mask=batch.action.mask,
    )  # fmt: skip
    return batch, leaf, likelihood


def judged(objective, batch, leaf, likelihood):
    """(loss, gradient)."""
    target = objective.prepare(batch, None)
    loss = objective(likelihood, target).total(target.size)
    (gradient,) = torch.autograd.grad(loss, leaf, retain_graph=True)
    return loss.detach(), gradient


@pytest.mark.parametrize("scale", [1 / 256, 3.0])
def test_rebel_scaled_is_rebel_of_a_larger_step(scale, make_batch):
    """(1/eta) c (log-ratio gap): eta / c."""
    inputs = world(make_batch)
    scaled = ScaledLogProb(objective=REBEL(eta=0.7, anchor="old"), log_prob_scale=scale)
    ours, plain = judged(scaled, *inputs), judged(REBEL(eta=0.7 / scale, anchor="old"), *inputs)
    torch.testing.assert_close(ours, plain)
    assert not torch.allclose(ours[0], judged(REBEL(eta=0.7, anchor="old"), *inputs)[0])


def test_dpo_scaled_is_dpo_of_another_temperature(make_batch):
    inputs = world(make_batch)
    scaled = ScaledLogProb(objective=DPO(beta=0.8), log_prob_scale=0.25)
    torch.testing.assert_close(judged(scaled, *inputs), judged(DPO(beta=0.2), *inputs))


def test_rloo_scaled_is_a_fraction_of_rloo(make_batch):
    inputs = world(make_batch)
    ours = judged(ScaledLogProb(objective=RLOO(), log_prob_scale=0.25), *inputs)
    loss, gradient = judged(RLOO(), *inputs)
    torch.testing.assert_close(ours, (0.25 * loss, 0.25 * gradient))


def test_pmpo_scaled_weighs_the_kl_alike(make_batch):
    """Both of its terms are scaled: the weight between them stays."""
    inputs = world(make_batch, Labels)
    ours = judged(ScaledLogProb(objective=PMPO(beta=1.5), log_prob_scale=0.25), *inputs)
    loss, gradient = judged(PMPO(beta=1.5), *inputs)
    torch.testing.assert_close(ours, (0.25 * loss, 0.25 * gradient))


def test_ppo_clips_the_scaled_ratio(make_batch):
    """c = 1/100 and a log-ratio of 0.5: rho = e^0.005 = 1.005, within 0.01; one of 2: e^0.02, outside."""
    objective = ScaledLogProb(objective=PPOWithoutCritic(clip=0.01), log_prob_scale=0.01)
    present = torch.ones(1, 2, dtype=torch.bool)
    batch = make_batch(Rewards(torch.ones(1, 2), present))
    batch = replace(batch, old_log_prob=torch.full((1, 2, 1), -500.0))
    log_prob = torch.tensor([[[-499.5], [-498.0]]], requires_grad=True)
    target = objective.prepare(batch, None)
    loss = objective(Likelihood(log_prob), target)
    torch.testing.assert_close(loss.terms["policy"].detach(), torch.tensor([[-math.exp(0.005), -1.01]]))
    loss.terms["policy"].sum().backward()
    # Within it: -c rho A.
    torch.testing.assert_close(log_prob.grad, torch.tensor([[[-0.01 * math.exp(0.005)], [0.0]]]))
    assert loss.metrics["clipped"].item() == 0.5


@pytest.mark.parametrize(
    ("objective", "kind"),
    [(REBEL(eta=0.7, anchor="old"), Rewards), (PPOWithoutCritic(clip=0.5), Rewards), (PMPO(), Labels)],
)
def test_a_scale_of_one_changes_nothing(objective, kind, make_batch):
    inputs = world(make_batch, kind)
    ours = judged(ScaledLogProb(objective=objective, log_prob_scale=1.0), *inputs)
    for one, other in zip(ours, judged(objective, *inputs), strict=True):
        assert torch.equal(one, other)


def test_it_says_of_itself_what_the_objective_says():
    for objective in (REBEL(anchor="old"), PMPO(), KTO(), RLOO(), REINFORCE(), PPOWithoutCritic()):
        scaled = ScaledLogProb(objective=objective, log_prob_scale=0.1)
        assert scaled.needs == objective.needs and scaled.frozen_needs == objective.frozen_needs
        assert scaled.accepts == objective.accepts and scaled.state() is objective.state()
        # Gradients that are known before anything is measured stay so.
        assert scaled.linear is objective.linear
    assert ScaledLogProb(objective=RLOO(), log_prob_scale=0.1).linear
    assert not ScaledLogProb(objective=PPOWithoutCritic(), log_prob_scale=0.1).linear


def test_prepare_scales_what_the_batch_remembers_and_leaves_the_batch(make_batch):
    batch, _, _ = world(make_batch)
    assert batch.old_log_prob is not None
    before = batch.old_log_prob.clone()
    target = ScaledLogProb(objective=REBEL(anchor="old"), log_prob_scale=0.25).prepare(batch, None)
    torch.testing.assert_close(target.scaled.old_log_prob, 0.25 * before)
    assert torch.equal(target.plain.old_log_prob, before)
    assert torch.equal(batch.old_log_prob, before)


def test_prepare_scales_what_was_measured_before(make_batch):
    """KTO's baseline is the mean log-ratio of mismatched completions, here 2 nats and 4: 3, a quarter of it 0.75."""
    sign = torch.tensor([[1], [-1]])
    present = torch.ones(2, 1, dtype=torch.bool)
    other = Action(torch.zeros(2, 1, 1), present[..., None])
    batch = make_batch(Labels(sign, present), mismatched=other)
    frozen = Likelihood(torch.tensor([[[-1.0]], [[-2.0]]]), torch.tensor([[[-3.0]], [[-6.0]]]))
    baselines = [
        KTO().prepare(batch, frozen).baseline,
        ScaledLogProb(objective=KTO(), log_prob_scale=0.25).prepare(batch, frozen).scaled.baseline,
    ]
    assert [baseline.item() for baseline in baselines] == [3.0, 0.75]


@pytest.mark.parametrize("anchor", ["reference", "old"])
def test_log_ratios_are_reported_in_nats(anchor, make_batch):
    """log pi -2 and -4, under pi_ref and pi_t -3 and -3: log-ratios 1 and -1 nats, a quarter of them in the loss.

    eta 1/2: the reward margin (1/4 - (-1/4)) / eta = 1 is in the reward's unit, and stays as the loss has it.
    """
    rewards = Rewards(torch.tensor([[1.0, 0.0]]), torch.ones(1, 2, dtype=torch.bool))
    batch = replace(make_batch(rewards), old_log_prob=torch.full((1, 2, 1), -3.0))
    likelihood = Likelihood(torch.tensor([[[-2.0], [-4.0]]]), torch.full((1, 2, 1), -3.0))
    dpo = ScaledLogProb(objective=DPO(beta=1.0, anchor=anchor), log_prob_scale=0.25)
    metrics = dpo(likelihood, dpo.prepare(batch, None)).metrics
    assert metrics["accepted_log_ratio"].item() == 1.0 and metrics["rejected_log_ratio"].item() == -1.0
    assert metrics["reward_margin"].item() == 0.5
    rebel = ScaledLogProb(objective=REBEL(eta=0.5, anchor=anchor), log_prob_scale=0.25)
    assert rebel(likelihood, rebel.prepare(batch, None)).metrics["reward_margin"].item() == 1.0


def test_kls_are_reported_in_nats(make_batch):
    """KL(pi_ref || pi) of 0.5 and 1.5: their mean is 1 nat, whatever the scale; log pi -1 accepted, -2 rejected."""
    labels = Labels(torch.tensor([[1, -1]]), torch.ones(1, 2, dtype=torch.bool))
    likelihood = Likelihood(torch.tensor([[[-1.0], [-2.0]]]), ref_kl=torch.tensor([[[0.5], [1.5]]]))
    pmpo = ScaledLogProb(objective=PMPO(), log_prob_scale=0.25)
    loss = pmpo(likelihood, pmpo.prepare(make_batch(labels), None))
    values = {name: metric.item() for name, metric in loss.metrics.items()}
    assert values == {"accepted_log_prob": -1.0, "rejected_log_prob": -2.0, "kl_ref_policy": 1.0, "beta": 1.0}
    # 1/4 (1 (1) + 1 (0.5)) and 1/4 (-1 (2) + 1 (1.5)): the weights are +-1, as each class is half of the batch.
    torch.testing.assert_close(loss.terms["policy"], torch.tensor([[0.375, -0.125]]))


def test_grpos_kl_is_estimated_in_nats_and_penalised_scaled(make_batch):
    """u = ln 2: the estimate is 1/2 + ln 2 - 1 nats. Half of u is penalised: 2^-1/2 + ln(2) / 2 - 1."""
    rewards = Rewards(torch.tensor([[3.3, 3.3]]), torch.ones(1, 2, dtype=torch.bool))
    batch = replace(make_batch(rewards), old_log_prob=torch.full((1, 2, 1), -1.0))
    likelihood = Likelihood(torch.full((1, 2, 1), -1.0), torch.full((1, 2, 1), -1.0 - math.log(2)))
    grpo = ScaledLogProb(objective=GRPO(beta=1.0), log_prob_scale=0.5)
    loss = grpo(likelihood, grpo.prepare(batch, None))
    assert loss.metrics["kl_policy_ref_estimate"].item() == pytest.approx(math.log(2) - 0.5, abs=1e-6)
    penalty = 0.5**0.5 + math.log(2) / 2 - 1
    torch.testing.assert_close(loss.terms["policy"], torch.full((1, 2), penalty), atol=1e-6, rtol=0)


def test_ktos_baseline_is_reported_in_nats(make_batch):
    """As above: 3 nats, of which the loss takes a quarter."""
    present = torch.ones(2, 1, dtype=torch.bool)
    batch = make_batch(
        Labels(torch.tensor([[1], [-1]]), present), mismatched=Action(torch.zeros(2, 1, 1), present[..., None])
    )
    frozen = Likelihood(torch.tensor([[[-1.0]], [[-2.0]]]), torch.tensor([[[-3.0]], [[-6.0]]]))
    kto = ScaledLogProb(objective=KTO(), log_prob_scale=0.25)
    likelihood = Likelihood(torch.zeros(2, 1, 1), torch.zeros(2, 1, 1))
    assert kto(likelihood, kto.prepare(batch, frozen)).metrics["kl_baseline"].item() == 3.0


def test_the_wrong_feedback_and_scale_are_refused(make_batch):
    present = torch.ones(1, 2, dtype=torch.bool)
    batch = make_batch(Preferences(torch.zeros(1, 2, 2), torch.zeros(1, 2, 2, dtype=torch.bool), present))
    with pytest.raises(ValueError, match="PPOWithoutCritic accepts Rewards, got Preferences"):
        ScaledLogProb(objective=PPOWithoutCritic(), log_prob_scale=0.1).prepare(batch, None)
    for scale in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="`log_prob_scale` must be finite and > 0"):
            ScaledLogProb(objective=REBEL(), log_prob_scale=scale)
