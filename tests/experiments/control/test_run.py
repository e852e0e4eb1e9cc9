"""The control experiment's list of runs, and that a run is made once and reported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from experiments.common.experiment import Experiment, key
from experiments.control import run as control
from experiments.control.run import AGENT, SIZES, list_settings


def test_every_run_has_a_folder_of_its_own_that_depends_on_the_agent() -> None:
    settings = list_settings("full")
    names = [key(one, AGENT) for one in settings]
    # 14 methods on the cartpole with 3 seeds; 3 on two larger tasks with 2; 3 methods at 5 betas.
    assert len(set(names)) == len(names) == 3 * 14 + 2 * 2 * 3 + 15
    assert key(settings[0], AGENT | {"lr": 2e-3}) != names[0]


def test_a_run_that_fails_is_reported_as_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run_setting(setting: Any, agent: Any, folder: Path) -> dict[str, Any]:
        if setting.name == "MPO":
            raise ValueError("no room")
        return {"task": setting.task, "part": setting.part, "steps": 400, "repeat": 8, "options": {},
                "curve": [[400, 10.0]], "returns": [10.0], "seconds": 1.0}  # fmt: skip

    monkeypatch.setattr(control, "run_setting", run_setting)
    result = json.loads(control.run(Experiment("control", SIZES["smoke"], tmp_path, "smoke")).read_text())
    assert result["not_run"] == ["main-cartpole-swingup-v0-MPO-0"]
    assert [row["method"] for row in result["rows"]] == ["PMPO-AR"]
    assert "Of 2 runs 1 are missing: main-cartpole" in (tmp_path / "README.md").read_text()
    assert "MPO seed 0 FAILED: no room" in capsys.readouterr().out


@pytest.mark.slow
def test_smoke_writes_everything_and_a_finished_run_is_not_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("dm_control", reason="needs the control extra")
    experiment = Experiment("control", SIZES["smoke"], tmp_path, "smoke")
    result = json.loads(control.run(experiment).read_text())
    assert [row["method"] for row in result["rows"]] == ["MPO", "PMPO-AR"] and result["not_run"] == []
    page = (tmp_path / "README.md").read_text()
    assert "control.png" in page and "sweep.png" not in page and "Claims" not in page and "missing" not in page
    monkeypatch.setattr("valence.runs.control.control", lambda *_, **__: pytest.fail("ran again"))
    assert json.loads(control.run(experiment).read_text())["rows"] == result["rows"]
