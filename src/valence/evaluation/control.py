"""The evaluation of a control policy: returns of whole episodes with the most likely actions, and a video of one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from valence.errors import UserError
from valence.policies.actor import Actor
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
        environments = iter(self._environments)
        crew = Crew(lambda: next(environments), len(self._environments), self._seed)
        returns: dict[int, float] = {}
        totals = [0.0] * len(crew.environments)
        for _ in range(LONGEST):
            actions = policy.mode(torch.from_numpy(np.stack(crew.observations))).numpy()
            for place, (_, _, after) in enumerate(crew.step(list(actions))):
                totals[place] += after.reward
                if (after.terminated or after.truncated) and place not in returns:
                    returns[place] = totals[place]
            if len(returns) == len(totals):
                return [returns[place] for place in sorted(returns)]
        raise UserError(f"an episode has not ended after {LONGEST} actions: give the environment a time limit")


def film(policy: Actor, environment: Environment, path: Path, *, seed: int = SEED, every: int = 8) -> Path:
    """Play one episode and save it as a GIF; returns its path.

    Args:
        every: environment steps from one frame to the next, at least.
    """
    from PIL import Image

    observation, frames, steps = environment.reset(seed), [Image.fromarray(environment.render())], 0
    while True:
        after = environment.step(policy.mode(torch.from_numpy(observation[None]))[0].numpy())
        observation, steps = after.observation, steps + after.steps
        if steps >= every * len(frames):
            frames.append(Image.fromarray(environment.render()))
        if after.terminated or after.truncated:
            break
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=60, loop=0)
    return path
