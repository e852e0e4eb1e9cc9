"""`valence offline-control`: a folder of episodes in, a policy out that acts on raw observations in raw units."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from valence.data.episodes import Episode, write_episodes
from valence.errors import UserError
from valence.policies.runner import PolicyRunner
from valence.runs.offline_control import fit_value, offline_control, unscale
from valence.runs.offline_control_config import OfflineControlOptions
from valence.sources.episodes import tabulate

pytest.importorskip("h5py", reason="needs the control extra")


def bandit(folder: Path, *, label: bool, half: float = 1.0, count: int = 300) -> Path:
    """One-step episodes: the action -half/2 or +half/2 and noise, at observations far from 0; + is rewarded."""
    random = np.random.default_rng(0)
    episodes = []
    for place in range(count):
        side = 1 if place % 2 else -1
        action = np.array([[side * half / 2 + 0.05 * half * random.normal()]], np.float32)
        seen = (50 + 3 * random.normal(size=(2, 2))).astype(np.float32)
        labels = np.array([side]) if label else None
        episodes.append(Episode(seen, action, np.array([float(side)], np.float32), True, labels))
    return write_episodes(folder, episodes, dataset_id="bandit").parent


def options(**more: Any) -> OfflineControlOptions:
    return OfflineControlOptions(steps=250, batch_size=100, hidden=(16,), min_scale=0.1, lr=5e-3, **more)


@pytest.mark.parametrize(("use", "least", "most"), [("both", 0.3, 1.0), ("clone", -0.2, 0.2), ("reject", 0.1, 1.0)])
def test_what_the_policy_does(use: str, least: float, most: float, tmp_path: Path) -> None:
    # Cloned alone, the mean lies between the two actions; rejections push it, acceptances pull it, to the better one.
    losses = {"both": {}, "clone": {"use": ("clone",)}, "reject": {"use": ("reject", "clone")}}[use]
    result = offline_control(bandit(tmp_path / "data", label=True), tmp_path / "out", options(**losses))
    assert (result.accepted, result.rejected, result.transitions) == (150, 150, 300)
    assert least < PolicyRunner.load(tmp_path / "out").act(np.array([50.0, 50.0]))[0] < most


def test_actions_beyond_one_are_scaled_and_come_back(tmp_path: Path) -> None:
    data = bandit(tmp_path / "data", label=True, half=8.0)
    offline_control(data, tmp_path / "out", options())
    runner = PolicyRunner.load(tmp_path / "out")
    assert runner.high[0] > 3 and 1.5 < runner.act(np.array([50.0, 50.0]))[0] < runner.high[0]


def test_labels_are_made_from_rewards_where_none_are_given(tmp_path: Path) -> None:
    result = offline_control(bandit(tmp_path / "data", label=False), tmp_path / "out", options(expectile=0.5))
    # V is about 0, the mean of +1 and -1, but for an outlier that the network fits: what was rewarded is accepted.
    assert abs(result.accepted - 150) <= 5 and result.accepted + result.rejected == 300
    assert json.loads((tmp_path / "out" / "results.json").read_text())["accepted"] == result.accepted


def test_the_first_layer_takes_the_scaling_in(tmp_path: Path) -> None:
    from valence.policies.gaussian import GaussianPolicy

    random = np.random.default_rng(1)
    seen = (random.normal(size=(6, 3)) * [1, 10, 100] + [5, -5, 0]).astype(np.float32)
    table = tabulate([Episode(seen, random.normal(size=(5, 2)).astype(np.float32), np.ones(5, np.float32))])
    policy = GaussianPolicy(3, 2, (8,)).double()
    with torch.no_grad():
        policy.head.weight.mul_(100)
    table = type(table)(
        **{name: part.double() if part.is_floating_point() else part for name, part in vars(table).items()}
    )
    before = policy.mode(table.scaled(torch.tensor(seen).double()))
    unscale(policy, table)
    torch.testing.assert_close(policy.mode(torch.tensor(seen).double()), before, rtol=1e-9, atol=1e-9)


def test_alpha_and_beta_follow_the_labels_that_are_there(tmp_path: Path) -> None:
    data = bandit(tmp_path / "data", label=True)
    quick = {"steps": 1, "batch_size": 10, "hidden": (4,)}
    both = offline_control(data, tmp_path / "a", OfflineControlOptions(**quick))
    alone = offline_control(data, tmp_path / "b", OfflineControlOptions(use=("accept", "clone"), **quick))
    complaints = offline_control(data, tmp_path / "c", OfflineControlOptions(use=("reject", "clone"), **quick))
    # Half of the labelled are rejected: (1 - alpha) / rho = 0.5 / 0.5; nothing to bound; 1 / 0.5.
    assert [(r.alpha, r.beta) for r in (both, alone, complaints)] == [(0.5, 1.0), (1.0, 1.0), (0.0, 2.0)]


def test_bad_input_is_one_clear_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from valence.cli.main import main

    unlabelled = bandit(tmp_path / "data", label=False, count=4)
    with pytest.raises(UserError, match="carry no labels"):
        offline_control(unlabelled, tmp_path / "out", options(labels="given"))
    for words, said in {
        ("nowhere",): "no Minari data set",
        (str(unlabelled), "--discount", "1"): "discount is 1",
        (str(unlabelled), "--labels", "mine"): "mine",
        (str(unlabelled), "--steps", "0"): "steps is 0",
    }.items():
        with pytest.raises(SystemExit) as stop:
            main(["offline-control", *words, "--out", str(tmp_path / "x")])
        lines = capsys.readouterr().err.strip().splitlines()
        assert stop.value.code == 2 and len(lines) == 1 and said in lines[0]
    assert not (tmp_path / "x").exists()


def test_values_of_episodes_that_truly_end_reach_nought(tmp_path: Path) -> None:
    # -1 a step until the goal, one to six steps away: V is minus the steps left (nearly), not that of -1 for ever.
    episodes = []
    for length in [1, 2, 3, 4, 5, 6] * 10:
        left = np.arange(length, -1, -1, dtype=np.float32)[:, None]
        episodes.append(Episode(left, np.zeros((length, 1), np.float32), -np.ones(length, np.float32), True))
    table = tabulate(episodes)
    value = fit_value(table, seed=0, steps=200, discount=0.98, trace=0.9, expectile=0.5, hidden=(32,), batch_size=128)
    for steps, expected in ((1, -1.0), (6, -(1 - 0.98**6) / 0.02)):
        assert float(value[steps - 1, 0]) == pytest.approx(expected, abs=0.7)


def test_rejections_without_cloning_are_refused_and_rho_counts_all_labels(tmp_path: Path) -> None:
    data = bandit(tmp_path / "data", label=True)
    with pytest.raises(UserError, match="use clone too"):
        offline_control(data, tmp_path / "a", OfflineControlOptions(use=("accept", "reject"), steps=1))
    random = np.random.default_rng(0)
    few = [
        Episode(
            random.normal(size=(2, 1)).astype(np.float32), np.zeros((1, 1), np.float32), np.zeros(1, np.float32), True,
            np.array([-1 if place % 10 == 0 else 1]),
        )
        for place in range(40)
    ]  # fmt: skip
    data = write_episodes(tmp_path / "few", few, dataset_id="few").parent
    quick = OfflineControlOptions(use=("reject", "clone"), steps=1, batch_size=10, hidden=(4,))
    # One in ten is rejected: nothing less than 1 / 0.1 holds the policy.
    assert offline_control(data, tmp_path / "b", quick).beta == pytest.approx(10.0)
    with pytest.raises(UserError, match="holds a run already"):
        offline_control(data, tmp_path / "b", quick)
