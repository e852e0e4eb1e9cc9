"""`valence reproduce bandit`: the smoke size end to end, its table from made-up runs, and pycma counted fairly."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from valence.reproduce import bandit
from valence.reproduce.bandit_runs import TARGET, Problem, Task, run_task

SPHERE = Problem("sphere", 2)
NOWHERE = "random labels get nowhere: none solved, and the best seen is above a hundredth of random search's"


def test_smoke_writes_its_page_and_says_what_does_not_hold(tmp_path: Path) -> None:
    path = bandit.run(tmp_path / "out", "smoke", None)
    result = json.loads(path.read_text())
    assert {row["method"] for row in result["rows"]} == {*bandit.PROTOCOL, *bandit.PRODUCT, bandit.LOTS}
    claims = {claim["claim"]: claim["holds"] for claim in result["claims"]}
    # One function is too few for the others.
    assert list(claims) == [NOWHERE] and claims[NOWHERE]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"results.json", "README.md", "bandit.png"}
    assert "Infinity" not in path.read_text() and "NaN" not in path.read_text()


def made_run(method: str, evaluations: float, seed: int = 0, problem: Problem = SPHERE) -> dict[str, Any]:
    task = {"part": "product", "problem": problem, "method": method, "seed": seed, "limit": 500}
    return task | {"evaluations": evaluations, "best": 1e-7 if evaluations < math.inf else 0.01}


def test_rows_are_medians_over_pycma_with_failures_as_infinite() -> None:
    runs = [made_run(bandit.BASELINE, count, seed) for seed, count in enumerate((100.0, 200.0, 300.0))]
    runs += [made_run("PMPO-AR", count, seed) for seed, count in enumerate((500.0, math.inf, 100.0))]
    runs += [made_run("PMPO-R", count, seed) for seed, count in enumerate((math.inf, math.inf, 100.0))]
    rows = {row["method"]: row for row in bandit.product_rows(runs)}
    assert (rows["PMPO-AR"]["median evaluations"], rows["PMPO-AR"]["over pycma"]) == (500, 2.5)
    assert (rows["PMPO-AR"]["solved"], rows["PMPO-AR"]["of"]) == (2, 3)
    assert rows["PMPO-R"]["over pycma"] == "—"


@pytest.mark.parametrize("lots, ratio, holds", [(math.inf, 250.0, (True, True)), (90.0, 251.0, (False, False))])
def test_claims_can_fail(lots: float, ratio: float, holds: tuple[bool, bool]) -> None:
    runs = [made_run(name, 100.0, problem=problem) for name in bandit.PRODUCT for problem in bandit.SOLVED]
    runs = [run | {"evaluations": ratio} if run["method"] == "PMPO-AR" else run for run in runs]
    claims = {
        claim.claim: claim for claim in bandit.check_claims(bandit.product_rows([*runs, made_run(bandit.LOTS, lots)]))
    }
    found = claims["PMPO-AR: at most 2.5 times pycma's evaluations there"].holds
    assert (found, claims[NOWHERE].holds) == holds


def test_the_papers_protocol_is_judged_on_all_its_functions() -> None:
    row = {"part": "A", "dim": 2, "left": 0.0, "KL": "1.0"}
    rows = [row | {"function": name, "method": method} for name in bandit.PAPER for method in bandit.PROTOCOL]
    assert [claim.holds for claim in bandit.check_claims(rows)] == [True] * 4 + [False]
    assert not bandit.check_claims(rows[5:])


def test_every_method_begins_at_the_same_place_off_the_optimum() -> None:
    for problem in (*bandit.TUNED, *bandit.UNSEEN):
        low, high = problem.bounds
        starts = [problem.start(seed) for seed in range(20)]
        assert all(((low <= start) & (start <= high)).all() for start in starts)
        assert min(problem.function()(start) for start in starts) > TARGET
        centre = starts[0] * 0 + (low + high) / 2
        assert problem.function()(centre) > 0.1 * TARGET


@pytest.mark.parametrize("method", ["PMPO-AR", "PMPO-R, exact KL", "CMA-ES (pycma)"])
def test_a_product_run_is_the_same_twice_and_ends_at_its_limit(method: str) -> None:
    pytest.importorskip("cma")
    first, second = (run_task(Task("product", SPHERE, method, 100, 3000))["evaluations"] for _ in range(2))
    assert first == second and 20 < first < 3000
    assert run_task(Task("product", SPHERE, method, 100, 12))["evaluations"] == math.inf


def test_random_search_counts_to_its_limit() -> None:
    assert run_task(Task("product", SPHERE, "random search", 100, 50))["evaluations"] == math.inf


def test_rejections_without_a_kl_run_away_in_the_papers_protocol() -> None:
    kept, lost = (run_task(Task("paper", SPHERE, method, 100, 200)) for method in ("PMPO-R", "PMPO-R beta=0"))
    assert kept["kl"] < 10 < lost["kl"]
    assert kept["curve"][0] == lost["curve"][0] and len(kept["curve"]) == 5
