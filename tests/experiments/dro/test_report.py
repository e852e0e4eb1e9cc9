"""The DRO experiment's lines, intervals, claims and picture from made-up rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from experiments.dro.report import PAPER, check_claims, compare_lines, interval, plot, sweep_lines
from experiments.dro.run import TUNED, UNTUNED, list_sweeps
from experiments.dro.training import FOLDS, Setting, side_by_side


def result(setting: Setting, win: float, select: float = 0.0, better: int = 600) -> dict[str, Any]:
    """A row whose first `better` of 1,000 completions are judged 1, the others 0."""
    judged = [float(place % 1000 < better) for place in range(1000)]
    return {
        "setting": vars(setting), "win": win, "select": select, "folds": [win - 1, win, win, win, win + 1],
        "win_same_length": win, "best_step": 10, "reward": 0.1, "judge": 50.0, "kl_policy_ref": 1.0, "distinct_2": 0.9,
        "words": 10.0, "value": 0.5, "texts": [" a b"] * 1000, "judged": judged,
    }  # fmt: skip


def test_side_by_side_counts_folds_and_ties() -> None:
    first, second = result(Setting("dro"), 0, better=600), result(Setting("kto"), 0, better=400)
    found = side_by_side(first, second)
    # 400 ties of both good, 200 wins, 400 ties of both bad.
    assert found["win"] == pytest.approx(60.0)
    assert found["folds"] == pytest.approx([60.0] * FOLDS)
    assert found["win_same_length"] is None


def test_the_interval_is_of_all_folds() -> None:
    """Folds 49, 50, 50, 50, 51: standard deviation sqrt(1/2), half-width 1.96 sqrt(1/10)."""
    mean, low, high = interval([result(Setting("dro"), 50.0)])
    assert (mean, high - low) == (50.0, pytest.approx(2 * 1.96 * 0.1**0.5))


def papers(scale: float = 1.0) -> dict[str, list[dict[str, Any]]]:
    found = {}
    for figure, settings in list_sweeps().items():
        wins = PAPER.get(figure, (None,) * len(settings))
        found[figure] = [result(one, scale * (win or 70.0)) for one, win in zip(settings, wins, strict=True)]
    return found


def test_claims_hold_on_the_papers_figures_and_fail_on_their_negatives() -> None:
    names = [*UNTUNED, *TUNED]
    good = {name: [result(Setting("dro"), win, better=better)] for name, win, better in
            zip(names, (78.9, 67.5, 79.0, 68.0), (700, 400, 700, 400), strict=True)}  # fmt: skip
    assert all(claim.holds for claim in check_claims(good, good, papers()))
    bad = {name: [result(Setting("dro"), 40.0, better=better)] for name, better in
           zip(names, (400, 700, 400, 700), strict=True)}  # fmt: skip
    upside_down = check_claims(bad, bad, papers(-1.0))
    # Ranges do not know up from down.
    kept = [claim.claim for claim in upside_down if claim.holds]
    assert [text.partition(" ")[0] for text in kept] == ["the", "stable"]


def test_lines_have_the_papers_figures_beside_ours() -> None:
    compared = {name: [result(Setting("dro", seed=seed), win) for seed in (1, 2)] for name, win in
                zip(UNTUNED, (60.0, 55.0), strict=True)}  # fmt: skip
    base = [{key: row[key] for key in row if key != "win"} for row in compared["KTO"]]
    for figure, paper in (("1", (78.9, 67.5, 63.4)), ("2", (81.5, 78.2, 57.5))):
        lines = compare_lines({"SFT": base, **compared}, figure)
        assert [line["paper"] for line in lines] == ["", *paper]
        assert [line["win"] for line in lines] == [50.0, 60.0, 55.0, 50.0]
        assert {line["figure"] for line in lines} == {figure}
    assert [line["paper"] for line in sweep_lines(papers()) if line["figure"] == "5"] == [76.6, "", 55.5, "", 72.1]


def test_the_picture_has_ours_beside_the_papers(tmp_path: Path) -> None:
    compared = {"SFT": [result(Setting("sft"), 50.0)]} | {
        name: [result(Setting("dro"), win)] for name, win in zip(UNTUNED, (60.0, 55.0), strict=True)
    }
    found = papers() | {"DRO-V lr": [result(Setting("kto"), 70.0)]}
    panels = plot(compare_lines(compared), found, tmp_path / "dro.png").axes
    titles = [panel.get_title() for panel in panels]
    assert titles[:5] == [
        "Figs. 1, 2: over SFT, and side by side (*: best of 6)", "Fig. 3: learning rates of DRO-V",
        "Fig. 4: regularisation", "Fig. 5: a value per …, by which network", "every run of the sweeps",
    ]  # fmt: skip
    assert [tick.get_text() for tick in panels[0].get_xticklabels()] == ["DRO-V", "KTO", "DRO-V\nover KTO"]
    legend = [text.get_text() for text in panels[1].get_legend().get_texts()]
    assert legend == ["joint, ours", "joint, paper", "value, ours", "value, paper"]
    assert panels[2].lines[0].get_xydata().tolist() == [[0.1, 70.5], [1.0, 78.9], [5.0, 76.6]]
    assert panels[2].get_xscale() == "log" and not panels[5].axison
    (alone,) = plot(compare_lines(compared), {}, tmp_path / "alone.png").axes
    assert alone.get_ylabel() == "win rate, %"
