"""One update: the same whatever the micro-batches, right by hand, and safe when something is not a number."""

from __future__ import annotations

import copy
import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import helpers
from helpers import Table, assert_close, make_batch, table_batch
from valence.critics import BatchValue, TokenValue
from valence.errors import UserError
from valence.feedback.conversions import signs
from valence.objectives import (
    APA,
    DPO,
    DRO,
    GRPO,
    IPO,
    KTO,
    PMPO,
    PPO,
    REBEL,
    REINFORCE,
    RLOO,
    RPO,
    CoPG,
    IPOAppendixE,
    Supervised,
)
from valence.objectives.mpo import MPO
from valence.training.learner import Learner, count_tokens, make_optimizer
from valence.training.reference import AdaptersOff, FrozenCopy
from valence.types import Batch, Labels, Likelihood, Loss, Preferences, Rewards

OBJECTIVES = {
    "pmpo": (PMPO(alpha=0.5, beta=1.5), Labels),
    "pmpo-auto": (PMPO(), Labels),
    "pmpo-bc": (PMPO(beta=1.3, regularizer="bc"), Labels),
    "pmpo-scores": (PMPO(alpha=0.3, score_temperature=0.7), Rewards),
    "supervised": (Supervised(), Labels),
    "kto": (KTO(beta=0.4, undesirable_weight=1.5), Labels),
    "kto-no-baseline": (KTO(baseline="none"), Labels),
    "dpo": (DPO(beta=0.5, label_smoothing=0.1), Preferences),
    "dpo-scores": (DPO(beta=0.5), Rewards),
    "ipo": (IPO(beta=0.5), Preferences),
    "ipo-appendix-e": (IPOAppendixE(beta=0.5), Preferences),
    "rpo": (RPO(beta=0.5, sft_weight=0.3), Preferences),
    "rebel": (REBEL(eta=0.7), Rewards),
    "rebel-pairs": (REBEL(eta=0.7), Preferences),
    "dro-prompt-mean": (DRO(tau=0.7, value="prompt-mean"), Rewards),
    "dro-batch-mean": (DRO(tau=0.7, value="batch-mean"), Rewards),
    "dro-token": (DRO(tau=0.7), Rewards),
    "dro-prompt": (DRO(tau=0.7, value="prompt"), Rewards),
    "dro-head": (DRO(tau=0.7), Rewards),
    "dro-scalar": (DRO(tau=0.7, value="batch"), Rewards),
    "dro-labels": (DRO(tau=0.7), Labels),
    "rebel-old": (REBEL(eta=0.7, anchor="old"), Rewards),
    "dpo-old": (DPO(beta=0.5, anchor="old"), Rewards),
    "reinforce": (REINFORCE(), Rewards),
    "rloo": (RLOO(), Rewards),
    "copg": (CoPG(beta=0.4), Rewards),
    "ppo": (PPO(clip=0.5), Rewards),
    "apa": (APA(advantage_temperature=0.5), Rewards),
    "grpo": (GRPO(clip=0.5), Rewards),
}


def critic_of(name: str, policy: Any) -> Any:
    """A critic off its start, so that its values matter."""
    if name == "dro-scalar":
        critic = BatchValue()
    elif name == "dro-head":
        critic = TokenValue(policy, shared=True)
    else:
        per = "prompt" if name == "dro-prompt" else "token"
        critic = TokenValue(policy.frozen_copy().requires_grad_(True), per=per)
    with torch.no_grad():
        for part in critic.head.parameters() if hasattr(critic, "head") else critic.parameters():
            part.add_(0.3)
    return critic


def learner_for(name: str, kind: str = "llama", *, lora: bool = False, lr: float = 0.1, **options: Any) -> Learner:
    """A learner whose policy has already left its reference."""
    objective, _ = OBJECTIVES[name]
    policy = helpers.policy(kind, lora=lora)
    critic = critic_of(name, policy) if "value" in objective.needs else None
    reference = AdaptersOff(policy) if lora else FrozenCopy(policy)
    helpers.shake(policy, seed=7)
    optimizers = {"policy": torch.optim.SGD([*policy.trainable().values()], lr=lr)}
    if critic is not None:
        optimizers["value"] = torch.optim.SGD([*critic.trainable().values()], lr=lr)
    options = {"max_grad_norm": 0.0} | options
    return Learner(policy, objective, reference, optimizers, critic=critic, **options)


def batch_for(name: str) -> Batch:
    batch = make_batch(OBJECTIVES[name][1], contexts=5, mismatched=name == "kto")
    if name == "pmpo-bc":  # needs unlabelled rows
        sign = batch.feedback.sign.clone()
        sign[1], sign[3, 0] = 0, 0
        return Batch(batch.context, batch.action, Labels(sign, batch.present))
    if name in ("rebel-old", "dpo-old", "ppo", "grpo"):
        generator = torch.Generator().manual_seed(1)
        old = -torch.rand(batch.action.mask.shape, generator=generator) * 3 * batch.action.mask
        return replace(batch, old_log_prob=old)
    return batch


