"""The general-preference experiment: its choice of settings, and its smoke size."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from experiments.common.experiment import Experiment
from experiments.general_preference.games import RATED, SPO
from experiments.general_preference.run import ETAS, LRS, SIZES, choose, run


def test_choose_takes_the_least_gap_over_games() -> None:
    rows = [{"eta": eta, "gap_average": gap} for eta, gap in ((0.1, 0.5), (0.1, 0.1), (0.3, 0.2), (0.3, 0.2))]
    assert choose(rows, "eta") == 0.3
    assert choose([{"options": {"lr": lr}, "gap_average": lr} for lr in LRS], "options") == {"lr": min(LRS)}
    assert len(ETAS) == len(LRS) == 3


@pytest.mark.slow
def test_smoke(tmp_path: Path) -> None:
    path = run(Experiment("general-preference", SIZES["smoke"], tmp_path, "smoke"))
    result = json.loads(path.read_text())
    assert [(line["form"], line["method"]) for line in result["rows"]] == [
        (form, method) for form in ("exact", "sampled", "improve") for method in (SPO, RATED)
    ]
    exact = {line["method"]: line["gap_average"] for line in result["rows"] if line["form"] == "exact"}
    assert exact[SPO] < 0.02 < 1 < exact[RATED]
    written = [row for row in result["per_seed"] if row["game"] == "text"]
    assert all(len(row["shares"]) == 2 and row["kl_last"] != 0 for row in written)
    assert "holds" in (tmp_path / "README.md").read_text()
