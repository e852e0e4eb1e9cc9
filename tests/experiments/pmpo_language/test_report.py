"""The claims and the picture of `pmpo-language` on figures made by hand: each claim can hold, and each can fail."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from experiments.common.results import Claim
from experiments.pmpo_language.report import check_claims, mean_curve, plot


def verdicts(claims: list[Claim]) -> dict[str, bool]:
    return {claim.claim: claim.holds for claim in claims}


def line(method: str, reward: float, win: float, kl: float, **more: Any) -> dict[str, Any]:
    return {"method": method, "reward": reward, "reward_sd": 0.1, "win": win, "win_sd": 1.0, "kl_policy_ref": kl} | more


def curve(*points: tuple[float, float]) -> list[dict[str, float]]:
    """(reward, win rate) of each evaluation."""
    return [
        {"step": step, "reward": reward, "gold": 0.0, "gold_win_rate": win, "gold_win_rate_95_half_width": 0.04,
         "kl_policy_ref": step}
        for step, (reward, win) in enumerate(points)
    ]  # fmt: skip


def pmpo(*, good: bool) -> dict[str, bool]:
    curves = {
        "PMPO-AR": curve((0.0, 0.5), (1.5, 0.8), (2.0, 0.6)) if good else curve((0.0, 0.5), (0.1, 0.5), (0.1, 0.5)),
        "PMPO-A": curve((0.0, 0.5), (0.5, 0.6), (1.0, 0.6)), "PMPO-R": curve((0.0, 0.5), (0.5, 0.6), (1.0, 0.6)),
        "DPO": curve((0.0, 0.5), (1.0, 0.6), (2.0, 0.6)),
    }  # fmt: skip
    rows = [{"name": name, "curve": points} for name, points in curves.items()]
    if not good:
        rows = [row if row["name"] == "DPO" else row | {"curve": curves["PMPO-AR"]} for row in rows]
    ends = {row["name"]: row["curve"][-1]["reward"] for row in rows}
    lines = [line(name, reward, 50, 1.0) for name, reward in ends.items()]
    sweep = [
        {"method": f"{kind} beta={beta}", "start_reward": 0.0, "kl_policy_ref": 5.0 if beta == "2" else 9.0,
         "reward": (0.5 if beta == "2" or kind == "PMPO-A" else 0.1) if good else 0.1}
        for kind in ("PMPO-A", "PMPO-R") for beta in ("0", "2")
    ]  # fmt: skip
    return verdicts(check_claims(lines, rows, sweep))


def test_pmpo_can_hold_and_can_fail() -> None:
    good, bad = pmpo(good=True), pmpo(good=False)
    assert len(good) == 9 and good.keys() == bad.keys()
    assert all(good.values()), good
    assert not any(bad.values()), bad


def test_a_rival_that_gained_nothing_is_no_bar() -> None:
    rows = [{"name": name, "curve": curve((0.0, 0.5), (-1.0, 0.5), (-1.0, 0.5))} for name in ("PMPO-AR", "DPO")]
    found = check_claims([line("PMPO-AR", -0.7, 50, 1), line("DPO", -1.0, 50, 1)], rows, [])
    assert [claim.holds for claim in found if "competitive" in claim.claim] == [False]


def test_a_curve_is_the_mean_over_seeds_and_its_interval_narrows_with_them() -> None:
    rows = [{"name": "A", "curve": curve((0.0, 0.5), (value, 0.7))} for value in (1.0, 2.0)]
    start, end = mean_curve([*rows, {"name": "B", "curve": curve((9.0, 0.0))}], "A")
    assert (start["reward"], end["reward"], end["gold_win_rate"]) == (0.0, 1.5, 0.7)
    assert end["half"] == pytest.approx(0.04 / 2**0.5)


def test_the_picture_has_curves_above_and_the_sweep_below(tmp_path: Path) -> None:
    rows = [{"name": "PMPO-AR", "curve": curve((0.0, 0.5), (1.0, 0.8))}]
    updates = [{"step": 1, "reward": 0.5}, {"step": 2, "kl_policy_initial": 0.1}]
    swept = [{"name": f"PMPO-R beta={beta}", "updates": updates} for beta in ("0", "2")]
    panels = plot(rows, swept, tmp_path / "six.png").axes
    assert list(panels[0].lines[0].get_ydata()) == [0.0, 1.0]
    assert list(panels[1].lines[0].get_ydata()) == [50.0, 80.0]
    assert list(panels[2].lines[0].get_xdata()) == [0.0, 1.0] and "√KL" in panels[2].get_xlabel()
    assert [len(panel.lines) for panel in panels[3:]] == [0, 0, 2]
    assert [text.get_text() for text in panels[5].get_legend().get_texts()] == ["β = 0", "β = 2"]
