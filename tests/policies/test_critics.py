"""Value estimates: their shapes, their start, and whose parameters their gradient reaches."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import helpers
from helpers import assert_close, make_batch
from valence.critics import BatchValue, QNetwork, TokenValue, trainable_parameters
from valence.policies import language
from valence.policies.rows import present_rows
from valence.types import Action, Batch, Rewards


def critic_for(policy: Any, *, shared: bool, per: str) -> TokenValue:
    backbone = policy if shared else policy.frozen_copy().requires_grad_(True)
    return TokenValue(backbone, shared=shared, per=per)


@torch.no_grad()
def off_zero(critic: TokenValue) -> TokenValue:
    generator = torch.Generator().manual_seed(3)
    critic.head.weight.copy_(torch.randn(critic.head.weight.shape, generator=generator))
    critic.head.bias.fill_(0.7)
    return critic


@pytest.mark.parametrize("kind", ["llama", "t5", "bart"])
@pytest.mark.parametrize("shared", [False, True])
def test_values_are_zero_at_the_start_and_of_the_right_shape(kind: str, shared: bool) -> None:
    policy, batch = helpers.policy(kind), make_batch(Rewards)
    per_token = critic_for(policy, shared=shared, per="token").value(batch)
    assert per_token.shape == batch.action.mask.shape and not per_token.any() and per_token.requires_grad
    per_prompt = critic_for(policy, shared=shared, per="prompt").value(batch)
    assert per_prompt.shape == (batch.num_contexts, 1) and not per_prompt.any() and per_prompt.requires_grad
    assert BatchValue().value(batch).shape == ()


@pytest.mark.parametrize("kind", ["llama", "t5", "bart"])
def test_a_tokens_value_is_the_head_of_the_state_that_predicts_it(kind: str) -> None:
    policy, batch = helpers.policy(kind), make_batch(Rewards)
    critic = off_zero(critic_for(policy, shared=False, per="token"))
    values = critic.value(batch).detach()
    assert not values[~batch.action.mask].any()
    for n in range(batch.num_contexts):
        for k in range(batch.action.mask.shape[1]):
            length = int(batch.action.mask[n, k].sum())
            if not length:
                continue
            alone = helpers.as_batch(
                batch.context.select(slice(n, n + 1)),
                Action(batch.action.steps[n : n + 1, k : k + 1], batch.action.mask[n : n + 1, k : k + 1]),
            )
            rows = present_rows(alone.context, alone.action)
            with torch.no_grad():
                hidden = policy.action_hidden(rows)[0, :length]
                expected = hidden @ critic.head.weight[0] + 0.7
            assert_close(values[n, k, :length], expected, 1e-4)


@pytest.mark.parametrize("kind", ["llama", "t5", "bart"])
def test_a_tokens_value_does_not_see_the_token(kind: str) -> None:
    """V(x, y_<t): the first step's value is the same for all actions, and a step's value knows those before it."""
    policy = helpers.policy(kind)
    critic = off_zero(critic_for(policy, shared=False, per="token"))
    steps = torch.tensor([[[5, 6, 7], [5, 9, 7], [8, 6, 7]]])
    batch = helpers.as_batch(helpers.context_of([4, 10]), Action(steps, torch.ones_like(steps, dtype=torch.bool)))
    values = critic.value(batch).detach()[0]
    assert_close(values[0, 0], values[1, 0], 1e-5)
    assert_close(values[0, 0], values[2, 0], 1e-5)
    assert_close(values[0, 1], values[1, 1], 1e-5)
    assert (values[0, 1] - values[2, 1]).abs() > 1e-3 and (values[0, 2] - values[1, 2]).abs() > 1e-3


@pytest.mark.parametrize("kind", ["llama", "t5", "bart"])
def test_a_prompts_value_is_the_same_whatever_the_actions(kind: str) -> None:
    policy, batch = helpers.policy(kind), make_batch(Rewards)
    critic = off_zero(critic_for(policy, shared=False, per="prompt"))
    values = critic.value(batch).detach()
    assert len(set(values[:, 0].tolist())) == batch.num_contexts
    steps = batch.action.steps.flip(1) % 7 + 3
    other = Batch(batch.context, Action(steps, batch.action.mask), batch.feedback)
    assert_close(critic.value(other).detach(), values, 1e-5)
    # An absent first action changes nothing: it is the prompt that is valued.
    mask = batch.action.mask.clone()
    mask[0, 0] = False
    absent = helpers.as_batch(batch.context, Action(batch.action.steps, mask))
    assert_close(critic.value(absent).detach(), values, 1e-5)


def test_values_do_not_depend_on_how_rows_are_run(monkeypatch: pytest.MonkeyPatch) -> None:
    policy, batch = helpers.policy("llama"), make_batch(Rewards)
    critic = off_zero(critic_for(policy, shared=False, per="token"))
    values = critic.value(batch).detach()
    monkeypatch.setitem(language.TOKENS_TOGETHER, False, 8)
    assert_close(critic.value(batch).detach(), values, 1e-5)
    for n in range(batch.num_contexts):
        assert_close(critic.value(batch.select(slice(n, n + 1))).detach()[0], values[n], 1e-5)


@pytest.mark.parametrize("per", ["token", "prompt"])
def test_a_separate_critics_gradient_stays_its_own(per: str) -> None:
    policy, batch = helpers.policy("llama"), make_batch(Rewards)
    critic = off_zero(critic_for(policy, shared=False, per=per))
    critic.value(batch).sum().backward()
    reached = helpers.gradients(critic)
    assert {"head.weight", "head.bias"} < reached.keys() and len(reached) > 5
    backbone = [part for name, part in reached.items() if name.startswith("_backbone")]
    assert sum(bool(part.abs().max() > 1e-4) for part in backbone) > 5
    # Per token every step counts; per prompt one value a context.
    number = int(batch.action.mask.sum()) if per == "token" else batch.num_contexts
    assert float(reached["head.bias"]) == pytest.approx(number)
    assert all(part.grad is None for part in policy.parameters())


def test_a_shared_critics_gradient_reaches_the_policy() -> None:
    policy, batch = helpers.policy("llama"), make_batch(Rewards)
    critic = off_zero(critic_for(policy, shared=True, per="token"))
    # Only the head is the critic's own, for its optimizer and its checkpoint.
    assert critic.trainable().keys() == {"head.weight", "head.bias"}
    assert len(list(trainable_parameters(critic))) == 2
    critic.value(batch).sum().backward()
    assert sum(bool(part.abs().max() > 1e-4) for part in helpers.gradients(policy).values()) > 5
    assert not any(name.startswith("_backbone") for name in critic.state_dict())


def test_a_separate_critic_owns_its_backbone() -> None:
    policy = helpers.policy("llama", lora=True)
    backbone = policy.frozen_copy()
    for part, original in zip(backbone.parameters(), policy.parameters(), strict=True):
        part.requires_grad_(original.requires_grad)
    critic = TokenValue(backbone)
    own = critic.trainable()
    assert len(own) == 2 + len(policy.trainable())
    assert not {id(part) for part in own.values()} & {id(part) for part in policy.parameters()}


def test_one_value_for_everything() -> None:
    critic = BatchValue()
    with torch.no_grad():
        critic.constant.fill_(2.5)
    assert float(critic.value(make_batch(Rewards)).detach()) == 2.5
    critic.value(make_batch(Rewards)).backward()
    assert float(critic.constant.grad) == 1.0
    assert critic.trainable().keys() == {"constant"}


def test_per_is_checked() -> None:
    with pytest.raises(ValueError, match="`per` is 'step'"):
        TokenValue(helpers.policy("llama"), per="step")


def test_one_value_lies_where_it_is_told() -> None:
    assert BatchValue(device="meta").constant.device.type == "meta"
    assert BatchValue(device=torch.device("cpu")).constant.device.type == "cpu"
    assert BatchValue().constant.device == torch.empty(()).device


def slow_q(critic: QNetwork, head: int, observation: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
    """One network, one observation and one action, by ordinary layers."""
    x = torch.cat([observation, action])
    for place, (weight, bias) in enumerate(zip(critic.weights, critic.biases, strict=True)):
        x = torch.nn.functional.linear(x, weight[head].T, bias[head, 0])
        if place == 0:
            x = torch.nn.functional.layer_norm(x, x.shape, critic.gain[head, 0], critic.shift[head, 0])
        if place < len(critic.weights) - 1:
            x = torch.relu(x)
    return x[0]


@pytest.mark.parametrize("hidden", [(6,), (6, 5), (6, 5, 4)])
@pytest.mark.parametrize("heads", [1, 2, 3])
def test_q_networks_equal_ordinary_layers_one_by_one(hidden: tuple[int, ...], heads: int) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        critic = QNetwork(3, 2, hidden, heads=heads)
    helpers.shake(critic, size=0.5)
    draw = torch.Generator().manual_seed(0)
    observation, action = torch.randn(4, 3, generator=draw), torch.randn(4, 5, 2, generator=draw)
    values = critic(observation, action)
    assert values.shape == (heads, 4, 5)
    weights = torch.randn(values.shape, generator=draw)
    (values * weights).sum().backward()
    ours = helpers.gradients(critic)
    critic.zero_grad()
    slow = torch.stack(
        [
            torch.stack([torch.stack([slow_q(critic, h, observation[n], a) for a in action[n]]) for n in range(4)])
            for h in range(heads)
        ]
    )
    assert_close(values.detach(), slow.detach(), 1e-5)
    (slow * weights).sum().backward()
    theirs = helpers.gradients(critic)
    assert ours.keys() == theirs.keys() == dict(critic.named_parameters()).keys()
    for name, part in theirs.items():
        assert_close(ours[name], part, 1e-4)
    # Networks side by side, each by itself: another start, other values, and no gradient into its neighbour.
    assert slow.std(dim=(1, 2)).min() > 1e-3
    for first in range(heads):
        for second in range(first):
            assert (slow[first] - slow[second]).abs().max() > 0.01
    critic.zero_grad()
    critic(observation, action)[0].sum().backward()
    for name, part in helpers.gradients(critic).items():
        assert part[0].any() and not part[1:].any(), name


def test_q_networks_start_within_their_bounds_and_elsewhere_each_time() -> None:
    first, second = QNetwork(3, 2, (64, 64)), QNetwork(3, 2, (64, 64))
    for place, fan_in in enumerate((5, 64, 64)):
        weight = first.weights[place].detach()
        assert weight.abs().max() <= fan_in**-0.5 and weight.std() == pytest.approx((fan_in * 3) ** -0.5, rel=0.15)
        assert not torch.equal(weight, second.weights[place]) and not torch.equal(weight[0], weight[1])


def test_q_networks_do_not_care_for_the_scale_of_observations() -> None:
    """The first layer is normalised: observations of thousands do not drown the rest."""
    critic, draw = QNetwork(3, 1, (32,)), torch.Generator().manual_seed(0)
    observation, action = 1000 * torch.randn(50, 3, generator=draw), torch.zeros(50, 1, 1)
    assert critic(observation, action).abs().max() < 10
