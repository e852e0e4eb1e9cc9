"""The claims and the picture of `summarize` on figures made by hand: each claim can hold, and each can fail."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from experiments.common.results import Claim
from experiments.summarize.report import check_claims, paper_columns, plot


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
    return verdicts(check_claims(lines, etas, rows))


def test_summarize_can_hold_and_can_fail() -> None:
    good, bad = summarize(good=True), summarize(good=False)
    assert len(good) == 9 and good.keys() == bad.keys()
    assert all(good.values()) and not any(bad.values())


def test_ppo_that_never_moved_does_not_stay_a_little_closer() -> None:
    lines = [line("REBEL", 1.0, 50, 10.0), line("PPO", 0.0, 50, 0.0)]
    found = check_claims(lines, [], [])
    assert [claim.holds for claim in found if claim.claim.startswith("PPO")] == [False]


def test_deciles_are_compared_at_one_kl() -> None:
    """REBEL's nearest tenth is at 2 nats, where PPO's line from (1, 0) to (3, 2) stands at 1."""
    rows = [
        {"name": "REBEL", "updates": [{"regression_error": 0.1, "reward_gap_variance": 1.0}] * 8,
         "deciles": [{"kl": 2.0, "reward": 0.9}, {"kl": 5.0, "reward": 9.0}]},
        {"name": "PPO", "deciles": [{"kl": 1.0, "reward": 0.0}, {"kl": 3.0, "reward": 2.0}]},
    ]  # fmt: skip
    found = check_claims([line("REBEL", 2, 60, 5.0), line("PPO", 1, 50, 4.0)], [], rows)
    (claim,) = (claim for claim in found if "near the start" in claim.claim)
    assert not claim.holds and "REBEL 0.90, PPO 1.00" in claim.ours


def test_paper_columns_are_empty_where_the_paper_has_none() -> None:
    assert paper_columns("REBEL") == {"paper_reward": "2.44", "paper_win": "70.2", "paper_kl": "29.0"}
    assert paper_columns("RLOO k=2")["paper_reward"] == paper_columns("other")["paper_win"] == ""


def test_the_picture_has_four_panels(tmp_path: Path) -> None:
    deciles = [{"kl": far, "reward": 2 * far, "half": 0.1} for far in (1.0, 2.0)]
    course = [{"kl_policy_ref": far, "reward": far} for far in (0.0, 3.0)]
    updates = [{"step": step, "regression_error": 0.5 / step, "reward_gap_variance": 1.0} for step in (1, 2)]
    rows = [
        {"name": name, "seed": seed, "deciles": deciles, "curve": course, "updates": updates}
        for seed in (0, 1) for name in ("REBEL", "PPO")
    ]  # fmt: skip
    lines = [{"method": "REBEL", "collect": 1.0, "update": 2.0}, {"method": "SFT"}]
    frontier, tenths, error, cost = plot(rows, lines, tmp_path / "four.png").axes
    assert [line.get_xydata().tolist() for line in frontier.lines] == [[[0, 0], [3, 3]]] * 2
    assert [text.get_text() for text in tenths.get_legend().get_texts()] == ["REBEL", "PPO"]
    assert error.get_yscale() == "log" and list(error.lines[0].get_ydata()) == [0.5, 0.25]
    assert [(bar.get_y(), bar.get_height()) for bar in cost.patches] == [(0, 1.0), (1.0, 2.0)]
    assert [tick.get_text() for tick in cost.get_xticklabels()] == ["REBEL"]
