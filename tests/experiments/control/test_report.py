"""The control experiment's table, claims and pictures from made-up runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from experiments.common.statistics import bootstrap_interval
from experiments.control.report import check_claims, plot_curves, plot_sweep, summarize

CARTPOLE = "dm_control/cartpole-swingup-v0"


@pytest.fixture(autouse=True)
def few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer bootstrap draws: the tests' returns are far apart."""

    def draw(strata: Any, draws: int = 200) -> tuple[float, float]:
        return bootstrap_interval(strata, draws=min(draws, 200))

    monkeypatch.setattr("experiments.control.report.bootstrap_interval", draw)


def finished(name: str, *returns: float, part: str = "main", steps: int = 100_000) -> list[dict[str, Any]]:
    about = {"name": name, "task": CARTPOLE, "part": part, "steps": steps, "options": {}, "repeat": 8}
    return [about | {"seed": seed, "curve": [[steps, float(value)]]} for seed, value in enumerate(returns)]


def test_summary_by_hand() -> None:
    rows = summarize(finished("MPO", 700, 800, 600) + finished("PMPO-AR", 500))
    assert rows[0]["return"] == pytest.approx(700) and rows[0]["published"] == 792 and rows[0]["seeds"] == 3
    assert rows[0]["low"] < 700 < rows[0]["high"]
    assert rows[1]["return"] == 500 and rows[1]["published"] == ""


def judged(*runs: list[dict[str, Any]]) -> dict[str, bool]:
    return {claim.claim: claim.holds for claim in check_claims([run for group in runs for run in group])}


def test_claims_can_hold_and_can_fail() -> None:
    good = judged(
        finished("MPO", 720, 730, 740), finished("PMPO-AR", 735, 725, 700), finished("PMPO-R", 600, 610, 620),
        finished("PMPO-R beta=2", 500, part="sweep"), finished("PMPO-R beta=1", 30, part="sweep"),
        finished("PMPO-AR best/worst", 700, 710, 720), finished("DPO", 300, 310, 320),
    )  # fmt: skip
    # R's interval ends below MPO's: only that claim fails.
    assert [name for name, holds in good.items() if not holds] == [
        "PMPO-R is not below MPO within intervals, cartpole-swingup"
    ]
    bad = judged(
        finished("MPO", 700, 701, 702), finished("PMPO-AR", 400, 410, 420), finished("PMPO-R", 10, 20, 30),
        finished("PMPO-R beta=2", 35, part="sweep"), finished("PMPO-R beta=1", 30, part="sweep"),
        finished("PMPO-AR best/worst", 300, 310, 320), finished("DPO", 700, 710, 720),
    )  # fmt: skip
    assert bad.keys() == good.keys() and not any(bad.values()) and len(good) == 6


def test_claims_hold_like_against_like() -> None:
    """Both betas, mean and spread apart and together; DPO against both; MPO's share is in the text."""
    found = check_claims(
        finished("MPO", 396, 396) + finished("PMPO-AR beta=0.5 coupled", 500, 510) + finished("DPO", 400, 400)
        + finished("PMPO-AR best/worst coupled", 420, 420) + finished("PMPO-AR best/worst", 500, 500)
    )  # fmt: skip
    assert [claim.holds for claim in found] == [False, True, False, True]
    assert "50% of its published return" in found[1].ours


def test_curves_have_a_panel_for_each_kind_of_policy_and_the_published_return(tmp_path: Path) -> None:
    runs = finished("MPO", 700, 800, 750) + finished("PMPO-R", 300) + finished("MPO, categorical", 500)
    gaussian, categorical = plot_curves(runs, tmp_path / "control.png").axes
    assert gaussian.get_title() == "cartpole-swingup" and categorical.get_title() == "cartpole-swingup, categorical"
    assert gaussian.get_xlabel() == "thousand environment steps" and "95% interval" in gaussian.get_ylabel()
    labels = [text.get_text() for text in gaussian.get_legend().get_texts()]
    assert labels == ["MPO (3)", "PMPO-R (1)", "MPO, published, at the end"]
    assert gaussian.lines[0].get_xydata().tolist() == [[100, 750]]
    assert set(gaussian.lines[2].get_ydata()) == {792.0}


def test_the_sweep_is_over_beta(tmp_path: Path) -> None:
    runs = [
        run
        for beta, value in ((2, 500), (0, 20), (1, 30))
        for run in finished(f"PMPO-R beta={beta}", value, part="sweep")
    ]
    (panel,) = plot_sweep(runs, tmp_path / "sweep.png").axes
    assert panel.lines[0].get_xydata().tolist() == [[0, 20], [1, 30], [2, 500]]
    assert panel.get_legend().get_texts()[0].get_text() == "PMPO-R" and "KL(π_ref‖π)" in panel.get_xlabel()
