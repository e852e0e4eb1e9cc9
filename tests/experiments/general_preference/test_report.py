"""The general-preference experiment's lines, claims and picture from made-up rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from experiments.general_preference.games import RATED, SPO
from experiments.general_preference.report import average, check_claims, plot


def text_row(method: str, seed: int, **more: Any) -> dict[str, Any]:
    return {
        "game": "text", "method": method, "seed": seed, "options": {"lr": 1e-4}, "gap_start": 0.8, "gap_average": 0.1,
        "gap_last": 0.5, "gap_start_by_prompt": 0.9, "gap_average_by_prompt": 0.3, "gap_last_by_prompt": 0.6,
        "average_floor": 0.1, "last_floor": 0.2, "last": [0.9, 0.1, 0.0], "average": [0.4, 0.3, 0.3],
        "shares": [[0.2, 0.1, 0.7]], "kl_iterates": 1.0, "kl_last": 2.0,
    } | more  # fmt: skip


def test_lines_are_means_over_seeds() -> None:
    (line,) = average([text_row(SPO, 0), text_row(SPO, 1, gap_average=0.3)], "improve")
    assert line["gap_average"] == pytest.approx(0.2)
    assert line["gap_average_sd"] == pytest.approx(0.02**0.5)
    assert (line["shares_average"], line["kl"], line["setting"]) == ("0.40 / 0.30 / 0.30", "1.00 / 2.00", "lr=0.0001")


def test_claims_can_fail() -> None:
    name = "rock-paper-scissors"

    def row(method: str, gap: float, last: float) -> dict[str, Any]:
        return {"game": name, "method": method, "gap_average": gap, "gap_last": last}

    def holds(gap: float, slope: float, rated: float, share: float) -> list[bool]:
        games = [row(SPO, gap, 1.0), row(RATED, rated, rated)]
        theirs = text_row(RATED, 0, gap_average=rated, gap_last=rated, last=[share, 1 - share, 0.0])
        ours = text_row(SPO, 0, gap_average=gap, gap_average_by_prompt=gap)
        return [claim.holds for claim in check_claims(games, [{"slope": slope}], games, [ours, theirs])]

    assert holds(0.01, -0.5, 1.5, 0.9) == [True] * 11
    assert holds(1.2, -0.3, 0.9, 0.7) == [False] * 11


def test_the_picture_has_gaps_and_shares(tmp_path: Path) -> None:
    curve = {"iteration": [1.0, 2.0], "average": [1.4, 0.5], "last": [1.4, 1.0]}
    exact = [{"game": "rock-paper-scissors", "method": method, "curve": curve} for method in (SPO, RATED)]
    played = [row | {"seed": seed} for row in exact for seed in (0, 1)]
    written = [text_row(method, 0, gap_curve=[0.8, 0.2]) for method in (SPO, RATED)]
    games, text, *shares = plot(exact, played, written, tmp_path / "both.png").axes
    assert games.get_title() == "rock-paper-scissors" and games.get_xscale() == games.get_yscale() == "log"
    labels = [label.get_text() for label in games.get_legend().get_texts()]
    assert labels == [
        f"{SPO}, exact: average", f"{RATED}, exact: average", f"{SPO}, sampled: average", f"{SPO}, sampled: last",
        f"{RATED}, sampled: average",
    ]  # fmt: skip
    assert list(text.lines[0].get_ydata()) == [0.8, 0.2] and text.lines[1].get_xydata().tolist() == [[2, 0.5]]
    assert [panel.get_title() for panel in shares] == [f"text, {method}, seed 0" for method in (SPO, RATED)]
    assert [label.get_text() for label in shares[0].get_legend().get_texts()] == [
        "comma", "stop", "neither", "the minimax winner",
    ]  # fmt: skip
