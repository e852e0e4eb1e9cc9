"""`valence offline-control`: a folder of episodes in, a policy out that acts on raw observations in raw units."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from valence.data.episodes import Episode, write_episodes
from valence.errors import UserError
from valence.policies.runner import PolicyRunner
from valence.runs.offline_control import offline_control

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


LEARNING: dict[str, Any] = {
    "steps": 250, "batch_size": 100, "hidden": (16,), "min_scale": 0.1, "lr": 5e-3, "quiet": True,
}  # fmt: skip
QUICK: dict[str, Any] = {"steps": 1, "batch_size": 10, "hidden": (4,), "quiet": True}


@pytest.mark.parametrize(("use", "least", "most"), [("both", 0.3, 1.0), ("clone", -0.2, 0.2), ("reject", 0.1, 1.0)])
def test_what_the_policy_does(use: str, least: float, most: float, tmp_path: Path) -> None:
    # Cloned alone, the mean lies between the two actions; rejections push it, acceptances pull it, to the better one.
    losses = {"both": {}, "clone": {"use": ("clone",)}, "reject": {"use": ("reject", "clone")}}[use]
    result = offline_control(bandit(tmp_path / "data", label=True), tmp_path / "out", **LEARNING, **losses)
    counts = [result.details[name] for name in ("episodes", "transitions", "accepted", "rejected")]
    assert counts == [300, 300, 150, 150] and result.steps == 250 and result.after == result.details["figures"]
    assert least < PolicyRunner.load(tmp_path / "out").act(np.array([50.0, 50.0]))[0] < most


def test_actions_beyond_one_are_scaled_and_come_back(tmp_path: Path) -> None:
    data = bandit(tmp_path / "data", label=True, half=8.0)
    offline_control(data, tmp_path / "out", **LEARNING)
    runner = PolicyRunner.load(tmp_path / "out")
    assert runner.high[0] > 3 and 1.5 < runner.act(np.array([50.0, 50.0]))[0] < runner.high[0]


@pytest.mark.slow
def test_labels_are_made_from_rewards_where_none_are_given(tmp_path: Path) -> None:
    data = bandit(tmp_path / "data", label=False)
    found = offline_control(data, tmp_path / "out", expectile=0.5, **LEARNING).details
    # V is about 0, the mean of +1 and -1, but for an outlier that the network fits: what was rewarded is accepted.
    assert abs(found["accepted"] - 150) <= 5 and found["accepted"] + found["rejected"] == 300
    kept = json.loads((tmp_path / "out" / "results.json").read_text())
    settings = yaml.safe_load((tmp_path / "out" / "config.yaml").read_text())
    assert kept == found | {"settings": settings}
    assert (settings["episodes"], settings["expectile"], settings["hidden"]) == (str(data), 0.5, [16])


def test_alpha_and_beta_follow_the_labels_that_are_there(tmp_path: Path) -> None:
    data = bandit(tmp_path / "data", label=True)

    def weights(name: str, **options: Any) -> tuple[float, float]:
        found = offline_control(data, tmp_path / name, **QUICK, **options).details
        return found["alpha"], found["beta"]

    # Half of the labelled are rejected: (1 - alpha) / rho = 0.5 / 0.5; nothing to bound; 1 / 0.5.
    assert weights("a") == (0.5, 1.0)
    assert weights("b", use=("accept", "clone")) == (1.0, 1.0)
    assert weights("c", use=("reject", "clone")) == (0.0, 2.0)
    assert weights("d", alpha=0.25) == (0.25, 1.5) and weights("e", alpha=0.25, beta=3) == (0.25, 3.0)


def test_bad_input_is_one_clear_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from valence.cli.main import main

    unlabelled = bandit(tmp_path / "data", label=False, count=4)
    with pytest.raises(UserError, match="carry no labels"):
        offline_control(unlabelled, tmp_path / "out", labels="given", **QUICK)
    for words, said in {
        ("nowhere",): "no Minari data set",
        (str(unlabelled), "--discount", "1"): "--discount is 1.0, and must be below 1",
        (str(unlabelled), "--labels", "mine"): "mine",
        (str(unlabelled), "--steps", "0"): "--steps is 0, and must be at least 1",
        (str(unlabelled), "--hidden", "0"): "--hidden is (0,)",
        (str(unlabelled), "--alpha", "2"): "--alpha must be",
        (str(unlabelled), "--method", "mpo"): "--method is 'mpo', and must be one of pmpo",
        (): "episodes missing: valence offline-control EPISODES",
    }.items():
        with pytest.raises(SystemExit) as stop:
            main(["offline-control", *words, "--out", str(tmp_path / "x")])
        lines = capsys.readouterr().err.strip().splitlines()
        assert stop.value.code == 2 and len(lines) == 1 and said in lines[0]
    assert not (tmp_path / "x").exists()


def test_rejections_without_cloning_are_refused_and_rho_counts_all_labels(tmp_path: Path) -> None:
    data = bandit(tmp_path / "data", label=True)
    with pytest.raises(UserError, match="use clone too"):
        offline_control(data, tmp_path / "a", use=("accept", "reject"), **QUICK)
    random = np.random.default_rng(0)
    few = [
        Episode(
            random.normal(size=(2, 1)).astype(np.float32), np.zeros((1, 1), np.float32), np.zeros(1, np.float32), True,
            np.array([-1 if place % 10 == 0 else 1]),
        )
        for place in range(40)
    ]  # fmt: skip
    data = write_episodes(tmp_path / "few", few, dataset_id="few").parent
    quick = QUICK | {"use": ("reject", "clone")}
    # One in ten is rejected: nothing less than 1 / 0.1 holds the policy.
    assert offline_control(data, tmp_path / "b", **quick).details["beta"] == pytest.approx(10.0)
    with pytest.raises(UserError, match="already holds a run: give another `out`"):
        offline_control(data, tmp_path / "b", **quick)
