"""Evaluation episodes: whole, the same starts each time, acting by the mode; and a picture of one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import worlds
from valence.errors import UserError
from valence.evaluation import control as evaluation
from valence.evaluation.control import SEED, Evaluation, film
from valence.policies.categorical import CategoricalPolicy
from valence.policies.gaussian import GaussianPolicy
from valence.sources.environments import Crew, Environment, make_environment


def constant(action: float) -> GaussianPolicy:
    """Always the same mean, and a wide spread that evaluation must not use."""
    policy = GaussianPolicy(1, 1, (4,), init_scale=5.0)
    with torch.no_grad():
        policy.head.weight.zero_()
        policy.head.bias[0] = torch.atanh(torch.tensor(action))
    return policy


def point() -> Environment:
    return make_environment("worlds:Point-v0")


def starts(number: int) -> list[float]:
    return [float(seen[0]) for seen in Crew(point, number, SEED).observations]


def slow_return(x: float, action: float) -> float:
    total = 0.0
    for _ in range(20):
        x = min(max(x + worlds.REACH * action, -3.0), 3.0)
        total -= x**2
    return total


@pytest.mark.parametrize("action", [0.0, -0.25])
def test_returns_equal_episodes_lived_by_hand(action: float) -> None:
    returns = Evaluation(point, 4).returns(constant(action))
    assert returns == pytest.approx([slow_return(x, action) for x in starts(4)], rel=1e-4)
    assert len(set(returns)) == 4


def test_the_starts_are_the_same_each_time_and_others_with_another_seed() -> None:
    ours, other = Evaluation(point, 3), Evaluation(point, 3, seed=5)
    policy = constant(0.0)
    first = ours.returns(policy)
    ours.returns(constant(0.3))
    assert ours.returns(policy) == first and other.returns(policy) != first
    # More episodes begin with the same ones.
    assert Evaluation(point, 5).returns(policy)[:3] == first


def test_the_mode_acts_and_nothing_random_is_drawn() -> None:
    policy, before = constant(0.0), torch.get_rng_state()
    Evaluation(point, 2).returns(policy)
    assert torch.equal(before, torch.get_rng_state())
    bins = CategoricalPolicy(1, 1, (4,), bins=3)
    with torch.no_grad():
        bins.head.weight.zero_()
        bins.head.bias.copy_(torch.tensor([0.0, 0.1, 0.0]))
    assert Evaluation(point, 2).returns(bins) == pytest.approx([slow_return(x, 0.0) for x in starts(2)], rel=1e-4)


def test_episodes_of_different_lengths_are_each_whole_and_only_one() -> None:
    """Going right ends at 1: further to the right sooner. Who is done goes on living, and it is not counted."""
    returns = Evaluation(lambda: make_environment("worlds:Cliff-v0"), 6).returns(constant(0.5))
    expected = []
    for x in starts(6):
        total = 0.0
        while x <= 1:
            x += worlds.REACH / 2
            total -= x**2
        expected.append(total)
    assert returns == pytest.approx(expected, rel=1e-4)


def test_an_episode_without_an_end_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "LONGEST", 19)
    with pytest.raises(UserError, match="not ended after 19 actions: give the environment a time limit"):
        Evaluation(point, 1).returns(constant(0.0))
    monkeypatch.setattr(evaluation, "LONGEST", 20)
    assert len(Evaluation(point, 1).returns(constant(0.0))) == 1


def test_there_must_be_an_episode() -> None:
    with pytest.raises(ValueError, match="`episodes` is 0"):
        Evaluation(point, 0)


def test_a_film_shows_where_the_policy_goes(tmp_path: Path) -> None:
    from PIL import Image

    environment = make_environment("worlds:Point-v0", pictures=True)
    path = film(constant(0.3), environment, tmp_path / "film.gif", seed=3, every=5)
    x, places = float(point().reset(3)[0]), []
    with Image.open(path) as pictures:
        assert pictures.n_frames == 5
        for frame in range(5):
            pictures.seek(frame)
            columns = [pictures.convert("L").getpixel((column, 0)) for column in range(24)]
            places.append(columns.index(max(columns)))
    expected = [min(int(4 * (x + 0.12 * step) + 12), 23) for step in (0, 5, 10, 15, 20)]
    assert places == expected and len(set(places)) == 5