def stepped(learner: Learner, batch: Batch) -> tuple[dict[str, Tensor], dict[str, float]]:
    """How far one update moves each parameter, and its figures."""
    modules = [module for module in (learner.policy, learner.critic) if module is not None]
    before = [{name: part.detach().clone() for name, part in module.named_parameters()} for module in modules]
    figures = learner.update(batch, monitor=True)
    moves = {
        f"{place}.{name}": part.detach() - before[place][name]
        for place, module in enumerate(modules)
        for name, part in module.named_parameters()
    }
    return moves, figures


@pytest.mark.parametrize("name", list(OBJECTIVES))
def test_an_update_does_not_depend_on_micro_batches(name: str) -> None:
    batch = batch_for(name)
    whole, figures = stepped(learner_for(name), batch)
    assert sum(bool(part.abs().max() > 1e-5) for part in whole.values()) > 5
    if name == "kto":
        assert figures["kl_baseline"] > 0.05, "z0 is to matter here"
    sizes: list[dict[str, int]] = [{"micro_batch_size": size} for size in (1, 2, 3, 5, 9)]
    sizes += [{"micro_batch_tokens": tokens} for tokens in (1, 30, 10_000)]
    for size in [*sizes, {"micro_batch_size": 2, "micro_batch_tokens": 40}]:
        parts, others = stepped(learner_for(name, **size), batch)
        for key, part in whole.items():
            assert_close(parts[key], part, 2e-5)
        for key in ("loss", "grad_norm", "kl_ref_policy_on_rows", "accepted_drift", "rejected_drift"):
            assert others[key] == pytest.approx(figures[key], rel=1e-4, abs=1e-5), key
        assert others.keys() == figures.keys()


@pytest.mark.parametrize("name", ["pmpo", "pmpo-bc", "dro-token", "dro-prompt"])
def test_rows_are_not_coupled(name: str) -> None:
    """The gradient of all rows is the mean of those of any batches they come in, weighed by their actions: shuffling,
    streaming and batches of one change nothing. PMPO's class fractions are the data set's for that."""
    batch = batch_for(name)
    number = int(batch.present.sum())

    def learner() -> Learner:
        made = learner_for(name)
        if isinstance(made.objective, PMPO):
            sign = batch.feedback.sign[batch.present]
            shares = {
                "accepted_fraction": int((sign > 0).sum()) / number, "rejected_fraction": int((sign < 0).sum()) / number
            }  # fmt: skip
            made.objective = replace(made.objective, **shares)
        return made

    whole, _ = stepped(learner(), batch)
    assert max(float(part.abs().max()) for part in whole.values()) > 1e-3
    for cuts in ([0, 2, 3, 5], [0, 1, 2, 3, 4, 5], [0, 4, 5]):
        total = {key: torch.zeros_like(part) for key, part in whole.items()}
        for start, stop in itertools.pairwise(cuts):
            part = batch.select(slice(start, stop))
            moves, _ = stepped(learner(), part)
            for key, move in moves.items():
                total[key] += move * int(part.present.sum()) / number
        for key, move in whole.items():
            assert_close(total[key], move, 2e-5)


@pytest.mark.parametrize("kind", ["t5", "gpt2"])
@pytest.mark.parametrize("name", ["pmpo", "kto", "dpo", "dro-token"])
def test_an_update_of_other_models_and_of_adapters(name: str, kind: str) -> None:
    batch = batch_for(name)
    for lora in (False, True):
        whole, _ = stepped(learner_for(name, kind, lora=lora, lr=0.01), batch)
        parts, _ = stepped(learner_for(name, kind, lora=lora, lr=0.01, micro_batch_size=1), batch)
        assert any(part.abs().max() > 1e-6 for part in whole.values())
        for key, part in whole.items():
            assert_close(parts[key], part, 2e-5)


@pytest.mark.parametrize("name", list(OBJECTIVES))
def test_an_update_equals_the_obvious_one(name: str) -> None:
    """Autograd straight through policy, critic and objective, each term's gradient to its own parameters."""
    batch = batch_for(name)
    moves, figures = stepped(learner_for(name, lr=1.0), batch)
    learner = learner_for(name, lr=1.0)
    objective, needs = learner.objective, learner.objective.needs | {"ref_log_prob"}
    frozen = None
    if "mismatched" in objective.frozen_needs:
        other = helpers.as_batch(batch.context, batch.mismatched)
        frozen = learner.policy.likelihood(other, learner.reference, needs).detach()
    elif objective.frozen_needs == {"value"}:
        assert learner.critic is not None
        with torch.no_grad():
            frozen = Likelihood(torch.zeros(batch.action.mask.shape), value=learner.critic.value(batch))
    elif objective.frozen_needs:
        frozen = learner.policy.likelihood(batch, learner.reference, needs).detach()
    target = objective.prepare(batch, frozen)
    measured = learner.policy.likelihood(batch, learner.reference, needs - {"value"})
    value = learner.critic.value(batch) if learner.critic is not None else None
    likelihood = Likelihood(
        measured.log_prob, ref_log_prob=measured.ref_log_prob, ref_kl=measured.ref_kl, value=value, mask=measured.mask
    )
    loss = objective(likelihood, target).total(target.size)
    assert figures["loss"] == pytest.approx(float(loss.detach()), rel=1e-5)
    loss.backward()
    for place, module in enumerate((learner.policy, learner.critic)):
        for key, part in module.named_parameters() if module is not None else ():
            slope = torch.zeros_like(part) if part.grad is None else part.grad
            assert_close(moves[f"{place}.{key}"], -slope, 2e-4)


