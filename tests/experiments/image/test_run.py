"""The image experiment: which learning rate is chosen, that methods are tuned alike, and its smoke size."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from experiments.common.experiment import TUNING_SEED, Experiment
from experiments.common.statistics import bootstrap_interval
from experiments.image import run as image
from experiments.image.run import METHODS, RATES, SIZES, Setting, best_rate
from valence.runs.improve import steps_per_batch


@pytest.fixture(autouse=True)
def few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer bootstrap draws: the tests' rows are far apart."""
    monkeypatch.setattr("experiments.image.report.bootstrap_interval", partial(bootstrap_interval, draws=200))


def point(queries: int, reward: float, judge: float = 1.0, spread: float = 0.1) -> dict[str, Any]:
    """Twenty images."""
    values: list[float | None] = [reward + spread * (place - 9.5) / 10 for place in range(20)]
    right = round(20 * judge)
    return {"queries": queries, "reward": values, "judge": [1.0] * right + [0.0] * (20 - right), "kl": queries / 100}


def result(
    name: str, curve: tuple[float, ...], *, seed: int = 0, lr: float = 3e-3, judge: float = 1.0
) -> dict[str, Any]:
    points = [point(320 * place, value, judge if place else 1.0) for place, value in enumerate(curve)]
    setting = vars(Setting(name, seed, {"lr": lr}))
    return {"name": name, "seed": seed, "setting": setting, "seconds": 1.0, "evaluations": points}


def test_the_best_rate_keeps_the_digits() -> None:
    rows = [result("PPO", (0.0, reward), lr=lr, judge=judge) for lr, reward, judge in
            ((1e-3, 0.5, 1.0), (3e-3, 0.7, 1.0), (1e-2, 2.0, 0.95))]  # fmt: skip
    # Of twenty images 95% is not surely nine in ten.
    assert best_rate(rows) == 3e-3
    assert best_rate([*rows[2:], result("PPO", (0.0, 0.1), lr=6e-3, judge=0.8)]) == 1e-2


def test_the_epochs_are_those_of_the_paper() -> None:
    """They are given to each run, so that its batches can be counted: REBEL's table has one, PPO's two."""
    for name, options in METHODS.items():
        if name != "REBEL, two epochs":
            steps = steps_per_batch("improve-images", options["method"], batch_size=8, preset=options["preset"])
            assert steps == options["num_epochs"]


def test_every_method_is_tuned_alike_on_a_seed_that_is_not_reported(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[Setting] = []

    def run_all(self: Any, function: Any, settings: list[Setting], *_: Any, **__: Any) -> list[dict[str, Any]]:
        asked.extend(settings)
        return [result(one.name, (0.0, one.options["lr"]), seed=one.seed, lr=one.options["lr"]) for one in settings]

    monkeypatch.setattr(Experiment, "run_all", run_all)
    monkeypatch.setattr(image, "plot_grids", lambda grids, path: path.write_bytes(b""))
    full = SIZES["full"]
    found = json.loads(image.run(Experiment("image", full, tmp_path)).read_text())
    tuned = [one for one in asked if one.seed == TUNING_SEED]
    assert TUNING_SEED not in full.seeds
    assert [(one.name, one.options["lr"]) for one in tuned] == [(name, rate) for name in METHODS for rate in RATES]
    assert {one.every for one in tuned} == {full.batches} and {one.every for one in asked[len(tuned) :]} == {full.every}
    best = dict.fromkeys(METHODS, max(RATES))
    assert found["learning_rates"] == best and len(asked) == len(tuned) + 3 * len(METHODS)
    assert found["verdict"] and found["verdict"] in (tmp_path / "README.md").read_text()


@pytest.mark.slow
def test_smoke(tmp_path: Path) -> None:
    pytest.importorskip("diffusers")
    experiment = Experiment("image", SIZES["smoke"], tmp_path, "smoke")
    found = json.loads(image.run(experiment).read_text())
    first, last = found["runs"][0]["evaluations"]
    assert first["kl"] == 0 and last["kl"] > 0 and last["queries"] == 32 and 0 <= last["judge"] <= 1
    assert "grids.png" in (tmp_path / "README.md").read_text()
    assert json.loads(image.run(experiment).read_text())["rows"] == found["rows"]
