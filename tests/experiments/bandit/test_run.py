"""The bandit experiment's single runs: fair starts, counts and repeats; and its smoke size."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from experiments.bandit import report
from experiments.bandit.methods import PYCMA, TARGET, Problem, Setting, run_setting
from experiments.bandit.run import SIZES, list_settings, run
from experiments.common.experiment import Experiment

SPHERE = Problem("sphere", 2)


def product(method: str, limit: int) -> float:
    return run_setting(Setting(method, 100, part="product", problem=SPHERE, limit=limit))["evaluations"]


def test_every_method_begins_at_the_same_place_off_the_optimum() -> None:
    for problem in (*report.TUNED, *report.UNSEEN):
        low, high = problem.bounds
        starts = [problem.start(seed) for seed in range(20)]
        assert all(((low <= start) & (start <= high)).all() for start in starts)
        assert min(problem.function()(start) for start in starts) > TARGET
        centre = starts[0] * 0 + (low + high) / 2
        assert problem.function()(centre) > 0.1 * TARGET


def test_limits_are_evaluations_per_dimension() -> None:
    settings = list_settings(SIZES["full"])
    limits = {(one.part, one.problem.dim): one.limit for one in settings}
    assert limits == {("product", 2): 20_000, ("product", 10): 60_000, ("paper", 2): 3000}
    assert {one.problem.name for one in settings if one.name == report.LOTS} == {"sphere"}
    assert len({(one.name, one.seed, one.part, one.problem) for one in settings}) == len(settings)


@pytest.mark.parametrize("method", ["PMPO-AR", "PMPO-R, exact KL", PYCMA])
def test_a_product_run_is_the_same_twice_and_ends_at_its_limit(method: str) -> None:
    pytest.importorskip("cma")
    first, second = (product(method, 3000) for _ in range(2))
    assert first == second and 20 < first < 3000
    assert product(method, 12) == math.inf


def test_random_search_counts_to_its_limit() -> None:
    assert product("random search", 50) == math.inf


@pytest.mark.slow
def test_rejections_without_a_kl_run_away_in_the_papers_protocol() -> None:
    setting = Setting("PMPO-R", 100, part="paper", problem=SPHERE, limit=200)
    kept, lost = (run_setting(one) for one in (setting, replace(setting, name="PMPO-R beta=0")))
    assert kept["kl"] < 10 < lost["kl"]
    assert kept["curve"][0] == lost["curve"][0] and len(kept["curve"]) == 5


@pytest.mark.slow
def test_smoke_writes_its_page_and_claims_only_what_was_run(tmp_path: Path) -> None:
    path = run(Experiment("bandit", SIZES["smoke"], tmp_path / "out", "smoke"))
    result = json.loads(path.read_text())
    assert {row["method"] for row in result["rows"]} == {*report.PROTOCOL, *report.PRODUCT, report.LOTS}
    # One function is too few for the other claims.
    (claim,) = result["claims"]
    assert claim["claim"].startswith("random labels get nowhere") and claim["holds"]
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert files == {"results.json", "README.md", "bandit.png", "runs"}
    assert "Infinity" not in path.read_text() and "NaN" not in path.read_text()