def weights(learner: Learner) -> Tensor:
    return torch.cat([part.detach().flatten() for part in learner.policy.parameters()])


@pytest.mark.parametrize("name", ["rloo", "rebel-old", "copg"])
def test_minibatches_and_epochs_are_steps_of_their_own(name: str) -> None:
    """Targets of these are made within a context: so steps on parts of a batch are updates on those parts."""
    batch = batch_for(name)
    lr = 1e-3 if name == "rebel-old" else 0.1
    ours, theirs = learner_for(name, lr=lr), learner_for(name, lr=lr)
    ours.update(batch, num_epochs=2, minibatch_size=2)
    for _ in range(2):
        for rows in (slice(0, 2), slice(2, 4), slice(4, 5)):
            if name != "rebel-old" or len(theirs.objective.prepare(batch.select(rows), None).pairs.gap):
                theirs.update(batch.select(rows))
            else:
                theirs.step += 1
    assert ours.step == theirs.step == 6
    torch.testing.assert_close(weights(ours), weights(theirs), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(weights(ours), weights(learner_for(name)), atol=1e-3)


def test_a_target_is_of_the_whole_batch_also_for_a_part_of_it() -> None:
    """REINFORCE's baseline: a step on two contexts of five is not an update on the two alone."""
    batch = batch_for("reinforce")
    ours, theirs = learner_for("reinforce"), learner_for("reinforce")
    ours.update(batch, minibatch_size=2)
    for rows in (slice(0, 2), slice(2, 4), slice(4, 5)):
        theirs.update(batch.select(rows))
    assert not torch.allclose(weights(ours), weights(theirs), atol=1e-4)
    # By hand: the first step alone.
    part, first = learner_for("reinforce"), slice(0, 2)
    target = part.objective.prepare(batch, None)
    advantage, log_prob = (
        target.advantage[first],
        part.policy.likelihood(batch.select(first), None, frozenset({"log_prob"})).total().log_prob,
    )
    (-(advantage * log_prob).sum() / batch.present[first].sum()).backward()
    expected = [part.grad for part in part.policy.parameters()]
    again = learner_for("reinforce", lr=1.0)
    before = [piece.detach().clone() for piece in again.policy.parameters()]
    again._step(batch.select(first), target.minibatch(first), None)
    for start, piece, grad in zip(before, again.policy.parameters(), expected, strict=True):
        torch.testing.assert_close(start - piece.detach(), grad, rtol=1e-3, atol=1e-5)


def test_a_mean_over_steps_is_one_in_a_minibatch_too() -> None:
    """PPO: a part's size is its own number of steps, not its share of the actions."""
    batch = batch_for("ppo")
    learner = learner_for("ppo")
    with torch.no_grad():
        frozen = Likelihood(torch.zeros(batch.action.mask.shape), value=learner.critic.value(batch))
    target = learner.objective.prepare(batch, frozen)
    sizes = [target.minibatch(slice(place, place + 1)).size for place in range(5)]
    own = (batch.action.mask & batch.present[..., None]).sum((1, 2))
    assert sizes == [max(float(count), 1.0) for count in own] and target.size == float(own.sum())
    assert len(set(sizes)) > 1


def test_float64_updates_agree_to_twelve_digits() -> None:
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(6, 1, 4, generator=generator)
    actions = torch.randint(0, 4, (6, 3), generator=generator).tolist()
    present = torch.ones(6, 3, dtype=torch.bool)
    present[2, 1:] = False
    for objective, kind in (
        (PMPO(), Labels), (Supervised(), Labels), (KTO(baseline="none"), Labels), (DPO(beta=0.5), Preferences),
        (IPO(), Preferences), (REBEL(), Rewards), (DRO(value="batch-mean"), Rewards),
        (DRO(value="prompt-mean"), Rewards), (DRO(), Rewards),
    ):  # fmt: skip
        batch = table_batch(helpers.feedback_of(kind, present), actions)
        found = []
        for size in (0, 1, 2, 4):
            policy = Table(start)
            reference = FrozenCopy(policy)
            helpers.shake(policy, size=0.5)
            critic = BatchValue().double() if "value" in objective.needs else None
            learner = table_learner(policy, objective, reference, lr=0.3, critic=critic, micro_batch_size=size)
            learner.update(batch)
            found.append((policy.logits.detach(), None if critic is None else critic.constant.detach()))
        for logits, constant in found[1:]:
            assert_close(logits, found[0][0], 1e-12)
            if constant is not None:
                assert_close(constant, found[0][1], 1e-12)


def table_learner(
    policy: Table, objective: Any, reference: Any = None, *, lr: float = 1.0, critic: Any = None, **options: Any
) -> Learner:
    reference = FrozenCopy(policy) if reference is None else reference
    optimizers: dict[str, torch.optim.Optimizer] = {"policy": torch.optim.SGD(policy.parameters(), lr=lr)}
    if critic is not None:
        optimizers["value"] = torch.optim.SGD(critic.parameters(), lr=lr)
    options = {"max_grad_norm": 0.0} | options
    return Learner(policy, objective, reference, optimizers, critic=critic, **options)


ONE = torch.ones(1, 2, dtype=torch.bool)
EVEN = torch.zeros(1, 1, 2)
"""One context, two equally likely actions: d log pi(0) = (1/2, -1/2), d log pi(1) = (-1/2, 1/2), and the gap of their
log-probabilities has the gradient (1, -1)."""


@pytest.mark.parametrize(
    ("objective", "feedback", "loss", "move"),
    [
        # -log pi(0), the only accepted action being half of the rows and the mean over two rows.
        (Supervised(), Labels(torch.tensor([[1, -1]]), ONE), 0.6931471805599453, 0.5),
        # -(log pi(0) - log pi(1)) / 2: class means of one row each, alpha = 1/2; the KL is 0 and flat at the start.
        (PMPO(alpha=0.5, beta=7.0), Labels(torch.tensor([[1, -1]]), ONE), 0.0, 0.5),
        # lambda - v = sigmoid(-beta ratio) and sigmoid(beta ratio), mean of two: slopes -beta/4 and +beta/4, halved.
        (KTO(beta=0.4, baseline="none"), Labels(torch.tensor([[1, -1]]), ONE), 0.5, 0.05),
        # -log sigmoid(beta h): slope -beta / 2.
        (
            DPO(beta=0.2),
            Preferences(torch.tensor([[[0.5, 1.0], [0.0, 0.5]]]), ~torch.eye(2, dtype=torch.bool)[None], ONE),
            0.6931471805599453,
            0.1,
        ),
        # (h - 1 / (2 beta))^2: slope -1 / beta.
        (
            IPO(beta=4.0),
            Preferences(torch.tensor([[[0.5, 1.0], [0.0, 0.5]]]), ~torch.eye(2, dtype=torch.bool)[None], ONE),
            0.015625,
            0.25,
        ),
        # (h / eta - gap)^2 with gap 0.25: slope -2 gap / eta.
        (REBEL(eta=2.0), Rewards(torch.tensor([[0.5, 0.25]]), ONE), 0.0625, 0.25),
        # V = mean reward = 1/2: delta = (1/2, -1/2), loss delta^2 / (2 tau), slope -delta d log pi, mean of two.
        (DRO(tau=0.5, value="batch-mean"), Rewards(torch.tensor([[1.0, 0.0]]), ONE), 0.25, 0.25),
    ],
)  # fmt: skip
def test_one_sgd_step_by_hand(objective: Any, feedback: Any, loss: float, move: float) -> None:
    policy = Table(EVEN)
    figures = table_learner(policy, objective).update(table_batch(feedback, [[0, 1]]))
    assert figures["loss"] == pytest.approx(loss, abs=1e-9)
    assert_close(policy.logits.detach()[0, 0], torch.tensor([move, -move]), 1e-7)
    assert figures["grad_norm"] == pytest.approx(move * 2**0.5, rel=1e-6)


def test_one_sgd_step_of_policy_and_value_by_hand() -> None:
    """V = 0, rewards (1, 0), tau = 2: the policy moves by delta d log pi / 2 = (1/4, -1/4), V by mean delta = 1/2."""
    policy, critic = Table(EVEN), BatchValue()
    learner = table_learner(policy, DRO(tau=2.0), critic=critic)
    figures = learner.update(table_batch(Rewards(torch.tensor([[1.0, 0.0]]), ONE), [[0, 1]]))
    assert_close(policy.logits.detach()[0, 0], torch.tensor([0.25, -0.25]), 1e-7)
    assert float(critic.constant.detach()) == pytest.approx(0.5)
    # delta^2 / 2 + delta^2 / (2 tau), mean over two actions
    assert figures["loss"] == pytest.approx((0.5 + 0.25) / 2)
    assert figures["value_grad_norm"] == pytest.approx(0.5)


def test_policy_and_value_have_rates_of_their_own() -> None:
    policy, critic = Table(EVEN), BatchValue()
    learner = table_learner(policy, DRO(tau=2.0), critic=critic, warmup_steps=2)
    learner.optimizers["value"].param_groups[0]["lr"] = 0.2
    learner = Learner(
        policy, learner.objective, learner.reference, learner.optimizers, critic=critic, warmup_steps=2,
        max_grad_norm=0.0,
    )  # fmt: skip
    learner.update(table_batch(Rewards(torch.tensor([[1.0, 0.0]]), ONE), [[0, 1]]))
    assert_close(policy.logits.detach()[0, 0], torch.tensor([0.125, -0.125]), 1e-7)
    assert float(critic.constant.detach()) == pytest.approx(0.5 * 0.1)


def rates(learner: Learner, steps: int) -> list[float]:
    found = []
    batch = table_batch(Labels(torch.tensor([[1, -1]]), ONE), [[0, 1]])
    for _ in range(steps):
        learner.update(batch)
        found.append(learner.optimizers["policy"].param_groups[0]["lr"])
    return found


def test_warm_up_and_decay() -> None:
    fresh = table_learner(Table(EVEN), Supervised(), lr=0.8, warmup_steps=4, total_steps=8)
    assert rates(fresh, 10) == pytest.approx([0.2, 0.4, 0.6, 0.8, 0.8, 0.6, 0.4, 0.2, 0.0, 0.0])
    assert fresh.step == 10
    assert rates(table_learner(Table(EVEN), Supervised(), lr=0.8, warmup_steps=2), 4) == pytest.approx(
        [0.4, 0.8, 0.8, 0.8]
    )
    assert rates(table_learner(Table(EVEN), Supervised(), lr=0.8, total_steps=4), 5) == pytest.approx(
        [0.8, 0.6, 0.4, 0.2, 0.0]
    )
    assert rates(table_learner(Table(EVEN), Supervised(), lr=0.8), 3) == pytest.approx([0.8] * 3)


def test_gradients_are_clipped_policy_and_critic_apart() -> None:
    batch = table_batch(Rewards(torch.tensor([[1.0, 0.0]]), ONE), [[0, 1]])
    policy, critic = Table(EVEN), BatchValue()
    figures = table_learner(policy, DRO(tau=2.0), critic=critic, max_grad_norm=0.1).update(batch)
    assert figures["grad_norm"] == pytest.approx(0.25 * 2**0.5) and figures["value_grad_norm"] == pytest.approx(0.5)
    assert policy.logits.detach().norm() == pytest.approx(0.1, rel=1e-4)
    assert float(critic.constant.detach()) == pytest.approx(0.1, rel=1e-4)
    # A gradient within the limit is left alone, and 0 clips nothing.
    for limit in (10.0, 0.0):
        policy = Table(EVEN)
        table_learner(policy, DRO(tau=2.0), critic=BatchValue(), max_grad_norm=limit).update(batch)
        assert_close(policy.logits.detach()[0, 0], torch.tensor([0.25, -0.25]), 1e-7)


def test_a_loss_that_is_no_number_changes_nothing() -> None:
    learner = learner_for("dro-batch-mean", lr=1.0)
    learner.optimizers["policy"] = torch.optim.AdamW([*learner.policy.trainable().values()], lr=1e-2)
    good = make_batch(Rewards)
    learner.update(good)
    before = {name: part.detach().clone() for name, part in learner.policy.named_parameters()}
    state = copy.deepcopy(learner.optimizers["policy"].state_dict())
    for wrong in (float("nan"), float("inf")):
        bad = Batch(good.context, good.action, Rewards(good.feedback.value.clone(), good.present))
        bad.feedback.value[0, 0] = wrong
        with pytest.raises(FloatingPointError, match="step 2"):
            learner.update(bad)
        assert learner.step == 1
        assert all(torch.equal(part, before[name]) for name, part in learner.policy.named_parameters())
        assert all(part.grad is None for part in learner.policy.parameters())
        after = learner.optimizers["policy"].state_dict()["state"]
        for place, old in state["state"].items():
            assert all(torch.equal(after[place][key], part) for key, part in old.items())
    # And the run can go on.
    assert learner.update(good)["loss"] > 0 and learner.step == 2


def test_a_gradient_that_is_no_number_changes_nothing() -> None:
    """The loss can be finite where its gradient is not."""

    class Broken(Table):
        def backward(self, batch: Batch, reference: Any, likelihood: Likelihood, grads: Any) -> None:
            super().backward(batch, reference, likelihood, grads)
            assert self.logits.grad is not None
            self.logits.grad[0, 0, 0] = float("nan")

    policy, critic = Broken(EVEN), BatchValue()
    learner = table_learner(policy, DRO(), critic=critic, max_grad_norm=1.0)
    with pytest.raises(FloatingPointError, match="grad_norm"):
        learner.update(table_batch(Rewards(torch.tensor([[1.0, 0.0]]), ONE), [[0, 1]]))
    assert not policy.logits.detach().any() and not critic.constant.detach().any() and learner.step == 0
    assert policy.logits.grad is None and critic.constant.grad is None


@pytest.mark.parametrize(
    ("name", "beat"), [("pmpo", "likelihood_and_backward"), ("kto", "likelihood"), ("kto", "backward")]
)
def test_a_full_memory_is_one_clear_line(name: str, beat: str) -> None:
    """The second micro-batch does not fit: what the first left in `.grad` is dropped."""
    learner, batch = learner_for(name, lr=1.0, micro_batch_size=2), batch_for(name)
    real, calls = getattr(learner.policy, beat), 0

    def full(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2 GiB")
        return real(*args, **kwargs)

    setattr(learner.policy, beat, full)
    before = [part.detach().clone() for part in learner.policy.parameters()]
    with pytest.raises(UserError) as caught:
        learner.update(batch)
    message = str(caught.value)
    for piece in ("step 1", "`micro_batch_size=1`", "`gradient_checkpointing=True`", "`lora_rank=16`", "`dtype="):
        assert piece in message
    assert "--" not in message
    assert "\n" not in message and isinstance(caught.value.__cause__, torch.OutOfMemoryError)
    assert learner.step == 0 and all(part.grad is None for part in learner.policy.parameters())
    assert all(torch.equal(part, old) for part, old in zip(learner.policy.parameters(), before, strict=True))
    # A retry is the update of a fresh learner.
    moves, figures = stepped(learner, batch)
    expected, others = stepped(learner_for(name, lr=1.0, micro_batch_size=2), batch)
    assert figures == others and all(torch.equal(moves[name], part) for name, part in expected.items())


@pytest.mark.parametrize(
    ("name", "wrong"),
    [("max_grad_norm", -1.0), ("max_grad_norm", float("nan")), ("warmup_steps", -1), ("micro_batch_size", -1),
     ("micro_batch_tokens", -1)],
)  # fmt: skip
def test_what_may_not_be_negative(name: str, wrong: float) -> None:
    with pytest.raises(ValueError, match=f"`{name}` is {wrong}, and must be at least 0"):
        table_learner(Table(EVEN), Supervised(), **{name: wrong})
    table_learner(Table(EVEN), Supervised(), **{name: type(wrong)(0)})


def test_micro_batches_stay_within_their_tokens() -> None:
    """A context alone may be longer; every context is in one piece, in order."""
    batch = make_batch(Labels, contexts=6)
    tokens = count_tokens(batch)
    assert tokens == [
        sum(int(row.sum()) + int(own.sum()) for row in mask if row.any())
        for mask, own in zip(batch.action.mask, batch.context.mask, strict=True)
    ]
    for budget in (1, max(tokens), 2 * max(tokens), sum(tokens)):
        learner = learner_for("pmpo", micro_batch_tokens=budget)
        pieces = [list(range(6))[rows] for rows in learner._micro_batches(batch)]
        assert [place for piece in pieces for place in piece] == list(range(6))
        assert all(len(piece) == 1 or sum(tokens[place] for place in piece) <= budget for piece in pieces)
    assert len(pieces) == 1
    learner = learner_for("pmpo", micro_batch_tokens=sum(tokens), micro_batch_size=4)
    assert [list(range(6))[rows] for rows in learner._micro_batches(batch)] == [[0, 1, 2, 3], [4, 5]]


@pytest.mark.parametrize(("name", "wrong"), [("pmpo", Preferences), ("dpo", Labels), ("kto", Rewards)])
def test_the_wrong_feedback_is_refused(name: str, wrong: type) -> None:
    learner = learner_for(name)
    with pytest.raises(ValueError, match=f"{type(learner.objective).__name__} accepts .*got {wrong.__name__}"):
        learner.update(make_batch(wrong))
    assert learner.step == 0


def test_what_an_objective_needs_is_asked_for_at_once() -> None:
    policy = helpers.policy("llama")
    optimizers = {"policy": torch.optim.SGD(policy.parameters(), lr=1.0)}
    for objective in (DPO(), KTO(), PMPO(), DRO(value="batch-mean")):
        with pytest.raises(ValueError, match="reference"):
            Learner(policy, objective, None, optimizers)
    with pytest.raises(ValueError, match="critic"):
        Learner(policy, DRO(), FrozenCopy(policy), optimizers)
    Learner(policy, Supervised(), None, optimizers)
    with pytest.raises(ValueError, match="mismatched"):
        Learner(policy, KTO(), FrozenCopy(policy), optimizers).update(make_batch(Labels))


def test_without_a_reference_nothing_is_monitored() -> None:
    policy = helpers.policy("llama")
    learner = Learner(policy, Supervised(), None, {"policy": torch.optim.SGD(policy.parameters(), lr=0.1)})
    figures = learner.update(make_batch(Labels), monitor=True)
    assert "accepted_drift" not in figures and figures["loss"] > 0


@pytest.mark.parametrize("kind", [Labels, Rewards, Preferences])
def test_the_monitored_figures(kind: type) -> None:
    name = {Labels: "kto-no-baseline", Rewards: "dro-batch-mean", Preferences: "dpo"}[kind]
    learner, batch = learner_for(name, lr=0.0), make_batch(kind)
    needs = frozenset({"log_prob", "ref_log_prob", "ref_kl"})
    total = learner.policy.likelihood(batch, learner.reference, needs).detach().total()
    drift, sign = total.log_prob - total.ref_log_prob, signs(batch.feedback)
    figures = learner.update(batch, monitor=True)
    assert figures["kl_ref_policy_on_rows"] == pytest.approx(float(total.ref_kl[batch.present].mean()), rel=1e-4)
    assert figures["accepted_drift"] == pytest.approx(float(drift[sign > 0].mean()), rel=1e-4)
    assert figures["rejected_drift"] == pytest.approx(float(drift[sign < 0].mean()), rel=1e-4)
    assert "accepted_drift" not in learner.update(batch)


def test_a_side_without_members_has_no_figure() -> None:
    learner = learner_for("kto-no-baseline", lr=0.0)
    batch = make_batch(Labels)
    rejected = Batch(batch.context, batch.action, Labels(-batch.present.long(), batch.present))
    figures = learner.update(rejected, monitor=True)
    assert "accepted_drift" not in figures and figures["rejected_drift"] != 0


def test_the_reference_sees_each_step() -> None:
    policy = Table(EVEN)
    reference = FrozenCopy(policy, refresh_every=2)
    learner = table_learner(policy, Supervised(), reference)
    for step in (1, 2):
        learner.update(table_batch(Labels(torch.tensor([[1, -1]]), ONE), [[0, 1]]))
        assert torch.equal(reference.copy.logits, policy.logits) == (step == 2)


def test_constants_get_no_gradient_even_where_an_objective_would_give_one() -> None:
    """ref_log_prob and the value in the policy's term are constant: the learner differentiates leaves alone."""

    class Careless(DPO):
        def __call__(self, likelihood: Likelihood, target: Any) -> Loss:
            assert likelihood.ref_log_prob is not None and not likelihood.ref_log_prob.requires_grad
            assert likelihood.log_prob.is_leaf and likelihood.log_prob.requires_grad
            return super().__call__(likelihood, target)

    policy = helpers.policy("llama")
    learner = Learner(
        policy, Careless(), FrozenCopy(policy), {"policy": torch.optim.SGD(policy.parameters(), lr=0.1)}
    )  # fmt: skip
    assert learner.update(make_batch(Preferences))["loss"] == pytest.approx(0.6931, abs=1e-3)


def test_make_optimizer() -> None:
    policy = helpers.policy("llama", lora=True)
    made = make_optimizer(policy, kind="adamw", lr=0.01, weight_decay=0.1)
    assert [id(part) for part in made.param_groups[0]["params"]] == [id(part) for part in policy.trainable().values()]
    assert made.param_groups[0]["lr"] == 0.01 and made.param_groups[0]["weight_decay"] == 0.1
    other = make_optimizer(policy, kind="adafactor", lr=0.01, weight_decay=0.0)
    assert isinstance(other, torch.optim.Adafactor) and other.param_groups[0]["beta2_decay"] == -0.8
    with pytest.raises(ValueError, match="must be 'adamw' or 'adafactor'"):
        make_optimizer(policy, kind="sgd", lr=0.01, weight_decay=0.0)
    with pytest.raises(ValueError, match="nothing to train"):
        make_optimizer(policy.frozen_copy(), kind="adamw", lr=0.01, weight_decay=0.0)


def test_adafactor_moves_weights_that_start_at_zero_as_if_they_had_a_usual_size() -> None:
    lr, features = 0.01, 16
    head = torch.nn.Linear(features, 1)
    torch.nn.init.zeros_(head.weight)
    torch.nn.init.zeros_(head.bias)
    optimizer = make_optimizer(head, kind="adafactor", lr=lr, weight_decay=0.0)
    head(torch.ones(4, features)).sum().backward()
    optimizer.step()
    # The first step of a constant gradient is the rate times the size.
    assert head.weight.abs().mean().item() == pytest.approx(lr * features**-0.5, rel=1e-3)
    assert head.bias.abs().item() == pytest.approx(lr, rel=1e-3)
    # What has a size of its own is stepped relative to it, beside the rest.
    policy = helpers.policy("llama", lora=True)
    mixed = make_optimizer(policy, kind="adafactor", lr=lr, weight_decay=0.0)
    names = {id(part): name for name, part in policy.trainable().items()}
    kept, *others = [{names[id(part)] for part in group["params"]} for group in mixed.param_groups]
    assert kept == {name for name in names.values() if "lora_A" in name}
    assert set().union(*others) == {name for name in names.values() if "lora_B" in name}


def dual_learner(*, dual_lr: float = 0.5, **options: Any) -> tuple[Learner, Batch]:
    """MPO on two equally likely actions worth 1 and 0; the policy has not moved, so its KL is 0 and flat."""
    policy = Table(EVEN)
    objective = MPO(decoupled=False, epsilon=0.1, epsilon_mean=0.02, init_temperature=0.5, init_multiplier=2.0)
    optimizers: dict[str, torch.optim.Optimizer] = {
        "policy": torch.optim.SGD(policy.parameters(), lr=1.0),
        "dual": torch.optim.SGD(objective.state().parameters(), lr=dual_lr),
    }
    learner = Learner(policy, objective, FrozenCopy(policy), optimizers, **({"max_grad_norm": 0.0} | options))
    return learner, table_batch(Rewards(torch.tensor([[1.0, 0.0]]), ONE), [[0, 1]])


def raw_duals(learner: Learner) -> dict[str, Tensor]:
    state = learner.objective.state()
    assert state is not None
    return {name: part.detach().clone() for name, part in state.raw.items()}


def test_one_sgd_step_of_policy_and_duals_by_hand() -> None:
    """q = (s, 1 - s), s = sigmoid(2): the policy moves by q - 1/2, the temperature by KL(q || uniform) - epsilon and
    the multiplier by KL - epsilon_mean, each times the slope of its softplus."""
    learner, batch = dual_learner()
    before = raw_duals(learner)
    figures = learner.update(batch)
    s = torch.sigmoid(torch.tensor(2.0, dtype=torch.float64))
    assert_close(learner.policy.logits.detach()[0, 0], torch.stack([s - 0.5, 0.5 - s]), 1e-6)
    kl = (s * (2 * s).log() + (1 - s) * (2 - 2 * s).log()).item()
    slopes = {"temperature": 0.1 - kl, "mean": 0.02}
    after, norm = raw_duals(learner), 0.0
    for name, slope in slopes.items():
        steep = slope * torch.sigmoid(before[name]).item()
        assert (after[name] - before[name]).item() == pytest.approx(-0.5 * steep, rel=1e-4), name
        norm += steep**2
    assert figures["dual_grad_norm"] == pytest.approx(norm**0.5, rel=1e-4)
    assert torch.equal(after["penalty"], before["penalty"]), "tokens have no bounds to lie outside of"
    # eta (epsilon + log mean e^{r / eta}) + lambda (epsilon_mean - 0) for the duals, and log 2 for the policy.
    dual = 0.5 * (0.1 + torch.tensor([2.0, 0.0]).exp().mean().log().item()) + 2.0 * 0.02
    assert figures["loss"] == pytest.approx(dual + torch.tensor(2.0).log().item(), rel=1e-5)


def test_duals_have_a_clipping_and_a_rate_of_their_own() -> None:
    free, batch = dual_learner()
    clipped, _ = dual_learner(max_grad_norm=0.05, warmup_steps=2)
    before = raw_duals(free)
    wanted = free.update(batch)
    figures = clipped.update(batch)
    assert figures["dual_grad_norm"] == pytest.approx(wanted["dual_grad_norm"]) and wanted["dual_grad_norm"] > 0.06
    whole, half = raw_duals(free), raw_duals(clipped)
    for name in ("temperature", "mean"):
        # Half the rate, and a gradient that was cut to 0.05.
        share = 0.5 * 0.05 / wanted["dual_grad_norm"]
        assert_close(half[name] - before[name], share * (whole[name] - before[name]), 1e-5)
    assert clipped.policy.logits.detach().norm() == pytest.approx(0.5 * 0.05, rel=1e-3)


def test_duals_see_the_whole_collected_batch() -> None:
    generator = torch.Generator().manual_seed(0)
    start, actions = torch.randn(5, 1, 4, generator=generator), torch.randint(0, 4, (5, 3), generator=generator)
    present = torch.ones(5, 3, dtype=torch.bool)
    present[1, 1:] = False
    present[3] = False
    found = []
    for size in (0, 1, 2):
        policy = Table(start)
        reference = FrozenCopy(policy)
        helpers.shake(policy, size=0.5)
        objective = MPO(decoupled=False)
        optimizers: dict[str, torch.optim.Optimizer] = {
            "policy": torch.optim.SGD(policy.parameters(), lr=0.3),
            "dual": torch.optim.SGD(objective.state().parameters(), lr=10.0),
        }
        learner = Learner(policy, objective, reference, optimizers, max_grad_norm=0.0, micro_batch_size=size)
        learner.update(table_batch(helpers.rewards_of(present), actions.tolist()))
        found.append((policy.logits.detach(), raw_duals(learner)))
    start_duals = MPO(decoupled=False).state().raw
    for logits, duals in found[1:]:
        assert_close(logits, found[0][0], 1e-6)
        for name in ("temperature", "mean"):
            assert_close(duals[name], found[0][1][name], 1e-6)
            assert (duals[name] - start_duals[name].detach()).abs() > 1e-3


def test_duals_without_an_optimizer_are_refused() -> None:
    policy = Table(EVEN)
    with pytest.raises(ValueError, match="`optimizers` must have one called 'dual'"):
        Learner(
            policy, MPO(decoupled=False), FrozenCopy(policy), {"policy": torch.optim.SGD(policy.parameters(), lr=0.1)}
        )
    with pytest.raises(ValueError, match="MPO needs a reference"):
        Learner(policy, MPO(decoupled=False), None, {"policy": torch.optim.SGD(policy.parameters(), lr=0.1)})


def test_an_update_that_is_no_number_leaves_the_duals_alone() -> None:
    learner, batch = dual_learner()
    before = raw_duals(learner)
    bad = table_batch(Rewards(torch.tensor([[float("nan"), 0.0]]), ONE), [[0, 1]])
    with pytest.raises(FloatingPointError):
        learner.update(bad)
    assert all(torch.equal(part, before[name]) for name, part in raw_duals(learner).items())
    fresh, _ = dual_learner()
    assert learner.update(batch)["loss"] == fresh.update(batch)["loss"]
    assert all(torch.equal(part, raw_duals(fresh)[name]) for name, part in raw_duals(learner).items())
