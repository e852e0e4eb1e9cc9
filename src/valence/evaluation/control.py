"""How well a control policy does: returns of whole episodes, acting by its most likely action; and a picture of one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from valence.errors import UserError
from valence.policies.actor import Actor
from valence.sources.environments import Crew, Environment

SEED = 10**6
"""Evaluation episodes begin at seeds that no training run uses."""
LONGEST = 100_000
"""Actions after which an episode is taken to have no end."""


class Evaluation:
    """Episodes side by side, the same starts each time.

    Args:
        make: makes an environment.
        episodes: how many, each in an environment of its own.
        seed: of the episodes' starts.
    """

    def __init__(self, make: Callable[[], Environment], episodes: int, seed: int = SEED) -> None:
        if episodes < 1:
            raise ValueError(f"episodes is {episodes}, and must be at least 1")
        self._environments = [make() for _ in range(episodes)]
        self._seed = seed

    def close(self) -> None:
        for environment in self._environments:
            environment.close()

    def returns(self, policy: Actor) -> list[float]:
        """Undiscounted returns, one an episode.

        Raises:
            UserError: an episode does not end.
        """
        rest = iter(self._environments)
        crew = Crew(lambda: next(rest), len(self._environments), self._seed)
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
        raise UserError(f"an episode has not ended after {LONGEST} actions: give the environment a limit of time")


def film(policy: Actor, environment: Environment, path: Path, *, seed: int = SEED, every: int = 8) -> Path:
    """One episode as a GIF, a picture at least so many environment steps apart; returns its path."""
    from PIL import Image

    seen, pictures, steps = environment.reset(seed), [Image.fromarray(environment.render())], 0
    while True:
        after = environment.step(policy.mode(torch.from_numpy(seen[None]))[0].numpy())
        seen, steps = after.observation, steps + after.steps
        if steps >= every * len(pictures):
            pictures.append(Image.fromarray(environment.render()))
        if after.terminated or after.truncated:
            break
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=60, loop=0)
    return path
