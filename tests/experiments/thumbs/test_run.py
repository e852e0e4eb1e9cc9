"""The thumbs experiment: the rows that a setting sees, its rules of choice, and its smoke size."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from experiments.common.experiment import Experiment
from experiments.thumbs.run import GRIDS, SIZES, SMOKE, Setting, choose, list_settings, run, select_rows


def test_shuffled_labels_keep_their_number_and_lose_their_sentence() -> None:
    rows = [{"completion": str(n), "accept": n < 30} for n in range(60)]
    shuffled = select_rows(rows, Setting("s", 3, rows="shuffled"))
    assert sum(row["accept"] for row in shuffled) == 30
    assert [row["completion"] for row in shuffled] == [row["completion"] for row in rows]
    assert 10 < sum(row["accept"] for row in shuffled[:30]) < 20
    assert [row["accept"] for row in select_rows(rows, Setting("r", rows="rejected"))] == [False] * 30


def row(positive: float, kl: float, distinct: float = 0.6) -> dict[str, Any]:
    return {"positive": positive, "kl_policy_ref": kl, "distinct_2": distinct}


def test_choose_takes_the_most_positive_within_the_limits() -> None:
    rows = [row(60, 1), row(80, 3.4), row(95, 3.6), row(90, 2, distinct=0.4)]
    assert choose(rows, {"distinct_2": 0.6}) is rows[1]
    assert choose([row(95, 30), row(90, 9)], {"distinct_2": 0.6})["positive"] == 90


def test_every_method_has_the_same_tuning_effort_and_is_run_with_every_seed() -> None:
    assert {len(grid) for grid in GRIDS.values()} == {3}
    chosen = {name: grid[0] for name, grid in GRIDS.items()}
    settings = list_settings(SIZES["full"], chosen, smoke=False)
    names = ["reference", *GRIDS, "shuffled labels"]
    assert [(one.name, one.seed) for one in settings if "beta=" not in one.name] == [
        (name, seed) for seed in (0, 1, 2) for name in names
    ]
    unbounded = [one for one in settings if "beta=" in one.name]
    assert [(one.options["beta"], one.seed, one.rows) for one in unbounded] == [
        (1.0, 0, "rejected"), (0.0, 0, "rejected"),
    ]  # fmt: skip
    assert all("preset" not in one.options and one.options["alpha"] == 0 for one in unbounded)


@pytest.mark.slow
def test_smoke(tmp_path: Path) -> None:
    path = run(Experiment("thumbs", SIZES["smoke"], tmp_path, "smoke"))
    result = json.loads(path.read_text())
    assert [line["method"] for line in result["rows"]] == ["reference", *SMOKE]
    moved = {line["method"]: line["kl_policy_ref"] for line in result["rows"]}
    assert moved["reference"] == 0
    assert all(0 < kl < 5 for name, kl in moved.items() if name != "reference")
    assert len([text for text in (tmp_path / "runs").glob("*.txt") if len(text.read_text().splitlines()) >= 16]) == 2
