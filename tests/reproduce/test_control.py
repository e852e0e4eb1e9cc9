"""`reproduce control`: its path from end to end, what it claims, and that it goes on where it stopped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from valence.reproduce import control
from valence.reproduce.control_claims import check_claims
from valence.reproduce.control_report import summarize

CARTPOLE = "dm_control/cartpole-swingup-v0"


def finished(name: str, *returns: float, part: str = "main", steps: int = 100_000) -> list[dict[str, Any]]:
    about = {"name": name, "task": CARTPOLE, "part": part, "steps": steps, "options": {}}
    return [about | {"seed": seed, "curve": [[steps, value]]} for seed, value in enumerate(returns)]


def test_smoke_writes_everything_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("dm_control", reason="needs the control extra")
    path = control.run(tmp_path, "smoke")
    result = json.loads(path.read_text())
    assert [row["method"] for row in result["rows"]] == ["MPO", "PMPO-AR"] and result["not_run"] == []
    assert (tmp_path / "control.png").stat().st_size > 5000
    # Finished runs are not run again.
    monkeypatch.setattr("valence.runs.control.control", lambda *_, **__: pytest.fail("ran again"))
    assert json.loads(control.run(tmp_path, "smoke").read_text())["rows"] == result["rows"]


def test_every_job_has_a_folder_of_its_own() -> None:
    names = [job.folder for job in control.jobs("full")]
    assert len(names) == len(set(names)) and not any(mark in name for name in names for mark in " /=")
    # 13 methods on the cartpole and 3 on two larger tasks, 3 seeds each; 3 methods at 5 betas.
    assert len(names) == 3 * 13 + 3 * 2 * 3 + 15


def test_summary_by_hand() -> None:
    rows = summarize(finished("MPO", 700, 800, 600) + finished("PMPO-AR", 500))
    assert rows[0]["return"] == pytest.approx(700) and rows[0]["published"] == 792 and rows[0]["seeds"] == 3
    assert rows[0]["low"] < 700 < rows[0]["high"]
    assert rows[1]["return"] == 500 and rows[1]["published"] == ""


def test_claims_can_hold_and_can_fail() -> None:
    good = finished("MPO", 720, 730, 740) + finished("PMPO-AR", 735, 725, 700) + finished("PMPO-R", 600, 610, 620)
    good += finished("PMPO-R beta=2", 500, part="sweep") + finished("PMPO-R beta=1", 30, part="sweep")
    good += finished("PMPO-AR best/worst", 700, 710, 720) + finished("DPO", 300, 310, 320)
    assert [claim.holds for claim in check_claims(good)] == [True, True, False, True, True, True]
    # R's interval ends below MPO's: only that claim fails. And all of them can:
    bad = finished("MPO", 700, 701, 702) + finished("PMPO-AR", 400, 410, 420) + finished("PMPO-R", 10, 20, 30)
    bad += finished("PMPO-R beta=2", 20, part="sweep") + finished("PMPO-R beta=1", 30, part="sweep")
    bad += finished("PMPO-AR best/worst", 300, 310, 320) + finished("DPO", 700, 710, 720)
    assert not any(claim.holds for claim in check_claims(bad))
