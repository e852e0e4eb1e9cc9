"""An environment as a source: what is lived, the critic's targets by hand, and going on to the bit."""

from __future__ import annotations

import copy
import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import helpers
import worlds
from helpers import assert_close
from valence.critics import QNetwork
from valence.data.replay import Replay
from valence.feedback.labelling import label_top_k
from valence.policies.categorical import CategoricalPolicy
from valence.policies.gaussian import GaussianPolicy
from valence.sources.control import SPEED, ControlSettings, ControlSource
from valence.sources.environments import Crew, make_environment
from valence.training.reference import FrozenCopy
from valence.types import Labels, Rewards

GAMMA = 0.9


def source(
    *, environments: int = 1, steps: int = 1, name: str = "worlds:Point-v0", policy: Any = None, seed: int = 0,
    label: Any = None, hidden: int = 8, **options: Any,
) -> tuple[ControlSource, Any]:  # fmt: skip
    """A small agent's source, and its policy."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        policy = policy or GaussianPolicy(1, 1, (8,))
        critic = QNetwork(1, 1, (hidden,))
    settings = ControlSettings(
        **({"batch_size": 16, "num_actions": 3, "warmup_steps": 10, "target_every": 5} | options)
    )
    crew = Crew(lambda: make_environment(name), environments, seed)
    replay = Replay(1000, 1, 1, num_environments=environments, steps=steps, discount=GAMMA)
    return ControlSource(crew, critic, FrozenCopy(policy), replay, settings, label=label, seed=seed), policy


def filled() -> tuple[ControlSource, Any]:
    """A source whose replay holds two transitions that are known, and that has lived enough already.

    From 1 with reward 2 on to 0.5; from -1 with reward 1 to an episode's true end.
    """
    made, policy = source()
    add = made.replay.add
    add(0, np.array([1.0]), np.array([0.2]), 2.0, np.array([0.5]), terminated=False, truncated=False)
    add(0, np.array([-1.0]), np.array([-0.2]), 1.0, np.array([9.0]), terminated=True, truncated=False)
    made.env_steps = 10
    return made, policy


@torch.no_grad()
def constant(critic: QNetwork, first: float, second: float) -> None:
    """Q is one number everywhere, for each head its own."""
    for part in critic.parameters():
        part.zero_()
    critic.biases[-1][:, 0, 0] = torch.tensor([first, second])


def test_the_critics_target_by_hand() -> None:
    made, policy = filled()
    constant(made.critic, 4.0, 6.0)
    constant(made.target, 5.0, 3.0)
    made.optimizer = torch.optim.SGD(made.critic.parameters(), lr=0.1)
    seen = made.replay.sample(16, copy_of(made.generator)).observation[:, 0]
    batch = made.next(policy)
    assert made.env_steps == 10 and made.num_units == 0
    # The smaller head is worth 3: 2 + 0.9 * 3 where it goes on, and 1 where nothing comes after.
    goal = torch.where(seen > 0, 4.7, 1.0)
    assert 0 < int((seen > 0).sum()) < 16
    loss = (4.0 - goal).square().mean() + (6.0 - goal).square().mean()
    assert made.figures["critic_loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert made.figures["q"] == pytest.approx(3.0)
    # One step of gradient descent on each head's own bias: 2 mean(Q - goal).
    moved = made.critic.biases[-1][:, 0, 0].detach()
    assert_close(moved, torch.tensor([4.0, 6.0]) - 0.2 * (torch.tensor([4.0, 6.0]) - goal.mean()), 1e-5)
    # What the policy improves on: where the transitions led, judged by both heads together.
    assert torch.equal(batch.context[:, 0], torch.where(seen > 0, 0.5, 9.0))
    assert isinstance(batch.feedback, Rewards) and batch.feedback.value.tolist() == [[4.0] * 3] * 16
    assert torch.equal(made.target.biases[-1][:, 0, 0], torch.tensor([5.0, 3.0])), "the target waits"


def copy_of(generator: torch.Generator) -> torch.Generator:
    copied = torch.Generator()
    copied.set_state(generator.get_state())
    return copied


@torch.no_grad()
def test_the_smallest_head_is_of_the_mean_over_the_references_actions() -> None:
    """Against a loop over transitions and actions, with heads that disagree about which action is better."""
    made, policy = source(warmup_steps=30)
    with torch.enable_grad():
        made.next(policy)
    constant(made.target, 0.0, 0.0)
    first, last = made.target.weights
    # The first head prefers the right, the second the left.
    first[:, 1, :2] = torch.tensor([1.0, -1.0])
    last[:, :2, 0] = torch.tensor([[1.0, -1.0], [-1.0, 1.0]])
    made.target.gain.fill_(1.0)
    made.critic.load_state_dict(made.target.state_dict())
    helpers.shake(made.critic, size=0.1)
    before = copy.deepcopy(made.critic)
    made.env_steps, draws = 10**6, copy_of(made.generator)
    with torch.enable_grad():
        batch = made.next(policy)
    loss, crossed, rows = torch.zeros(2), 0, made.replay.sample(16, draws)
    for n in range(16):
        following, actions = batch.context[n : n + 1], batch.action.steps[n, :, 0].clamp(-1, 1)
        assert torch.equal(rows.following[n], following[0])
        each = torch.stack([made.target(following, action[None, None])[:, 0, 0] for action in actions], -1)
        assert_close(batch.feedback.value[n], each.mean(0), 1e-4)
        crossed += bool(each.mean(-1).min() - each.amin(0).mean() > 0.1)
        goal = rows.reward[n] + rows.discount[n] * each.mean(-1).min()
        found = before(rows.observation[n : n + 1], rows.action[n, None, None])[:, 0, 0]
        loss += (found - goal).square() / 16
    assert crossed > 4
    assert made.figures["critic_loss"] == pytest.approx(loss.sum().item(), rel=1e-4)


def test_actions_are_drawn_from_the_reference_and_not_from_the_policy() -> None:
    left = CategoricalPolicy(1, 1, (4,), bins=3)
    with torch.no_grad():
        left.head.bias.copy_(torch.tensor([50.0, 0.0, 0.0]))
    made, policy = source(policy=left)
    with torch.no_grad():
        policy.head.bias.copy_(torch.tensor([0.0, 0.0, 50.0]))
    batch = made.next(policy)
    assert batch.action.steps.shape == (16, 3, 1, 1) and not batch.action.steps.any()
    # What is lived is the policy's: its bin 2 is an action of 1.
    made.next(policy)
    assert made.replay._store["action"][10 : len(made.replay)].tolist() == [[1.0]] * 4


def test_the_warm_up_is_uniform_and_then_the_policy_acts() -> None:
    right = CategoricalPolicy(1, 1, (4,), bins=3)
    with torch.no_grad():
        right.head.bias.copy_(torch.tensor([0.0, 0.0, 50.0]))
    made, policy = source(policy=right, warmup_steps=600)
    made.next(policy)
    random = made.replay._store["action"][:600, 0]
    assert made.env_steps == 600 and bool((random.abs() <= 1).all())
    # Uniform on [-1, 1]: mean 0, deviation 0.577.
    assert abs(random.mean()) < 5 * 0.577 / 600**0.5 and float(random.std()) == pytest.approx(0.577, abs=0.06)


@pytest.mark.parametrize("environments", [1, 3])
@pytest.mark.parametrize("per_update", [0.25, 1.0, 2.5, 4.0])
def test_so_many_steps_are_lived_for_each_update(per_update: float, environments: int) -> None:
    made, policy = source(environments=environments, steps_per_update=per_update)
    for update in range(12):
        before = made.env_steps
        made.next(policy)
        due = 10 + update * per_update
        # As few rounds of all environments as reach what is due.
        assert made.env_steps == environments * math.ceil(due / environments)
        assert made.num_units == made.env_steps - before and made.updates == update + 1
        assert made.figures["env_steps"] == made.env_steps == len(made.replay)


def test_updates_wait_until_there_is_a_transition() -> None:
    made, policy = source(steps=5, warmup_steps=1)
    made.next(policy)
    assert made.env_steps == 5 and len(made.replay) == 1


def test_the_target_follows_every_so_many_updates() -> None:
    made, policy = source(target_every=3)
    for update in range(1, 10):
        made.next(policy)
        same = all(torch.equal(a, b) for a, b in zip(made.critic.parameters(), made.target.parameters(), strict=True))
        assert same is (update % 3 == 0)
    assert not any(part.requires_grad for part in made.target.parameters())


def test_values_become_the_feedback_that_is_asked_for() -> None:
    plain, policy = source(num_actions=4)
    labelled, _ = source(num_actions=4, label=lambda values: label_top_k(values, top=2, bottom=2))
    for _ in range(3):
        values, labels = plain.next(policy).feedback, labelled.next(policy).feedback
        assert isinstance(values, Rewards) and isinstance(labels, Labels) and values.value.std() > 0
        order = values.value.argsort(-1)
        assert torch.equal(labels.sign.gather(-1, order), torch.tensor([[-1, -1, 1, 1]]).expand(16, 4))


def test_returns_of_ended_episodes_are_told() -> None:
    made, policy = source(warmup_steps=45)
    made.next(policy)
    rewards = made.replay._store["reward"][:45]
    assert made.figures["train_return"] == pytest.approx(float(rewards[20:40].sum()), rel=1e-5)
    assert made.crew.finished == []


def test_the_critic_learns_the_values_of_a_known_policy() -> None:
    """A point that a random policy pushes about, discount 0: Q is the next reward, -(x + reach a)^2."""
    made, policy = source(critic_lr=1e-2, batch_size=128, warmup_steps=1000, steps_per_update=0.1, hidden=32)
    made.replay.discount = 0.0
    for _ in range(200):
        made.next(policy)
    x = torch.linspace(-0.8, 0.8, 9)[:, None]
    a = torch.tensor([-0.8, 0.0, 0.8])[None, :, None].expand(9, 3, 1)
    expected = -((x[:, None] + worlds.REACH * a) ** 2)[..., 0]
    assert_close(made.critic(x, a).detach(), expected.expand(2, 9, 3), 0.1)


def tree_equal(ours: Any, theirs: Any) -> bool:
    if isinstance(ours, Tensor):
        return torch.equal(ours, theirs)
    if isinstance(ours, dict):
        return ours.keys() == theirs.keys() and all(tree_equal(ours[key], theirs[key]) for key in ours)
    if isinstance(ours, list | tuple):
        return len(ours) == len(theirs) and all(tree_equal(a, b) for a, b in zip(ours, theirs, strict=True))
    return ours == theirs


@pytest.mark.parametrize("updates", [0, 1, 9])
def test_a_source_that_is_loaded_goes_on_to_the_bit(updates: int) -> None:
    options: dict[str, Any] = {"environments": 2, "steps": 3, "steps_per_update": 2.5}
    ours, policy = source(**options, seed=1)
    for _ in range(updates):
        ours.next(policy)
    kept = copy.deepcopy(ours.state_dict())
    theirs, _ = source(**options, seed=2)
    theirs.next(policy)
    theirs.load_state_dict(kept)
    for _ in range(8):
        first, second = ours.next(policy), theirs.next(policy)
        assert torch.equal(first.context, second.context) and torch.equal(first.action.steps, second.action.steps)
        assert torch.equal(first.feedback.value, second.feedback.value)
        assert ours.figures | {SPEED: 0} == theirs.figures | {SPEED: 0}
    assert tree_equal(ours.state_dict(), theirs.state_dict())
    assert ours.env_steps >= 10 + 2.5 * (updates + 7)


def test_its_state_but_for_tensors_is_json() -> None:
    made, policy = source(environments=2, steps=3)
    made.next(policy)
    written = json.dumps(made.state_dict(), default=lambda value: None if isinstance(value, Tensor) else {}[value])
    assert json.loads(written)["env_steps"] == made.env_steps


def test_a_critic_that_has_run_away_stops_the_run() -> None:
    made, policy = filled()
    constant(made.target, math.nan, math.nan)
    with pytest.raises(FloatingPointError, match="the critic's loss is nan at update 1"):
        made.next(policy)


@pytest.mark.parametrize(
    ("name", "value"),
    [("batch_size", 0), ("num_actions", 1), ("target_every", 0), ("action_repeat", -1), ("steps_per_update", 0.0),
     ("steps_per_update", math.nan), ("critic_lr", math.inf), ("critic_lr", -1.0)],
)  # fmt: skip
def test_settings_out_of_range_are_refused(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"`{name}` is {value}, and must be"):
        ControlSettings(**{name: value})


def test_a_warm_up_is_needed() -> None:
    with pytest.raises(ValueError, match="`warmup_steps` is 0"):
        ControlSettings(warmup_steps=0)
