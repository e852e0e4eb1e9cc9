"""The table, claims and picture of `best-worst` on figures made by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from experiments.best_worst.report import check_claims, plot, table


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
    assert [claim.holds for claim in check_claims(lines)] == [good] * 4


def point(reward: float, win: float) -> dict[str, float]:
    return {"reward": reward, "gold_win_rate": win, "gold": 0.0, "kl_policy_ref": 1.0, "ordinary_text_nll": 4.0,
            "distinct_2": 0.5}  # fmt: skip


def test_the_table_has_the_start_dpo_and_each_iteration(tmp_path: Path) -> None:
    rows = [{"name": "DPO", "curve": [point(0, 0.5), point(value, 0.6)]} for value in (1.0, 3.0)]
    rows += [{"name": "REBEL", "curve": [point(0, 0.5), point(1, 0.7), point(2, 0.8), point(3, 0.9)]}]
    lines = {line["method"]: line for line in table(rows)}
    assert list(lines) == ["start", "DPO", "REBEL (1)", "REBEL (2)", "REBEL (3)"]
    assert lines["DPO"]["seeds"] == 2 and lines["DPO"]["reward"] == 2.0
    assert lines["DPO"]["reward_sd"] == pytest.approx(2**0.5) and lines["REBEL (2)"]["reward_sd"] == 0.0
    assert lines["REBEL (3)"]["win_against_start"] == pytest.approx(90) and lines["REBEL (3)"]["paper_mt"] == "8.01"
    reward, win, prose = plot(list(lines.values()), tmp_path / "three.png").axes
    assert list(reward.lines[0].get_ydata()) == [0.0, 2.0, 1.0, 2.0, 3.0]
    assert "win against the start" in win.get_title() and "nats per token" in prose.get_title()
