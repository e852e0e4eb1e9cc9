"""n-step transitions against a slow plain version, and where they may not go: across an episode's end."""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from valence.data.replay import Replay, Transitions

GAMMA = 0.9


@dataclass
class Episode:
    """Observations are numbered over everything lived, so that each names its place; one more than rewards."""

    environment: int
    observations: list[float]
    rewards: list[float]
    terminated: bool


def live(replay: Replay, *, environments: int, rounds: int, seed: int, cut: float = 0.15) -> list[tuple[int, Episode]]:
    """Random episodes side by side, told to `replay`; returns them with the round of their last step, ended or not."""
    dice, name = random.Random(seed), iter(range(1, 10**6))
    begun = [Episode(place, [float(next(name))], [], False) for place in range(environments)]
    lived = []
    for now in range(rounds):
        for place in range(environments):
            episode = begun[place]
            before, after, reward = episode.observations[-1], float(next(name)), dice.uniform(-1, 1)
            terminated, truncated = dice.random() < cut / 2, dice.random() < cut / 2
            episode.observations.append(after)
            episode.rewards.append(reward)
            replay.add(
                place, np.array([before, -before], np.float32), np.array([before / 2], np.float32), reward,
                np.array([after, -after], np.float32), terminated=terminated, truncated=truncated,
            )  # fmt: skip
            if terminated or truncated:
                episode.terminated = terminated
                lived.append((now, episode))
                begun[place] = Episode(place, [float(next(name))], [], False)
    return lived + [(rounds, episode) for episode in begun]


def slow(episode: Episode, start: int, steps: int, *, ended: bool) -> tuple[float, float, float, float] | None:
    """(observation, reward, discount, following) of the transition that begins at `start`; None while it is short."""
    last = min(start + steps, len(episode.rewards))
    if last < start + steps and not ended:
        return None
    reward = sum(GAMMA**ahead * episode.rewards[start + ahead] for ahead in range(last - start))
    over = ended and episode.terminated and last == len(episode.rewards)
    discount = 0.0 if over else GAMMA ** (last - start)
    return episode.observations[start], reward, discount, episode.observations[last]


def expected(lived: list[tuple[int, Episode]], rounds: int, steps: int) -> dict[float, tuple[float, ...]]:
    """By the observation that it begins at."""
    found = {}
    for when, episode in lived:
        for start in range(len(episode.rewards)):
            transition = slow(episode, start, steps, ended=when < rounds)
            if transition is not None:
                found[transition[0]] = transition
    return found


def stored(replay: Replay, draws: int = 6000) -> dict[float, tuple[float, ...]]:
    """What sampling can give, by the observation that it begins at."""
    batch = replay.sample(draws, torch.Generator().manual_seed(0))
    assert torch.equal(batch.observation[:, 1], -batch.observation[:, 0])
    assert torch.equal(batch.action[:, 0], batch.observation[:, 0] / 2)
    assert torch.equal(batch.following[:, 1], -batch.following[:, 0])
    columns = (batch.observation[:, 0], batch.reward, batch.discount, batch.following[:, 0])
    return {row[0]: row for row in zip(*(column.tolist() for column in columns), strict=True)}


@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize("environments", [1, 3])
def test_transitions_equal_the_slow_ones(steps: int, environments: int) -> None:
    replay = Replay(1000, 2, 1, num_environments=environments, steps=steps, discount=GAMMA)
    lived = live(replay, environments=environments, rounds=200, seed=steps)
    theirs, ours = expected(lived, 200, steps), stored(replay)
    assert len(theirs) == len(replay) and len({discount for _, _, discount, _ in theirs.values()}) == steps + 1
    assert ours.keys() == theirs.keys()
    for start, row in ours.items():
        assert row == pytest.approx(theirs[start], abs=1e-5)


def test_the_oldest_give_way() -> None:
    whole, ring = (Replay(size, 2, 1, num_environments=2, steps=3, discount=GAMMA) for size in (1000, 37))
    for replay in (whole, ring):
        live(replay, environments=2, rounds=100, seed=4)
    assert len(whole) == whole.inserted == ring.inserted and len(ring) == 37
    latest = [whole._store["observation"][place, 0].item() for place in range(whole.inserted - 37, whole.inserted)]
    everything = stored(whole)
    assert stored(ring) == {start: everything[start] for start in latest}


