"""An environment as a source of batches: act, store, train the critic, and judge the reference's actions with it.

`next` puts environment steps into the replay, takes one critic step, and returns the batch that the objective improves
the policy on: for each state, K actions drawn from the reference, with their values. The critic's targets use the same
actions and values, so that the large forward pass is made once.

The critic has n-step returns, several networks of which the one with the smallest value gives the target (clipped
double Q), and target networks that are copied at intervals. Its rewards are per environment step, so that their size
does not depend on the action repeat. It has no distribution over returns, which would need their range.

Shape legend: see `valence.types`; O observation, D action dimensions.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from valence.critics import QNetwork
from valence.data.replay import Replay, Transitions
from valence.protocols import Reference
from valence.sources.environments import Crew
from valence.types import Action, Batch, Feedback, Rewards

Labelling = Callable[[Rewards], Feedback]
SPEED = "env_steps_per_second"
"""The one figure that depends on the clock, and so is no part of the state."""


@dataclass(frozen=True, kw_only=True)
class ControlSettings:
    """How an agent collects transitions and judges actions.

    Args:
        batch_size: Number of states in a batch.
        num_actions: Number of actions that the reference draws in each state, at least 2.
        steps_per_update: Environment steps for each update; below 1, several updates follow one step.
        warmup_steps: Environment steps with uniformly random actions before the first update.
        critic_lr: Learning rate of the critic (Adam).
        target_every: Updates between two copies of the critic into its target.
        action_repeat: Environment steps that each action is repeated for; rewards are divided by it.
    Raises:
        ValueError: a field out of range.
    """

    batch_size: int = 256
    num_actions: int = 4
    steps_per_update: float = 4.0
    warmup_steps: int = 1000
    critic_lr: float = 1e-3
    target_every: int = 50
    action_repeat: int = 1

    def __post_init__(self) -> None:
        whole = {"batch_size": 1, "num_actions": 2, "warmup_steps": 1, "target_every": 1, "action_repeat": 1}
        for name, least in whole.items():
            if getattr(self, name) < least:
                raise ValueError(f"`{name}` is {getattr(self, name)}, and must be at least {least}")
        for name in ("steps_per_update", "critic_lr"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"`{name}` is {getattr(self, name)}, and must be finite and above 0")


class ControlSource:
    """See the page's top.

    Args:
        crew: the environments.
        critic: Q; its target is copied from it.
        reference: draws the actions that are judged.
        replay: stores the transitions of all environments of the crew.
        label: turns values into the feedback that the objective takes; None keeps them.
        seed: of all sampling.
    """

    unit = "env_steps"

    def __init__(
        self, crew: Crew, critic: QNetwork, reference: Reference, replay: Replay, settings: ControlSettings, *,
        label: Labelling | None = None, seed: int = 0,
    ) -> None:  # fmt: skip
        self.crew, self.critic, self.reference, self.replay = crew, critic, reference, replay
        self.settings, self.label = settings, label
        self.target = copy.deepcopy(critic).requires_grad_(False)
        self.optimizer = torch.optim.Adam(critic.parameters(), lr=settings.critic_lr, fused=True)
        self.generator = torch.Generator().manual_seed(seed)
        self.env_steps, self.updates = 0, 0
        self.num_units = self._taken = 0
        self._began = time.perf_counter()
        self.figures: dict[str, float] = {}

    def next(self, policy: Any) -> Batch:
        """Act, train the critic, and return states with judged actions of the reference."""
        before = self.env_steps
        due = self.settings.warmup_steps + self.updates * self.settings.steps_per_update
        while self.env_steps < due or not len(self.replay):
            self._act(policy)
        self.num_units = self.env_steps - before
        # Over the whole process, as one update may take no step or several.
        self._taken += self.num_units
        self.figures[SPEED] = self._taken / max(time.perf_counter() - self._began, 1e-9)
        batch = self.replay.sample(self.settings.batch_size, self.generator)
        with torch.no_grad(), self.reference.active() as reference:
            steps = reference.draw(batch.following, self.settings.num_actions, self.generator)
            values = self.target(batch.following, reference.decode(steps)[:, :, 0])
        self._train_critic(batch, values)
        judged = Rewards(values.mean(0), torch.ones(values.shape[1:], dtype=torch.bool))
        action = Action(steps, torch.ones(steps.shape[:3], dtype=torch.bool))
        return Batch(batch.following, action, judged if self.label is None else self.label(judged))

    def _act(self, policy: Any) -> None:
        """Take one step of every environment."""
        if self.env_steps < self.settings.warmup_steps:
            shape = (len(self.crew.environments), policy.action_size)
            actions = torch.rand(shape, generator=self.generator) * 2 - 1
        else:
            observations = torch.from_numpy(np.stack(self.crew.observations))
            with torch.no_grad():
                actions = policy.decode(policy.draw(observations, 1, self.generator))[:, 0, 0]
        for place, (before, action, after) in enumerate(self.crew.step(list(actions.numpy()))):
            self.replay.add(
                place, before, action, after.reward / self.settings.action_repeat, after.observation,
                terminated=after.terminated, truncated=after.truncated,
            )  # fmt: skip
            self.env_steps += after.steps
        if self.crew.finished:
            self.figures["train_return"] = self.crew.finished[-1]
            self.crew.finished.clear()

    def _train_critic(self, batch: Transitions, values: Float[Tensor, "heads N K"]) -> None:
        """Take one step on the squared error to the n-step target, which ends in the smallest network's mean value."""
        ahead = values.mean(-1).amin(0)
        goal = batch.reward + batch.discount * ahead
        value = self.critic(batch.observation, batch.action[:, None])[..., 0]
        loss = (value - goal).square().mean(-1).sum()
        # Labels made of NaN would look like any others.
        if not math.isfinite(loss.item()):
            raise FloatingPointError(
                f"the critic's loss is {loss.item()} at update {self.updates + 1}: lower `critic_lr`"
            )
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        self.updates += 1
        self.figures |= {"critic_loss": loss.item(), "q": ahead.mean().item(), "env_steps": float(self.env_steps)}
        if self.updates % self.settings.target_every == 0:
            self.target.load_state_dict(self.critic.state_dict())

    def state_dict(self) -> dict[str, Any]:
        figures = {name: value for name, value in self.figures.items() if name != SPEED}
        return {
            "crew": self.crew.state_dict(), "replay": self.replay.state_dict(),
            "critic": self.critic.state_dict(), "target": self.target.state_dict(),
            "optimizer": self.optimizer.state_dict(), "generator": self.generator.get_state(),
            "env_steps": self.env_steps, "updates": self.updates, "figures": figures,
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name in ("crew", "replay", "critic", "target", "optimizer"):
            getattr(self, name).load_state_dict(state[name])
        self.generator.set_state(state["generator"])
        self.env_steps, self.updates, self.figures = state["env_steps"], state["updates"], dict(state["figures"])
