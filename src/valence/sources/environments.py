"""Environments behind one small protocol: gymnasium's, by id, and the tasks of the DeepMind Control Suite.

Actions are D numbers in [-1, 1], which are scaled to the environment's bounds; observations are flat float32 vectors.
Every episode has a known seed, so that `Crew` can resume by repeating its actions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np
import torch

from valence.errors import UserError, one_line
from valence.policies.actor import flatten

CONTROL_SUITE = "dm_control/"
TESTED = {"dm-control": "1.0.50", "mujoco": "3.17.0"}
"""The tested pair of versions: this dm-control fails with mujoco 4."""


class Step(NamedTuple):
    """The result of an action: the next observation, also at the end of an episode, and `steps` environment steps."""

    observation: np.ndarray
    reward: float
    terminated: bool
    truncated: bool
    steps: int = 1


def scale(action: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """[-1, 1] to [low, high]."""
    # Rounding may exceed a bound, which some environments reject.
    return np.clip((high + low) / 2 + (high - low) / 2 * action, low, high)


class Environment:
    """Repeats each action for `repeat` steps, fewer at the end of an episode, and adds up the rewards.

    Args:
        inner: the environment in its package's own form; it has a `close`.
        low, high: its own bounds of an action, `[D]`, to which -1 and 1 are scaled.
    """

    def __init__(self, inner: Any, low: np.ndarray, high: np.ndarray, *, repeat: int) -> None:
        self._environment, self.repeat = inner, repeat
        self.low, self.high = low.astype(np.float64), high.astype(np.float64)
        self.action_size, self.observation_size = len(low), len(self.reset(0))

    def reset(self, seed: int) -> np.ndarray:
        """Begin an episode; returns its first observation."""
        raise NotImplementedError

    def _step(self, action: np.ndarray) -> Step:
        """Take one environment step with an action within `low` and `high`."""
        raise NotImplementedError

    def step(self, action: np.ndarray) -> Step:
        """Take an action in [-1, 1]."""
        scaled = scale(action, self.low, self.high)
        after = self._step(scaled)
        total, taken = after.reward, 1
        while taken < self.repeat and not (after.terminated or after.truncated):
            after = self._step(scaled)
            total, taken = total + after.reward, taken + 1
        return after._replace(reward=total, steps=taken)

    def render(self) -> np.ndarray:
        """A picture, `[height, width, 3]`, 0 to 255."""
        raise NotImplementedError

    def close(self) -> None:
        self._environment.close()


class ControlSuite(Environment):
    """A task of the DeepMind Control Suite. Its episodes are truncated, not terminated, after 1000 steps."""

    def __init__(self, domain: str, task: str, *, repeat: int = 1) -> None:
        suite = _control_suite()
        if (domain, task) not in suite.ALL_TASKS:
            tasks = ", ".join(sorted(name for owner, name in suite.ALL_TASKS if owner == domain))
            known = f"its tasks are {tasks}" if tasks else f"domains are {', '.join(sorted(suite.TASKS_BY_DOMAIN))}"
            raise UserError(f"the control suite has no {CONTROL_SUITE}{domain}-{task}-v0; {known}")
        inner = suite.load(domain, task, task_kwargs={"random": 0})
        spec = inner.action_spec()
        bounds = (np.broadcast_to(bound, spec.shape).ravel() for bound in (spec.minimum, spec.maximum))
        super().__init__(inner, *bounds, repeat=repeat)

    def reset(self, seed: int) -> np.ndarray:
        # The suite's tasks draw their initial states from it, and no call reseeds it.
        self._environment.task._random = np.random.RandomState(seed)
        return flatten(self._environment.reset().observation)

    def _step(self, action: np.ndarray) -> Step:
        after = self._environment.step(action)
        terminated = after.last() and after.discount == 0
        return Step(flatten(after.observation), float(after.reward), terminated, after.last() and not terminated)

    def render(self) -> np.ndarray:
        return self._environment.physics.render(240, 320, camera_id=0)


class Gymnasium(Environment):
    """An environment of gymnasium, by id (`package:Name-v0` imports the package first)."""

    def __init__(self, name: str, *, repeat: int = 1, pictures: bool = False) -> None:
        import gymnasium

        try:
            inner = gymnasium.make(name, render_mode="rgb_array" if pictures else None)
        except (gymnasium.error.Error, ImportError) as error:
            raise UserError(
                f"gymnasium cannot make {name!r} ({one_line(error, 160)}); the control suite's tasks are named "
                f"{CONTROL_SUITE}DOMAIN-TASK-v0, for instance {CONTROL_SUITE}cartpole-swingup-v0"
            ) from error
        except Exception as error:
            raise UserError(f"making {name} failed: {type(error).__name__}: {one_line(error, 160)}") from error
        space = inner.action_space
        if not isinstance(space, gymnasium.spaces.Box) or not space.is_bounded():
            raise UserError(f"{name} has the action space {space}, and control needs a bounded Box of numbers")
        self._space = space
        super().__init__(inner, space.low.ravel(), space.high.ravel(), repeat=repeat)

    def reset(self, seed: int) -> np.ndarray:
        return flatten(self._environment.reset(seed=seed)[0])

    def _step(self, action: np.ndarray) -> Step:
        shaped = action.reshape(self._space.shape).astype(self._space.dtype)
        observation, reward, terminated, truncated, _ = self._environment.step(shaped)
        return Step(flatten(observation), float(reward), bool(terminated), bool(truncated and not terminated))

    def render(self) -> np.ndarray:
        return np.asarray(self._environment.render())


def make_environment(name: str, *, repeat: int = 1, pictures: bool = False) -> Environment:
    """`dm_control/DOMAIN-TASK-v0`, or an id of gymnasium's.

    Args:
        repeat: environment steps that each action is repeated for.
        pictures: whether `render` will be called.
    Raises:
        UserError: no environment has that name, its actions are not continuous, or its package is missing.
    """
    if name.startswith(CONTROL_SUITE):
        domain, _, task = name.removeprefix(CONTROL_SUITE).removesuffix("-v0").partition("-")
        return ControlSuite(domain, task, repeat=repeat)
    return Gymnasium(name, repeat=repeat, pictures=pictures)


def _control_suite() -> Any:
    installed = {}
    for package in TESTED:
        try:
            installed[package] = version(package)
        except PackageNotFoundError:
            installed[package] = "none"
    right = " with ".join(f"{package}=={number}" for package, number in TESTED.items())
    if "none" in installed.values() or int(installed["mujoco"].split(".")[0]) >= 4:
        have = ", ".join(f"{package} {number}" for package, number in installed.items())
        raise UserError(f"the control suite needs {right} (found {have}): pip install 'valence-learn[control]'")
    # dm-control opens EGL when it is imported; Triton imported after that ends in a segmentation fault, and torch
    # imports it where it is installed.
    if find_spec("triton"):
        import triton  # noqa: F401  # pyright: ignore[reportMissingImports]
    try:
        from dm_control import suite
    except (ImportError, AttributeError, RuntimeError) as error:
        raise UserError(
            f"the control suite cannot open its renderer ({one_line(error, 160)}): set MUJOCO_GL to egl or osmesa, "
            "whichever is installed, or to disable if nothing is rendered"
        ) from error
    return suite


class Crew:
    """Several environments, each of which begins its next episode by itself.

    The seed of an episode follows from (seed, environment, number of the episode). The state holds the actions of the
    current episodes, and loading it repeats them.

    Args:
        make: makes one environment.
        size: number of environments.
        seed: of all episodes.
    Raises:
        UserError: an environment raises, or returns a number that is not finite; `step` raises it too.
    """

    def __init__(self, make: Callable[[], Environment], size: int, seed: int) -> None:
        self.environments = [make() for _ in range(size)]
        self.seed = seed
        self.episode, self._returns = [0] * size, [0.0] * size
        self._actions: list[list[np.ndarray]] = [[] for _ in range(size)]
        self.observations = [self._begin(place) for place in range(size)]
        self.finished: list[float] = []
        """Returns of the episodes that have ended, oldest first; their reader clears them."""

    def _begin(self, place: int) -> np.ndarray:
        """Begin an episode in one environment; returns its first observation."""
        self._returns[place], self._actions[place] = 0.0, []
        seed = np.random.SeedSequence([self.seed, place, self.episode[place]]).generate_state(1)[0]
        try:
            first = self.environments[place].reset(int(seed >> 1))
        except Exception as error:
            raise UserError(self._failure(place, error)) from error
        if not np.isfinite(first).all():
            raise UserError("the environment began an episode with an observation that is not all finite numbers")
        return first

    def _do(self, place: int, action: np.ndarray) -> Step:
        """Take one action in one environment, check its result and remember it."""
        try:
            after = self.environments[place].step(action)
        except Exception as error:
            raise UserError(self._failure(place, error)) from error
        if not math.isfinite(after.reward):
            raise UserError(f"the environment gave a reward of {after.reward}: it must be a finite number")
        if not np.isfinite(after.observation).all():
            raise UserError("the environment gave an observation that is not all finite numbers")
        self._returns[place] += after.reward
        self._actions[place].append(action)
        self.observations[place] = after.observation
        return after

    def _failure(self, place: int, error: Exception) -> str:
        where = f"episode {self.episode[place]} of environment {place}"
        return f"the environment failed in {where}: {type(error).__name__}: {one_line(error, 160)}"

    def step(self, actions: Sequence[np.ndarray]) -> list[tuple[np.ndarray, np.ndarray, Step]]:
        """Take one step in each: (observation, action, its result). An environment whose episode ends is reset."""
        taken = []
        for place, action in enumerate(actions):
            before, after = self.observations[place], self._do(place, action)
            taken.append((before, action, after))
            if after.terminated or after.truncated:
                self.finished.append(self._returns[place])
                self.episode[place] += 1
                self.observations[place] = self._begin(place)
        return taken

    def close(self) -> None:
        for environment in self.environments:
            environment.close()

    def state_dict(self) -> dict[str, Any]:
        actions = [torch.from_numpy(np.array(done)) if done else None for done in self._actions]
        return {"seed": self.seed, "episode": list(self.episode), "actions": actions, "finished": list(self.finished)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.seed, self.episode, self.finished = state["seed"], list(state["episode"]), list(state["finished"])
        for place, done in enumerate(state["actions"]):
            self.observations[place] = self._begin(place)
            for action in [] if done is None else done.numpy():
                self._do(place, action)
