"""A ring buffer of n-step transitions, none of which crosses the end of an episode.

Shape legend: E environments side by side · O observation · D action dimensions · B transitions in a batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Transitions:
    """A batch of n-step transitions.

    Args:
        observation, action: `[B, O]` and `[B, D]`.
        reward: the discounted sum of the n rewards after the action, `[B]`.
        discount: the factor of the value of `following`: gamma^n, or 0 if the episode terminated, `[B]`.
        following: the observation n steps later (fewer if the episode was truncated), `[B, O]`.
    """

    observation: Float[Tensor, "B O"]
    action: Float[Tensor, "B D"]
    reward: Float[Tensor, " B"]
    discount: Float[Tensor, " B"]
    following: Float[Tensor, "B O"]


class Replay:
    """A ring of transitions with a pending queue for each environment.

    Args:
        capacity: most transitions stored; a new one replaces the oldest.
        observation_size, action_size: O and D.
        num_environments: E.
        steps: n.
        discount: gamma, per action.
    Raises:
        ValueError: a number out of range.
    """

    def __init__(
        self, capacity: int, observation_size: int, action_size: int, *, num_environments: int = 1, steps: int = 5,
        discount: float = 0.99,
    ) -> None:  # fmt: skip
        if capacity < 1 or steps < 1 or num_environments < 1 or not 0 <= discount <= 1:
            raise ValueError(
                f"need capacity, steps and num_environments >= 1 and discount in [0, 1], got {capacity}, {steps}, "
                f"{num_environments} and {discount}"
            )
        self.capacity, self.steps, self.discount = capacity, steps, discount
        seen, did = (observation_size,), (action_size,)
        shapes = {"observation": seen, "action": did, "reward": (), "discount": (), "following": seen}
        self._store = {name: torch.zeros(capacity, *shape) for name, shape in shapes.items()}
        self._views = {name: part.numpy() for name, part in self._store.items()}
        self._pending: list[list[tuple[np.ndarray, np.ndarray, float]]] = [[] for _ in range(num_environments)]
        self.inserted = 0

    def __len__(self) -> int:
        return min(self.inserted, self.capacity)

    def add(
        self, environment: int, observation: np.ndarray, action: np.ndarray, reward: float, following: np.ndarray, *,
        terminated: bool, truncated: bool,
    ) -> None:  # fmt: skip
        """Add one step of one environment.

        Args:
            following: the next observation, also at the end of an episode.
            terminated: the episode ended, and no reward can follow.
            truncated: the episode was cut off; the value of `following` stands for the rewards that would follow.
        """
        queue = self._pending[environment]
        queue.append((observation, action, reward))
        if len(queue) == self.steps:
            self._emit(queue, following, terminated)
        while queue and (terminated or truncated):
            self._emit(queue, following, terminated)

    def _emit(self, queue: list[tuple[np.ndarray, np.ndarray, float]], following: np.ndarray, terminated: bool) -> None:
        """Store the oldest pending step as a transition."""
        total = 0.0
        for _, _, reward in reversed(queue):
            total = reward + self.discount * total
        place = self.inserted % self.capacity
        ahead = 0.0 if terminated else self.discount ** len(queue)
        observation, action, _ = queue.pop(0)
        views = self._views
        views["observation"][place], views["action"][place] = observation, action
        views["reward"][place], views["discount"][place], views["following"][place] = total, ahead, following
        self.inserted += 1

    def sample(self, size: int, generator: torch.Generator) -> Transitions:
        """`size` transitions, uniformly, with replacement.

        Raises:
            ValueError: nothing is stored yet.
        """
        if not len(self):
            raise ValueError("the replay is empty: add some steps first")
        picks = torch.randint(len(self), (size,), generator=generator)
        return Transitions(**{name: part[picks] for name, part in self._store.items()})

    def state_dict(self) -> dict[str, Any]:
        pending = [
            [[torch.from_numpy(np.array(seen)), torch.from_numpy(np.array(did)), reward] for seen, did, reward in queue]
            for queue in self._pending
        ]
        stored = {name: part[: len(self)].clone() for name, part in self._store.items()}
        return {"inserted": self.inserted, "pending": pending, "store": stored}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises ValueError if the state has more transitions than `capacity`."""
        size = len(state["store"]["reward"])
        if size > self.capacity:
            raise ValueError(f"the state has {size} transitions, and the capacity is {self.capacity}")
        # In a larger ring, a full state continues behind its last place, not at its oldest one.
        self.inserted = state["inserted"] if size in (state["inserted"], self.capacity) else size
        self._pending = [
            [(seen.numpy(), did.numpy(), reward) for seen, did, reward in queue] for queue in state["pending"]
        ]
        for name, part in state["store"].items():
            self._store[name][: len(part)] = part
