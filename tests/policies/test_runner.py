"""A policy saved, loaded, and acting in the environment's own units."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import helpers
from valence.errors import UserError
from valence.policies.actor import Actor
from valence.policies.categorical import CategoricalPolicy
from valence.policies.gaussian import GaussianPolicy
from valence.policies.runner import PolicyRunner

LOW, HIGH = np.array([-0.1, -3.0]), np.array([0.7, 3.0])


@pytest.fixture(params=["gaussian", "categorical"])
def policy(request: pytest.FixtureRequest) -> Actor:
    kinds: dict[str, Any] = {
        "gaussian": lambda: GaussianPolicy(3, 2, (8, 4), init_scale=0.9, min_scale=0.2),
        "categorical": lambda: CategoricalPolicy(3, 2, (8, 4), bins=7),
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = kinds[request.param]()
    helpers.shake(made, size=0.5)
    return made


@pytest.fixture
def folder(policy: Actor, tmp_path: Path) -> Path:
    policy.save(tmp_path / "run" / "policy", low=LOW, high=HIGH, environment="Here-v0", action_repeat=4)
    return tmp_path / "run"


SEEN = np.random.default_rng(0).normal(size=(6, 3))


def test_saved_and_loaded_it_is_the_same_to_the_bit(policy: Actor, folder: Path) -> None:
    for place in (folder, folder / "policy", str(folder)):
        loaded = PolicyRunner.load(place)
        assert type(loaded.policy) is type(policy) and loaded.policy.settings() == policy.settings()
        ours, theirs = loaded.policy.state_dict(), policy.state_dict()
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
        assert not any(part.requires_grad for part in loaded.policy.parameters())
        assert np.array_equal(loaded.low, LOW) and np.array_equal(loaded.high, HIGH)
        assert (loaded.environment, loaded.action_repeat) == ("Here-v0", 4)


def test_saved_without_an_environment_it_acts_between_minus_one_and_one(policy: Actor, tmp_path: Path) -> None:
    policy.save(tmp_path)
    runner = PolicyRunner.load(tmp_path)
    assert runner.environment is None and runner.action_repeat == 1
    mode = policy.mode(torch.tensor(SEEN, dtype=torch.float32)).double().numpy()
    assert runner.act(SEEN) == pytest.approx(mode, abs=1e-7)


def test_it_acts_by_the_mode_within_the_environments_bounds(policy: Actor, folder: Path) -> None:
    runner = PolicyRunner.load(folder)
    mode = policy.mode(torch.tensor(SEEN, dtype=torch.float32)).double().numpy()
    # -1 is the lowest, +1 the highest, 0 the middle: 0.3 and 0 here.
    slow = [[0.3 + 0.4 * first, 3.0 * second] for first, second in mode.tolist()]
    found = runner.act(SEEN)
    assert found == pytest.approx(np.array(slow), abs=1e-7) and np.ptp(found, 0).min() > 0.05
    for row, seen in zip(found, SEEN, strict=True):
        assert runner.act(seen).shape == (2,) and runner.act(seen) == pytest.approx(row, abs=1e-6)
        assert runner.act(seen.tolist()) == pytest.approx(row, abs=1e-6)


def test_the_bounds_are_reached_and_never_passed() -> None:
    policy = GaussianPolicy(3, 2, (8,))
    with torch.no_grad():
        policy.head.bias[:2] = torch.tensor([50.0, -50.0])
    for low, high in ((LOW, HIGH), (np.array([0.1, 0.1]), np.array([0.7, 0.3]))):
        action = PolicyRunner(policy, low, high).act(SEEN[0])
        assert action == pytest.approx(np.array([high[0], low[1]]), rel=1e-14)
        assert action[0] <= high[0] and action[1] >= low[1]


def test_it_draws_where_a_generator_is_given(policy: Actor, folder: Path) -> None:
    runner = PolicyRunner.load(folder)
    draws = [runner.act(SEEN, generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert np.array_equal(draws[0], draws[1]) and not np.array_equal(draws[0], draws[2])
    many = runner.act(np.repeat(SEEN[:1], 4000, 0), generator=torch.Generator().manual_seed(0))
    assert bool((many >= LOW - 1e-9).all()) and bool((many <= HIGH + 1e-9).all())
    drawn = policy.draw(torch.tensor(SEEN[:1], dtype=torch.float32), 4000, torch.Generator().manual_seed(9))
    decoded = policy.decode(drawn).detach().double().numpy()[0, :, 0]
    expected = (HIGH + LOW) / 2 + (HIGH - LOW) / 2 * decoded
    error = 5 * expected.std(0) * (2 / 4000) ** 0.5
    assert bool((abs(many.mean(0) - expected.mean(0)) < error).all())


def test_observations_come_as_dictionaries_and_in_other_shapes(folder: Path) -> None:
    runner = PolicyRunner.load(folder)
    seen = SEEN[0].astype(np.float32)
    plain = runner.act(seen)
    assert np.array_equal(runner.act({"a": np.float64(seen[0]), "b": seen[1:]}), plain)
    assert np.array_equal(runner.act((seen[:1], {"x": seen[1:]})), plain)
    assert np.array_equal(runner.act(seen.reshape(3, 1)), plain)
    assert np.array_equal(runner.act(seen[None]), plain[None])
    assert runner.act(SEEN.reshape(2, 3, 3)).shape == (2, 3, 2)
    for wrong in (np.zeros(4), np.zeros((3, 2)), np.float64(1.0)):
        with pytest.raises(ValueError, match="reads 3 numbers"):
            runner.act(wrong)


def test_an_observation_of_no_numbers_is_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match="not all finite"):
        PolicyRunner.load(folder).act(np.array([0.0, np.nan, 0.0]))


def test_what_cannot_be_loaded_is_reported_in_one_line(folder: Path, tmp_path: Path) -> None:
    home = folder / "policy"
    about = json.loads((home / "policy.json").read_text())

    def refused(place: Path) -> None:
        with pytest.raises(UserError, match="there is no policy to load in") as error:
            PolicyRunner.load(place)
        assert "\n" not in str(error.value)

    refused(tmp_path / "nowhere")
    wrong: list[Any] = [
        {"policy": about["policy"] | {"kind": "mixture"}}, {"policy": about["policy"] | {"hidden": [4, 4]}},
        {"policy": about["policy"] | {"colour": 3}}, {"policy": {}},
    ]  # fmt: skip
    for change in wrong:
        (home / "policy.json").write_text(json.dumps(about | change))
        refused(folder)
    for missing in ("low", "environment"):
        (home / "policy.json").write_text(json.dumps({name: about[name] for name in about if name != missing}))
        refused(folder)
    (home / "policy.json").write_text("[]")
    refused(folder)
    (home / "policy.json").write_text(json.dumps(about))
    (home / "policy.safetensors").write_bytes(b"short")
    refused(folder)
