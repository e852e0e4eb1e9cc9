"""Environments behind one face: scaling, flattening, ends, repeats, and episodes that can be lived again."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import worlds
from valence.errors import UserError
from valence.sources.environments import Crew, Environment, Step, flatten, make_environment, scale

os.environ.setdefault("MUJOCO_GL", "disable")
SUITE = "dm_control/cartpole-swingup-v0"


def control_suite() -> None:
    pytest.importorskip("dm_control")


def names() -> list[Any]:
    return [pytest.param("worlds:Point-v0", id="gymnasium"), pytest.param(SUITE, id="control-suite")]


def make(name: str, **options: Any) -> Environment:
    if name.startswith("dm_control"):
        control_suite()
    return make_environment(name, **options)


def inner(environment: Any) -> worlds.Point:
    return environment._environment.unwrapped


def test_observations_are_flattened_by_name_as_on_disk_and_copied() -> None:
    parts = {"b": np.array([[1.0, 2.0]]), "a": np.float64(3), "c": {"y": 4, "x": (np.array([5]), 6)}}
    assert flatten(parts).tolist() == [3, 1, 2, 5, 6, 4] and flatten(parts).dtype == np.float32
    assert flatten((np.zeros(2), np.ones((1, 1)))).tolist() == [0, 0, 1]
    assert flatten([1.0, 2.0]).tolist() == [1, 2]
    mine = np.zeros(2, dtype=np.float32)
    given = flatten(mine)
    mine[:] = 7
    assert given.tolist() == [0, 0]


def test_scaling_reaches_the_bounds_and_never_passes_them() -> None:
    low, high = np.array([-2.0, 0.0]), np.array([2.0, 10.0])
    assert scale(np.array([0.5, -0.5]), low, high).tolist() == [1.0, 2.5]
    draw = np.random.default_rng(0)
    low = draw.normal(size=5000)
    high = low + draw.exponential(size=5000)
    for end in (-1.0, 1.0):
        scaled = scale(np.full(5000, end), low, high)
        assert bool((scaled >= low).all()) and bool((scaled <= high).all())
        assert scaled == pytest.approx(low if end < 0 else high)


def test_an_environments_own_units() -> None:
    environment = make_environment("worlds:Lopsided-v0")
    assert environment.low == pytest.approx([-0.1]) and environment.high == pytest.approx([0.7])
    start = environment.reset(3)
    moves = [environment.step(np.array([action], dtype=np.float32)).observation for action in (-1.0, 0.0, 1.0, 0.25)]
    assert inner(environment).taken == pytest.approx([-0.1, 0.3, 0.7, 0.4])
    steps = np.diff(np.concatenate([start, *moves]))
    assert steps == pytest.approx(worlds.REACH * np.array([-1.0, 0.0, 1.0, 0.25]), abs=1e-6)


@pytest.mark.parametrize(("name", "size"), [("Point", 1), ("Parts", 2), ("Grid", 2)])
def test_any_observation_becomes_float32(name: str, size: int) -> None:
    environment = make_environment(f"worlds:{name}-v0")
    seen = environment.reset(0)
    after = environment.step(np.zeros(1, dtype=np.float32))
    for observation in (seen, after.observation):
        assert observation.shape == (size,) == (environment.observation_size,) and observation.dtype == np.float32
        assert observation[-1] == pytest.approx(observation[0] * size)


def run(environment: Environment, seed: int, steps: int = 60, push: float = 0.3) -> list[Step]:
    environment.reset(seed)
    draw, lived = np.random.default_rng(1), []
    for _ in range(steps):
        action = np.clip(push + draw.normal(size=environment.action_size), -1, 1).astype(np.float32)
        lived.append(environment.step(action))
        if lived[-1].terminated or lived[-1].truncated:
            break
    return lived


def test_ends_are_told_apart() -> None:
    cut = run(make_environment("worlds:Point-v0"), 0)
    assert len(cut) == 20 and cut[-1].truncated and not any(after.terminated for after in cut)
    over = run(make_environment("worlds:Cliff-v0"), 0, push=2.0)
    assert len(over) < 20 and over[-1].terminated and not over[-1].truncated
    assert abs(over[-1].observation[0]) > 1


@pytest.mark.parametrize("name", names())
def test_the_same_seed_is_the_same_episode_to_the_bit(name: str) -> None:
    first, second = make(name), make(name)
    run(second, 99, steps=13)  # what was lived before is of no matter
    for seed in (5, 6):
        ours, theirs = run(first, seed), run(second, seed)
        assert len(ours) == len(theirs) >= 20
        for one, other in zip(ours, theirs, strict=True):
            assert np.array_equal(one.observation, other.observation) and one[1:] == other[1:]
    assert not np.array_equal(first.reset(5), first.reset(6))


def test_the_control_suite_is_cut_off_and_not_ended() -> None:
    environment = make(SUITE)
    assert (environment.observation_size, environment.action_size) == (5, 1)
    assert environment.low.tolist() == [-1] and environment.high.tolist() == [1]
    lived = run(environment, 0, steps=2000)
    assert len(lived) == 1000 and lived[-1].truncated and not any(after.terminated for after in lived)
    assert all(0 <= after.reward <= 1 for after in lived) and isinstance(lived[0].reward, float)


def test_repeats_sum_their_rewards_and_stop_at_the_end() -> None:
    plain, repeated = make_environment("worlds:Point-v0"), make_environment("worlds:Point-v0", repeat=3)
    assert np.array_equal(plain.reset(4), repeated.reset(4))
    action = np.array([0.1], dtype=np.float32)
    for number in [3] * 6 + [2]:
        slow = [plain.step(action) for _ in range(number)]
        quick = repeated.step(action)
        assert quick.steps == number and quick.reward == pytest.approx(sum(after.reward for after in slow))
        assert np.array_equal(quick.observation, slow[-1].observation) and quick.truncated == slow[-1].truncated
    assert quick.truncated


def actions_of(draw: np.random.Generator, crew: Crew) -> list[np.ndarray]:
    return list(draw.uniform(-1, 1, (len(crew.environments), 1)).astype(np.float32))


def told(lived: list[tuple[np.ndarray, np.ndarray, Step]]) -> list[Any]:
    return [
        (before.tolist(), action.tolist(), after.observation.tolist(), *after[1:]) for before, action, after in lived
    ]


def test_a_crew_goes_on_from_episode_to_episode() -> None:
    crew = Crew(lambda: make_environment("worlds:Point-v0"), 3, seed=2)
    draw, totals, finished = np.random.default_rng(0), [0.0] * 3, []
    starts = [crew.observations[0].tolist()]
    for now in range(1, 61):
        seen = [observation.copy() for observation in crew.observations]
        lived = crew.step(actions_of(draw, crew))
        for place, (before, _, after) in enumerate(lived):
            assert np.array_equal(before, seen[place])
            totals[place] += after.reward
            assert after.truncated is (now % 20 == 0)
            if after.truncated:
                finished.append(totals[place])
                totals[place] = 0.0
                # The replay is told where the step led, and not where the next episode begins.
                assert not np.array_equal(after.observation, crew.observations[place])
            else:
                assert np.array_equal(after.observation, crew.observations[place])
        starts += [crew.observations[0].tolist()] if now % 20 == 0 else []
    assert crew.finished == pytest.approx(finished) and len(finished) == 9
    assert len({tuple(start) for start in starts}) == 4, "each episode begins elsewhere"
    assert len({observation.tobytes() for observation in crew.observations}) == 3


@pytest.mark.parametrize("name", names())
@pytest.mark.parametrize("steps", [0, 7, 20, 33])
def test_a_crew_that_is_loaded_goes_on_to_the_bit(name: str, steps: int) -> None:
    ours, theirs = (Crew(lambda: make(name), 2, seed) for seed in (3, 8))
    draw = np.random.default_rng(0)
    for _ in range(steps):
        ours.step(actions_of(draw, ours))
    for _ in range(4):
        theirs.step(actions_of(np.random.default_rng(5), theirs))
    theirs.load_state_dict(ours.state_dict())
    first, second = (np.random.default_rng(1) for _ in range(2))
    for _ in range(30):
        assert told(ours.step(actions_of(first, ours))) == told(theirs.step(actions_of(second, theirs)))
    assert ours.finished == theirs.finished and ours.episode == theirs.episode


def test_unknown_names_and_kinds_of_actions_are_one_clear_line() -> None:
    for name, said in {
        "worlds:Nowhere-v0": "gymnasium cannot make 'worlds:Nowhere-v0'",
        "no_such_package:Point-v0": "No module named",
        "not a name": "gymnasium cannot make",
        "": "gymnasium cannot make",
        "worlds:Buttons-v0": "has the action space Discrete(2), and control needs a bounded Box of numbers",
        "worlds:Broken-v0": "making worlds:Broken-v0 failed: RuntimeError: no licence",
    }.items():
        with pytest.raises(UserError) as error:
            make_environment(name)
        assert said in str(error.value) and "\n" not in str(error.value)


def test_unknown_tasks_of_the_control_suite_name_those_there_are() -> None:
    control_suite()
    for name, said in {
        "dm_control/cartpole-fly-v0": "its tasks are balance, balance_sparse",
        "dm_control/carpole-swingup-v0": "domains are acrobot",
        "dm_control/": "domains are acrobot",
    }.items():
        with pytest.raises(UserError) as error:
            make_environment(name)
        assert said in str(error.value) and "\n" not in str(error.value)


def test_what_the_control_suite_needs_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from valence.sources import environments

    for found in ({"dm-control": "1.0.50", "mujoco": "4.0.0"}, {"mujoco": "3.17.0"}):

        def version(package: str, found: dict[str, str] = found) -> str:
            if package not in found:
                raise environments.PackageNotFoundError(package)
            return found[package]

        monkeypatch.setattr(environments, "version", version)
        with pytest.raises(UserError, match=r"needs dm-control==1\.0\.50 with mujoco==3\.17\.0 \(found .*pip install"):
            make_environment(SUITE)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("Raises", r"failed in episode 0 of environment 1: RuntimeError: the motor is off"),
        ("NanReward", "gave a reward of nan"),
        ("NanObservation", "observation that is not all finite"),
    ],
)
def test_what_goes_wrong_on_the_way_is_one_clear_line(name: str, said: str) -> None:
    rest = iter(["Point", name])
    crew = Crew(lambda: make_environment(f"worlds:{next(rest)}-v0"), 2, seed=0)
    with pytest.raises(UserError, match=said) as error:
        for _ in range(7):
            crew.step([np.zeros(1, dtype=np.float32)] * 2)
    assert "\n" not in str(error.value)
    # Six steps went well.
    assert len(crew._actions[0]) == 7 and len(crew._actions[1]) == 6


def python(code: str, path: Path | None = None) -> str:
    settings = {**os.environ, "MUJOCO_GL": "disable"} | ({} if path is None else {"PYTHONPATH": str(path)})
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=settings, timeout=120)
    assert run.returncode == 0, run.stderr
    return run.stdout.splitlines()[-1]


def test_triton_comes_before_the_control_suite(tmp_path: Path) -> None:
    """The other way round, with EGL, ends in a segmentation fault; see `_control_suite`."""
    control_suite()
    (tmp_path / "triton.py").write_text("import sys\nlate = 'dm_control' in sys.modules\n")
    code = f"from valence.sources.environments import make_environment; make_environment('{SUITE}'); import sys; "
    assert python(code + "print(sys.modules['triton'].late, 'dm_control' in sys.modules)", tmp_path) == "False True"


@pytest.mark.slow
def test_torch_compiles_after_the_control_suite() -> None:
    control_suite()
    code = f"from valence.sources.environments import make_environment; e = make_environment('{SUITE}'); e.reset(0); "
    assert python(code + "import torch._dynamo; print('alive')") == "alive"
