"""The evaluation of a control policy: returns of whole episodes with the most likely actions, and a video of one."""

from __future__ import annotations

import json
import statistics
from bisect import bisect_left, bisect_right
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from valence.errors import UserError, one_line
from valence.policies.actor import Actor
from valence.sources.control import ControlSource
from valence.sources.environments import Crew, Environment

SEED = 10**6
"""The first seed of evaluation episodes; training runs use smaller ones."""
LONGEST = 100_000
"""Actions after which an episode is considered endless."""


class Evaluation:
    """Plays episodes side by side, from the same initial states each time.

    Args:
        make: makes an environment.
        episodes: how many episodes; each has its own environment.
        seed: seed of the initial states.
    Raises:
        ValueError: episodes < 1.
    """

    def __init__(self, make: Callable[[], Environment], episodes: int, seed: int = SEED) -> None:
        if episodes < 1:
            raise ValueError(f"`episodes` is {episodes}, and must be at least 1")
        self._environments = [make() for _ in range(episodes)]
        self._seed = seed

    def close(self) -> None:
        for environment in self._environments:
            environment.close()

    def returns(self, policy: Actor) -> list[float]:
        """Undiscounted returns, one per episode.

        Raises:
            UserError: an episode does not end.
        """
        environments, count = iter(self._environments), len(self._environments)
        crew = Crew(lambda: next(environments), count, self._seed)
        returns, totals = dict[int, float](), [0.0] * count
        for _ in range(LONGEST):
            actions = policy.mode(torch.from_numpy(np.stack(crew.observations))).numpy()
            for place, (_, _, after) in enumerate(crew.step(list(actions))):
                totals[place] += after.reward
                if (after.terminated or after.truncated) and place not in returns:
                    returns[place] = totals[place]
            if len(returns) == count:
                return [returns[place] for place in range(count)]
        raise UserError(f"an episode has not ended after {LONGEST} actions: give the environment a time limit")


def film(policy: Actor, environment: Environment, path: Path, *, seed: int = SEED, every: int = 8) -> Path:
    """Play one episode and save it as a GIF with a frame every `every` environment steps; returns its path."""
    from PIL import Image

    observation, frames, steps = environment.reset(seed), [Image.fromarray(environment.render())], 0
    while True:
        after = environment.step(policy.mode(torch.from_numpy(observation[None]))[0].numpy())
        observation, steps = after.observation, steps + after.steps
        if steps >= every * len(frames):
            frames.append(Image.fromarray(environment.render()))
        if after.terminated or after.truncated:
            frames[0].save(path, save_all=True, append_images=frames[1:], duration=60, loop=0)
            return path


class LearningCurve:
    """Evaluates a policy along a run, and writes the curve to a JSON file.

    Args:
        source: the run's source, which counts environment steps.
        path: the file; a resumed run continues its curve.
        start: the update that the run starts from.
    Attributes:
        results: "curve" ([environment steps, mean return] of each evaluation), "updates" (after which update each was
            made), "returns" (of the last evaluation's episodes), "settings".
    """

    def __init__(
        self, evaluation: Evaluation, policy: Actor, source: ControlSource, path: Path, settings: Any, *, start: int
    ) -> None:
        self.evaluation, self.policy, self.source, self.path = evaluation, policy, source, path
        self.results: dict[str, Any] = {"curve": [], "updates": [], "returns": [], "settings": settings}
        if start and path.is_file():
            known = json.loads(path.read_text(encoding="utf-8"))
            count = bisect_right(known["updates"], start)
            self.results["curve"] = [tuple(point) for point in known["curve"][:count]]
            self.results["updates"] = known["updates"][:count]

    def __call__(self, step: int) -> dict[str, float]:
        """The figures after update `step`."""
        curve, updates, returns = self.results["curve"], self.results["updates"], self.evaluation.returns(self.policy)
        mean, env_steps = statistics.fmean(returns), self.source.env_steps
        # A finished run that is resumed evaluates its last update again.
        place = bisect_left(updates, step)
        curve[place:], updates[place:] = [(env_steps, mean)], [step]
        self.results["returns"] = returns
        draft = self.path.with_suffix(".draft")
        draft.write_text(json.dumps(self.results, indent=1) + "\n", encoding="utf-8")
        draft.replace(self.path)
        return {"return": mean, "env_steps": float(env_steps)}

    def close(self) -> None:
        self.evaluation.close()


def check_camera(make: Callable[[], Environment], name: str) -> None:
    """Render once before a run, so that it does not fail after it.

    Raises:
        UserError: the environment cannot be rendered.
    """
    environment = make()
    try:
        environment.reset(0)
        shape = environment.render().shape
        if len(shape) != 3 or shape[2] != 3:
            raise ValueError(f"its pictures have the shape {shape}")
    except Exception as error:
        raise UserError(
            f"`video`: {name} cannot be rendered here ({one_line(error)}); try MUJOCO_GL=egl, or leave it out"
        ) from error
    finally:
        environment.close()
