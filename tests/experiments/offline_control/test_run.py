"""The offline-control experiment: its grids, its tuning, and its smoke size with and without the simulator."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiments.common.experiment import TUNING_SEED, Experiment
from experiments.offline_control import run as offline
from experiments.offline_control.report import PAPER
from experiments.offline_control.run import SCARCE, SIZES, grids
from experiments.offline_control.simulator import PickPlace, interpreter
from experiments.offline_control.train import Mixture
from valence.errors import UserError


def test_every_mixture_is_tuned_over_three_settings_and_run_again_with_few_labels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second setting of each mixture is the best one; the runs themselves are made up."""
    asked: list[Mixture] = []

    def run_all(self: Any, function: Any, settings: list[Any], *_: Any, **__: Any) -> list[dict[str, Any]]:
        if function is offline.label_seed:
            return [{"seed": one.seed, "accepted_share": 0.3} for one in settings]
        asked.extend(settings)
        grid = grids()
        return [
            {"name": one.name, "seed": one.seed, "setting": vars(one), "beta": one.beta, "success": 0.5,
             "reward": 2.0 if vars(one) == vars(grid[one.name][1]) | {"seed": one.seed} else 1.0,
             "rewards": [1.0, 2.0] * 5}
            for one in settings
        ]  # fmt: skip

    monkeypatch.setattr(Experiment, "run_all", run_all)
    monkeypatch.setattr(offline, "interpreter", lambda: Path("here"))
    monkeypatch.setattr(offline, "describe", lambda size, labelled: {"accepted_share": 0.3})
    full = SIZES["full"]
    result = json.loads(offline.run(Experiment("offline-control", full, tmp_path)).read_text())
    tuned = [one for one in asked if one.seed == TUNING_SEED]
    assert len(tuned) == 15 and TUNING_SEED not in full.seeds
    reported = [one for one in asked if one.seed != TUNING_SEED and one.every == 1]
    chosen = {name: settings[1] for name, settings in grids().items()}
    assert {one.name: (one.lr, one.beta, one.over_bound) for one in reported} == {
        name: (one.lr, one.beta, one.over_bound) for name, one in chosen.items()
    }
    assert len(reported) == 5 * 5
    few = [one for one in asked if one.every == SCARCE]
    assert {one.name for one in few} == PAPER.keys() - {"BC"} and {one.seed for one in few} == set(full.scarce)
    assert len(result["rows"]) == 10 and len(result["per_seed_few_labels"]) == 3 * 5
    assert "offline-control.png" in (tmp_path / "README.md").read_text()


@pytest.mark.slow
def test_smoke_without_the_simulator(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("h5py", reason="the control extra is not installed")
    monkeypatch.setenv("VALENCE_METAWORLD", str(tmp_path / "nowhere"))
    path = offline.run(Experiment("offline-control", SIZES["smoke"], tmp_path, "smoke"))
    result = json.loads(path.read_text())
    assert [row["name"] for row in result["per_seed"]] == list(PAPER)
    assert all(np.isfinite(row["training"]["loss"]) for row in result["per_seed"])
    assert result["claims"] == [] and "reward" not in result["rows"][0]
    assert "make metaworld" in capsys.readouterr().out
    with pytest.raises(UserError, match="make metaworld"):
        PickPlace()


@pytest.mark.skipif(interpreter() is None, reason="make metaworld has not been run")
def test_the_simulator_repeats_itself() -> None:
    with PickPlace() as task:
        begun = [task.reset(seed) for seed in (3, 4, 3)]
        assert np.array_equal(begun[0], begun[2]) and not np.array_equal(begun[0], begun[1])
        stepped = []
        for _ in range(2):
            task.reset(3)
            stepped.append([task.step(np.array([0.5, -0.5, 1.0, 0.3])) for _ in range(5)])
        for (seen, reward, done), (again, reward_again, _) in zip(*stepped, strict=True):
            assert np.array_equal(seen, again) and reward == reward_again and 0 <= reward <= 1 and not done
        assert task.horizon == 100
