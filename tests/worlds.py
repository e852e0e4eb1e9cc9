"""Tiny gymnasium environments, made by id: `worlds:Point-v0` and its kin."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict, Discrete

REACH = 0.4
"""How far an action of 1 moves the point."""


class Point(gymnasium.Env):
    """A point on a line, which actions move. The reward is minus its squared distance from 0. 20 steps an episode.

    Args:
        low: lower bound of the action space; an action in the middle of the bounds does not move the point.
        high: upper bound of the action space.
        kind: kind of observation: a float64 "vector", a "dict", or a 2 by 1 "grid".
        terminal: whether the episode ends when the point passes |x| = 1.
        fault: what goes wrong at the seventh step: "raise", "reward" or "observation" (not a number).
    """

    def __init__(
        self, low: float = -1.0, high: float = 1.0, kind: str = "vector", terminal: bool = False, fault: str = "",
        render_mode: str | None = None,
    ) -> None:  # fmt: skip
        box = Box(-3.0, 3.0, (1,), np.float64)
        grid = Box(-3.0, 3.0, (2, 1), np.float32)
        self.observation_space = {"vector": box, "dict": Dict({"a": box, "b": box}), "grid": grid}[kind]
        self.action_space = Box(np.float32(low), np.float32(high), (1,), np.float32)
        self.low, self.high, self.kind, self.terminal, self.fault = low, high, kind, terminal, fault
        self.render_mode = render_mode
        self.x, self.steps, self.taken = 0.0, 0, []

    def _see(self) -> Any:
        x = float("nan") if self.fault == "observation" and self.steps == 7 else self.x
        if self.kind == "dict":
            return {"a": np.array([x]), "b": np.array([2 * x])}
        return np.array([[x], [2 * x]], dtype=np.float32) if self.kind == "grid" else np.array([x])

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.x, self.steps = float(self.np_random.uniform(-0.9, 0.9)), 0
        return self._see(), {}

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action), action
        self.steps += 1
        self.taken.append(float(action[0]))
        if self.fault == "raise" and self.steps == 7:
            raise RuntimeError("the motor\nis off")
        centred = (float(action[0]) - (self.low + self.high) / 2) / ((self.high - self.low) / 2)
        self.x = float(np.clip(self.x + REACH * centred, -3.0, 3.0))
        reward = float("nan") if self.fault == "reward" and self.steps == 7 else -(self.x**2)
        return self._see(), reward, self.terminal and abs(self.x) > 1, False, {}

    def render(self) -> np.ndarray:
        picture = np.zeros((8, 24, 3), dtype=np.uint8)
        picture[:, int(np.clip(4 * self.x + 12, 0, 23))] = 255
        return picture


Point.metadata = {"render_modes": ["rgb_array"], "render_fps": 15}


class Buttons(Point):
    """The same line, with two buttons for actions."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.action_space = Discrete(2)


class Broken(gymnasium.Env):
    def __init__(self, **options: Any) -> None:
        raise RuntimeError("no licence")


def best_return(x: float, steps: int = 20) -> float:
    """The largest possible return from x: the point moves straight to 0."""
    total = 0.0
    for _ in range(steps):
        x -= float(np.clip(x, -REACH, REACH))
        total -= x**2
    return total


for name, options in {
    "Point-v0": {},
    "Lopsided-v0": {"low": -0.1, "high": 0.7},
    "Cliff-v0": {"terminal": True},
    "Parts-v0": {"kind": "dict"},
    "Grid-v0": {"kind": "grid"},
    "Raises-v0": {"fault": "raise"},
    "NanReward-v0": {"fault": "reward"},
    "NanObservation-v0": {"fault": "observation"},
}.items():
    gymnasium.register(name, Point, max_episode_steps=20, kwargs=options, disable_env_checker="Nan" in name)
gymnasium.register("Endless-v0", Point)
gymnasium.register("Buttons-v0", Buttons, max_episode_steps=20)
gymnasium.register("Broken-v0", Broken, max_episode_steps=20)
