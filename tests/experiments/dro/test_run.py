"""The DRO experiment: what is swept, tuned and compared, and its smoke size."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from experiments.common.experiment import Experiment
from experiments.dro import run as dro
from experiments.dro.report import sweep_lines
from experiments.dro.run import SHARING, SIZES, TUNED, UNTUNED, best, list_sweeps
from experiments.dro.training import FOLDS, LR_FACTOR, Setting
from valence.runs.align import AlignConfig
from valence.runs.settings import configure, to_words


def result(setting: Setting, win: float, select: float = 0.0) -> dict[str, Any]:
    """A made-up row."""
    return {
        "setting": vars(setting), "win": win, "select": select, "folds": [win - 1, win, win, win, win + 1],
        "win_same_length": win, "best_step": 10, "reward": 0.1, "judge": 50.0, "kl_policy_ref": 1.0, "distinct_2": 0.9,
        "words": 10.0, "value": 0.5,
    }  # fmt: skip


def test_the_sweeps_are_the_papers_and_align_takes_them() -> None:
    plan = list_sweeps()
    assert [setting.options()["lr"] / LR_FACTOR for setting in plan["3 joint"]] == pytest.approx(
        [1e-5, 5e-5, 1e-4, 5e-4]
    )
    assert {(one.lr, one.tau) for one in plan["3 value"]} == {(1e-4, 1.0)}
    assert [one.options()["beta"] for one in plan["4 KTO"]] == [0.1, 1.0, 5.0]
    assert [one.tau for one in plan["4 DRO-V"]] == [0.1, 1.0, 5.0]
    assert [(one.value, one.network) for one in plan["5"]] == [("token", "separate"), *SHARING]
    for setting in (one for figure in plan.values() for one in figure):
        words, positional = to_words(AlignConfig, {"feedback": "f", "model": "m", "out": "o"} | setting.options())
        assert configure(AlignConfig, words, positional).method == setting.name


def test_best_is_by_the_prompts_to_choose_by_alone() -> None:
    rows = [result(Setting("kto", tau=tau), win, select) for tau, win, select in ((0.1, 90, 50), (1.0, 60, 70))]
    assert best(rows) == replace(Setting("kto"), tau=1.0)


def test_both_methods_are_tuned_alike_and_the_best_is_compared(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """DRO-V is best at tau 0.1, then at lr 5e-5; KTO at tau 5, and no other rate is better."""
    asked: list[Setting] = []

    def run_all(experiment: Any, settings: list[Setting], size: Any, folder: str) -> dict[Setting, dict[str, Any]]:
        asked.extend(settings)
        liked = {("dro", 0.1, 1e-4): 70.0, ("dro", 0.1, 5e-5): 72.0, ("dro", 1.0, 5e-4): 90.0, ("kto", 5.0, 1e-4): 60.0}
        return {one: result(one, 55.0, liked.get((one.name, one.tau, one.lr), 50.0)) for one in settings}

    monkeypatch.setattr(dro, "run_all", run_all)
    found, chosen = dro.sweep(Experiment("dro", SIZES["full"], tmp_path))
    assert list(chosen) == [*UNTUNED, *TUNED]
    assert chosen["DRO-V"] == Setting("dro") and chosen["KTO"] == chosen["KTO, best of 6"] == Setting("kto", tau=5.0)
    assert chosen["DRO-V, best of 6"] == Setting("dro", tau=0.1, lr=5e-5, value_lr=5e-5)
    for name in ("DRO-V", "KTO"):
        tried = {Setting(**row["setting"]) for row in [*found[f"4 {name}"], *found[f"{name} lr"]]}
        assert len(tried) == 6
    assert len(sweep_lines(found)) == 4 + 4 + 3 + 3 + 5 + 4 + 4
    assert {one.name for one in asked} == {"dro", "kto"}


def test_the_larger_model_is_compared_as_the_first_and_nothing_is_chosen_for_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """All of `run` with made-up rows."""
    asked: list[tuple[str, int, Setting]] = []

    def run_all(experiment: Any, settings: list[Setting], size: Any, folder: str) -> dict[Setting, dict[str, Any]]:
        asked.extend((folder, size.layers, setting) for setting in settings)
        return {one: result(one, 55.0) for one in settings}

    monkeypatch.setattr(dro, "run_all", run_all)
    monkeypatch.setattr(dro, "describe", lambda folder, size: {"parameters": float(size.layers)})
    reported: list[Any] = []
    monkeypatch.setattr(dro, "report", lambda experiment, *rows: reported.extend(rows) or tmp_path)
    dro.run(Experiment("dro", SIZES["full"], tmp_path))
    _, larger, _, data = reported
    assert list(larger) == ["SFT", *UNTUNED] and data == {"parameters": 2.0, "parameters_larger": 6.0}
    mine = [(layers, setting) for name, layers, setting in asked if name == "larger"]
    best_tau = next(setting.tau for name, _, setting in asked if name == "runs" and setting.name == "kto")
    plan = [Setting("sft"), Setting("dro"), Setting("kto", tau=best_tau)]
    assert mine == [(6, replace(one, seed=seed)) for seed in (1, 2) for one in plan]


@pytest.mark.slow
def test_smoke(tmp_path: Path) -> None:
    experiment = Experiment("dro", SIZES["smoke"], tmp_path, "smoke")
    found = json.loads(dro.run(experiment).read_text())
    assert found["lr_factor"] == LR_FACTOR and found["data"]["rows"] == 64
    runs = {row["name"]: row for row in found["runs"]}
    assert runs["sft"]["kl_policy_ref"] == 0
    assert 0 < runs["dro"]["kl_policy_ref"] < 5 and 0 < runs["kto"]["kl_policy_ref"] < 5
    assert all(len(runs[name]["folds"]) == FOLDS and runs[name]["best_step"] == 2 for name in ("dro", "kto"))
    assert runs["dro"]["value"] != 0 and runs["kto"]["value"] is None
    assert all("texts" not in row for row in found["runs"])
    assert {path.name for path in (tmp_path / "samples").iterdir()} == {"SFT.txt", "DRO-V.txt", "KTO.txt"}
    parts = sorted(file.name for file in (tmp_path / "runs").iterdir())
    assert json.loads(dro.run(experiment).read_text())["rows"] == found["rows"]
    assert parts == sorted(file.name for file in (tmp_path / "runs").iterdir())