def one_episode(*, terminated: bool) -> dict[float, tuple[float, ...]]:
    """Three steps with rewards 1, 10, 100 from observations 1, 2, 3 to 4, then a step of the next episode from 5."""
    replay = Replay(10, 1, 1, steps=2, discount=0.5)
    for seen, reward in ((1, 1.0), (2, 10.0), (3, 100.0)):
        replay.add(
            0, np.array([seen]), np.zeros(1), reward, np.array([seen + 1]), terminated=terminated and seen == 3,
            truncated=seen == 3,
        )  # fmt: skip
    replay.add(0, np.array([5]), np.zeros(1), 7.0, np.array([6]), terminated=False, truncated=False)
    batch = replay.sample(200, torch.Generator().manual_seed(0))
    columns = (batch.observation, batch.reward, batch.discount, batch.following)
    rows = zip(*(part.flatten().tolist() for part in columns), strict=True)
    return {row[0]: row[1:] for row in rows}


def test_a_truncation_bootstraps_and_a_termination_does_not() -> None:
    assert one_episode(terminated=False) == {1: (6.0, 0.25, 3), 2: (60.0, 0.25, 4), 3: (100.0, 0.5, 4)}
    assert one_episode(terminated=True) == {1: (6.0, 0.25, 3), 2: (60.0, 0.0, 4), 3: (100.0, 0.0, 4)}


def test_sampling_is_uniform_and_follows_its_generator() -> None:
    replay = Replay(50, 1, 1, steps=1)
    for seen in range(20):
        replay.add(0, np.array([seen]), np.zeros(1), 0.0, np.zeros(1), terminated=False, truncated=False)
    draws = [replay.sample(8000, torch.Generator().manual_seed(3)).observation[:, 0] for _ in range(2)]
    assert torch.equal(draws[0], draws[1])
    counts = torch.bincount(draws[0].long(), minlength=20)
    # 400 each, deviation 19.5: five of them.
    assert len(counts) == 20 and (counts - 400).abs().max() < 98


@pytest.mark.parametrize("capacity", [1000, 37])
def test_saved_and_loaded_it_goes_on_as_if_nothing_had_been(capacity: int) -> None:
    ours, theirs = (Replay(capacity, 2, 1, num_environments=3, steps=4, discount=GAMMA) for _ in range(2))
    live(ours, environments=3, rounds=50, seed=1, cut=0.05)
    assert any(ours._pending)
    state = ours.state_dict()
    # The state is of that moment, whatever comes.
    live(ours, environments=3, rounds=1, seed=8)
    theirs.load_state_dict(state)
    ours.load_state_dict(state)
    before: list[Transitions] = []
    for replay in (ours, theirs):
        live(replay, environments=3, rounds=20, seed=2)
        before.append(replay.sample(500, torch.Generator().manual_seed(5)))
    for name in ("observation", "action", "reward", "discount", "following"):
        assert torch.equal(getattr(before[0], name), getattr(before[1], name))
    assert ours.inserted == theirs.inserted


def test_bad_numbers_and_an_empty_ring_are_refused() -> None:
    for wrong in ({"steps": 0}, {"num_environments": 0}, {"discount": 1.5}, {"discount": -0.1}):
        with pytest.raises(ValueError, match="need capacity"):
            Replay(10, 1, 1, **wrong)
    with pytest.raises(ValueError, match="need capacity"):
        Replay(0, 1, 1)
    with pytest.raises(ValueError, match="empty"):
        Replay(5, 1, 1).sample(1, torch.Generator())
    assert len(Replay(5, 1, 1)) == 0


def test_a_longer_replay_takes_over_a_shorter_ones_transitions_and_no_blanks() -> None:
    short = Replay(10, 1, 1, steps=1)
    for place in range(13):
        here = np.full(1, place + 1.0, np.float32)
        short.add(0, here, here, 1.0, here, terminated=False, truncated=False)
    longer = Replay(20, 1, 1, steps=1)
    longer.load_state_dict(short.state_dict())
    seen = longer.sample(500, torch.Generator().manual_seed(0)).observation
    assert len(longer) == 10 and set(seen.flatten().tolist()) == {float(place) for place in range(4, 14)}
    with pytest.raises(ValueError, match="has 10 transitions, and the capacity is 5"):
        Replay(5, 1, 1, steps=1).load_state_dict(short.state_dict())
