"""The bandit experiment's tables, claims and picture from made-up runs."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from experiments.bandit import report
from experiments.bandit.methods import PYCMA, Problem

SPHERE = Problem("sphere", 2)
NOWHERE = "random labels get nowhere: none solved, and the best seen is above a hundredth of random search's"


def made_run(method: str, evaluations: float, seed: int = 0, problem: Problem = SPHERE) -> dict[str, Any]:
    what = {"part": "product", "function": problem.name, "dim": problem.dim, "name": method, "seed": seed, "limit": 500}
    return what | {"evaluations": evaluations, "best": 1e-7 if evaluations < math.inf else 0.01}


def test_rows_are_medians_over_pycma_with_failures_as_infinite() -> None:
    runs = [made_run(PYCMA, count, seed) for seed, count in enumerate((100.0, 200.0, 300.0))]
    runs += [made_run("PMPO-AR", count, seed) for seed, count in enumerate((500.0, math.inf, 100.0))]
    runs += [made_run("PMPO-R", count, seed) for seed, count in enumerate((math.inf, math.inf, 100.0))]
    rows = {row["method"]: row for row in report.product_rows(runs)}
    assert (rows["PMPO-AR"]["median evaluations"], rows["PMPO-AR"]["over pycma"]) == (500, 2.5)
    assert (rows["PMPO-AR"]["solved"], rows["PMPO-AR"]["of"]) == (2, 3)
    assert rows["PMPO-R"]["over pycma"] == "—"


@pytest.mark.parametrize("lots, ratio, holds", [(math.inf, 250.0, (True, True)), (90.0, 251.0, (False, False))])
def test_claims_can_fail(lots: float, ratio: float, holds: tuple[bool, bool]) -> None:
    runs = [made_run(name, 100.0, problem=problem) for name in report.PRODUCT for problem in report.SOLVED]
    runs = [run | {"evaluations": ratio} if run["name"] == "PMPO-AR" else run for run in runs]
    rows = report.product_rows([*runs, made_run(report.LOTS, lots)])
    claims = {claim.claim: claim for claim in report.check_claims(rows)}
    found = claims["PMPO-AR: at most 2.5 times pycma's evaluations there"].holds
    assert (found, claims[NOWHERE].holds) == holds


def test_the_papers_protocol_is_judged_on_all_its_functions() -> None:
    row = {"part": "A", "dim": 2, "left": 0.0, "KL": "1.0"}
    rows = [row | {"function": name, "method": method} for name in report.PAPER for method in report.PROTOCOL]
    assert [claim.holds for claim in report.check_claims(rows)] == [True] * 4 + [False]
    assert not report.check_claims(rows[5:])


def test_protocol_rows_are_medians_over_seeds() -> None:
    runs = [
        {"part": "paper", "function": "sphere", "dim": 2, "name": "DPO", "seed": seed, "limit": 50, "value": last,
         "curve": [[0, 8.0], [200, last]], "kl": 1.0, "best": last / 2, "std": 0.25}
        for seed, last in enumerate((1.0, 2.0, 6.0))
    ]  # fmt: skip
    (row,) = report.protocol_rows(runs)
    assert (row["evaluations"], row["first"], row["last"], row["best seen"], row["left"]) == (
        200, "8.0e+00", "2.0e+00", "1.0e+00", 0.25,
    )  # fmt: skip


def test_the_picture_has_a_panel_per_function_and_one_of_ratios(tmp_path: Path) -> None:
    curves = [
        {"part": "paper", "function": function, "name": "DPO", "curve": [[0, 4.0], [200, low]]}
        for function in ("sphere", "schwefel") for low in (1.0, 2.0, 3.0)
    ]  # fmt: skip
    runs = [made_run(PYCMA, 100.0), made_run("PMPO-AR", 250.0)]
    above = report.plot([*curves, *runs], report.product_rows(runs), tmp_path / "bandit.png").axes
    assert [panel.get_title() for panel in above] == ["sphere, 2D", "schwefel, 2D", ""]
    assert all(panel.get_yscale() == "log" for panel in above)
    assert above[0].lines[0].get_ydata().tolist() == [4.0, 2.0]
    assert [text.get_text() for text in above[2].get_legend().get_texts()] == ["PMPO-AR"]
    assert above[2].lines[0].get_ydata().tolist() == [2.5]
    assert [tick.get_text() for tick in above[2].get_xticklabels()] == ["sphere\n2D"]
