"""Make the data of `python -m experiments offline-control`: 1,400 pick-and-place episodes of a learner that improves.

    PYTHONPATH=src:. .venv-metaworld/bin/python -m experiments.offline_control.make_data --out NEW_FOLDER

Each episode of Meta-World's pick-place-v3 is acted by its scripted policy or by one of four systematic failures, with
Gaussian noise on every action. The chance of the scripted policy grows with the episode's number as a learner's would:
from 0 to 0.2 over the first 400 (the paper's first 40k of 140k), then to 0.8. So the first 400 are mostly bad, and the
others contain a large share of bad episodes. The recipe was fixed before any mixture was trained; see
docs/decisions.md. The failures are biased, not only noisy: noise of mean zero would leave the mean of a cloned Gaussian
right.
"""

from __future__ import annotations

import argparse
import time
import warnings
from pathlib import Path

import numpy as np

from experiments.offline_control.metaworld_worker import GOAL, HORIZON, PickPlace
from valence.data.episodes import Episode, write_episodes

EPISODES, EARLY, SEED = 1400, 400, 20_000
FAILURES = ("wander", "no_grasp", "drop", "wrong_place")
NOISE = (0.1, 0.5)
"""Standard deviation of the action noise, drawn once per episode, in units of half the action range."""
GOALS = np.array([[-0.1, 0.8, 0.05], [0.1, 0.9, 0.3]])
REACH = np.array([[-0.4, 0.45, 0.06], [0.4, 0.95, 0.45]])
"""Boxes in metres: the task's goals, and the points that a wandering hand goes to."""


def skill(place: int) -> float:
    """The chance that the scripted policy acts episode number `place`."""
    if place < EARLY:
        return 0.2 * place / EARLY
    return 0.2 + 0.6 * (place - EARLY) / (EPISODES - 1 - EARLY)


class Actor:
    """The behaviour of one episode; `kind` is "skilled" or one of `FAILURES`."""

    def __init__(self, kind: str, goal: np.ndarray, generator: np.random.Generator) -> None:
        from metaworld.policies import SawyerPickPlaceV3Policy  # pyright: ignore[reportMissingImports]

        self.kind, self.generator, self.scripted = kind, generator, SawyerPickPlaceV3Policy()
        self.noise = generator.uniform(*NOISE)
        self.point, self.effort = generator.uniform(*REACH), generator.uniform(-1, 1)
        self.goal, self.dropped = goal, False
        while kind == "wrong_place" and np.linalg.norm(self.goal - goal) < 0.15:
            self.goal = generator.uniform(*GOALS)

    def act(self, raw: np.ndarray) -> np.ndarray:
        """`raw [39]` to an action `[4]`."""
        seen = raw.copy()
        seen[GOAL] = self.goal
        action = np.asarray(self.scripted.get_action(seen), dtype=np.float64)
        if self.kind == "wander":
            action[:3], action[3] = 10 * (self.point - raw[:3]), self.effort
        self.dropped |= self.kind == "drop" and raw[6] > 0.06
        if self.kind == "no_grasp" or self.dropped:
            action[3] = -1.0
        return np.clip(action.clip(-1, 1) + self.noise * self.generator.standard_normal(4), -1, 1)


def live(task: PickPlace, place: int) -> tuple[Episode, str, bool]:
    """(episode number `place`, its behaviour, whether the puck reached the goal)."""
    generator = np.random.default_rng([SEED, place])
    kind = "skilled" if generator.random() < skill(place) else str(generator.choice(FAILURES))
    observations, actions, rewards, solved = [task.reset(SEED + place)], [], [], False
    actor = Actor(kind, task.raw[GOAL].copy(), generator)
    for _ in range(HORIZON):
        action = actor.act(task.raw).astype(np.float16)
        observation, reward, success = task.step(action)
        solved |= success
        observations.append(observation)
        actions.append(action)
        rewards.append(reward)
    seen, acted, paid = (np.asarray(column, np.float16) for column in (observations, actions, rewards))
    return Episode(seen, acted, paid), kind, solved


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--episodes", type=int, default=EPISODES)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    began, task = time.perf_counter(), PickPlace()
    lived = [live(task, place) for place in range(options.episodes)]
    folder = write_episodes(
        options.out, [episode for episode, *_ in lived], dataset_id="valence/pick-place-v0",
        description="Meta-World 3.1.1 pick-place-v3, a learner getting better: see experiments/offline_control",
    )  # fmt: skip
    print(f"{len(lived)} episodes in {time.perf_counter() - began:.0f} s: {folder}")
    for kind in ("skilled", *FAILURES):
        mine = [(episode.rewards.sum(dtype=np.float64), solved) for episode, name, solved in lived if name == kind]
        early = sum(name == kind for *_, name, _ in ((0, *row) for row in lived[:EARLY]))
        means = np.mean(mine, axis=0) if mine else (np.nan, np.nan)
        print(f"  {kind:12} {len(mine):5} ({early} early), reward {means[0]:5.1f}, success {means[1]:.2f}")


if __name__ == "__main__":
    main()
