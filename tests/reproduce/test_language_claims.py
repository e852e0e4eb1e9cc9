"""The language reproductions' claims on figures made by hand: each can hold, and each can fail."""

from __future__ import annotations

from typing import Any

import pytest

from valence.reproduce import best_worst, pmpo_language_report, summarize_claims
from valence.reproduce.results import Claim


def verdicts(claims: list[Claim]) -> dict[str, bool]:
    return {claim.claim: claim.holds for claim in claims}


def line(method: str, reward: float, win: float, kl: float, **more: Any) -> dict[str, Any]:
    return {"method": method, "reward": reward, "reward_sd": 0.1, "win": win, "win_sd": 1.0, "kl_policy_ref": kl} | more


def summarize(*, good: bool) -> dict[str, bool]:
    """REBEL ahead, cheap and well fitted; or behind, dear and ill fitted."""
    cost = {"collect": 1.0, "mib": 100.0 if good else 400.0, "update": 1.0 if good else 9.0}
    dear = {"collect": 2.0, "update": 2.0, "mib": 200.0}
    lines = [
        line("SFT", 0.0, 30, 0.0), line("REBEL", 3.0 if good else 0.5, 70 if good else 40, 10.0, **cost),
        line("PPO", 2.0, 60, 9.0 if good else 2.0, **dear), line("RLOO k=4", 1.5, 55, 5.0, **dear),
        line("RLOO k=2", 1.0, 50, 5.0, **dear), line("iterative DPO", 1.0, 50, 5.0, collect=1.0, update=1.0, mib=90.0),
    ]  # fmt: skip
    etas = [{"method": f"REBEL eta={eta}", "reward": value} for eta, value in
            (("0.3", 1.0), ("1", 2.0 if good else 1.2), ("2", 1.5))]  # fmt: skip
    updates = [{"regression_error": 0.4 if good else 0.9, "reward_gap_variance": 1.0}] * 8
    near = [{"kl": far, "reward": 2.0 if good else 0.5} for far in (2.0, 4.0)]
    rows = [
        {"name": "REBEL", "updates": updates, "deciles": near},
        {"name": "PPO", "deciles": [{"kl": 1.0, "reward": 0.0}, {"kl": 3.0, "reward": 2.0}]},
    ]
    return verdicts(summarize_claims.check_claims(lines, etas, rows))


def test_summarize_can_hold_and_can_fail() -> None:
    good, bad = summarize(good=True), summarize(good=False)
    assert len(good) == 9 and good.keys() == bad.keys()
    assert all(good.values()) and not any(bad.values())


def test_ppo_that_never_moved_does_not_stay_a_little_closer() -> None:
    lines = [line("REBEL", 1.0, 50, 10.0), line("PPO", 0.0, 50, 0.0)]
    found = summarize_claims.check_claims(lines, [], [])
    assert [claim.holds for claim in found if claim.claim.startswith("PPO")] == [False]


def test_deciles_are_compared_at_one_kl() -> None:
    """REBEL's nearest tenth is at 2 nats, where PPO's line from (1, 0) to (3, 2) stands at 1."""
    rows = [
        {"name": "REBEL", "updates": [{"regression_error": 0.1, "reward_gap_variance": 1.0}] * 8,
         "deciles": [{"kl": 2.0, "reward": 0.9}, {"kl": 5.0, "reward": 9.0}]},
        {"name": "PPO", "deciles": [{"kl": 1.0, "reward": 0.0}, {"kl": 3.0, "reward": 2.0}]},
    ]  # fmt: skip
    found = summarize_claims.check_claims([line("REBEL", 2, 60, 5.0), line("PPO", 1, 50, 4.0)], [], rows)
    (claim,) = (claim for claim in found if "near the start" in claim.claim)
    assert not claim.holds and "REBEL 0.90, PPO 1.00" in claim.ours


def curve(*points: tuple[float, float]) -> list[dict[str, float]]:
    """(reward, win rate) look by look."""
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
    rows = [{"name": name, "curve": looks} for name, looks in curves.items()]
    if not good:
        rows = [row if row["name"] == "DPO" else row | {"curve": curves["PMPO-AR"]} for row in rows]
    ends = {row["name"]: row["curve"][-1]["reward"] for row in rows}
    lines = [line(name, reward, 50, 1.0) for name, reward in ends.items()]
    sweep = [
        {"method": f"{kind} beta={beta}", "start_reward": 0.0, "kl_policy_ref": 5.0 if beta == "2" else 9.0,
         "reward": (0.5 if beta == "2" or kind == "PMPO-A" else 0.1) if good else 0.1}
        for kind in ("PMPO-A", "PMPO-R") for beta in ("0", "2")
    ]  # fmt: skip
    return verdicts(pmpo_language_report.check_claims(lines, rows, sweep))


def test_pmpo_can_hold_and_can_fail() -> None:
    good, bad = pmpo(good=True), pmpo(good=False)
    assert len(good) == 9 and good.keys() == bad.keys()
    assert all(good.values()), good
    assert not any(bad.values()), bad


def test_a_rival_that_gained_nothing_is_no_bar() -> None:
    rows = [{"name": name, "curve": curve((0.0, 0.5), (-1.0, 0.5), (-1.0, 0.5))} for name in ("PMPO-AR", "DPO")]
    found = pmpo_language_report.check_claims([line("PMPO-AR", -0.7, 50, 1), line("DPO", -1.0, 50, 1)], rows, [])
    assert [claim.holds for claim in found if "competitive" in claim.claim] == [False]


@pytest.mark.parametrize("good", [True, False])
def test_best_worst_can_hold_and_can_fail(good: bool) -> None:
    def row(method: str, win: float, reward: float, prose: float) -> dict[str, Any]:
        return {
            "method": method, "win_against_start": win, "win_against_start_sd": 1.0, "reward": reward,
            "ordinary_nll": prose,
        }  # fmt: skip

    first = (70.0, 2.0) if good else (50.0, 0.5)
    lines = [
        row("start", 50, 0.0, 4.0), row("DPO", 60, 1.0, 4.0), row("REBEL (1)", *first, 4.0),
        row("REBEL (2)", 72, 2.0, 4.0), row("REBEL (3)", 71 if good else 90, 2.0, 4.05 if good else 4.5),
    ]  # fmt: skip
    assert [claim.holds for claim in best_worst.check_claims(lines)] == [good] * 4
