"""The offline-control experiment's table, claims, intervals and picture from made-up rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from experiments.offline_control.report import PAPER, average, check_claims, interval, plot, resample


def made_up(means: dict[str, float]) -> list[dict[str, Any]]:
    generator = np.random.default_rng(0)
    return [
        {"name": name, "seed": seed, "setting": {"alpha": 0.5, "beta": 1.0, "lr": 1e-3}, "beta": 1.0, "reward": mean,
         "rewards": (mean + generator.normal(size=20)).tolist(), "success": 0.5}
        for name, mean in means.items() for seed in range(3)
    ]  # fmt: skip


def test_claims_hold_on_the_papers_figures_and_fail_on_others() -> None:
    assert [claim.holds for claim in check_claims(made_up({name: float(mean) for name, mean in PAPER.items()}))] == [
        True, True, True, True,
    ]  # fmt: skip
    flat = check_claims(made_up({"BC": 5, "Accept+BC": 9, "Accept": 40, "Reject+BC": 5, "Accept+Reject+BC": 39}))
    assert [claim.holds for claim in flat] == [False] * 4
    assert "Accept" in flat[2].claim
    few = made_up({name: float(mean) for name, mean in PAPER.items()})[::3]
    assert not check_claims([row | {"rewards": row["rewards"][:19]} for row in few])
    lines = average(made_up({name: float(mean) for name, mean in PAPER.items()}))
    assert [line["mixture"] for line in lines] == list(PAPER)
    assert all(line["low"] < line["reward"] < line["high"] for line in lines)


def test_the_interval_covers_both_seeds_and_episodes() -> None:
    """Seeds that differ give a wide interval, even where every episode of a seed is the same."""
    generator = np.random.default_rng(0)
    same = np.repeat([[1.0], [2.0], [6.0]], 10, axis=1)
    low, high = interval(resample(same, generator))
    assert low < 2.0 and high > 4.0
    assert interval(resample(np.full((3, 10), 2.0), generator)) == (2.0, 2.0)


def test_bars_are_ours_with_few_labels_and_the_papers(tmp_path: Path) -> None:
    lines = average(made_up({name: float(mean) for name, mean in PAPER.items()}))
    (panel,) = plot(lines, lines, tmp_path / "both.png").axes
    labels = [text.get_text() for text in panel.get_legend().get_texts()]
    assert [label.split(",")[-1].split(":")[0].strip() for label in labels] == [
        "1.4k episodes",
        "a tenth of the labels",
        "140k episodes",
    ]
    heights = [bar.get_height() for bar in panel.patches]
    assert heights[:5] == heights[5:10] == [line["reward"] for line in lines] and heights[10:] == list(PAPER.values())
    assert [tick.get_text() for tick in panel.get_xticklabels()][1] == "Accept+\nBC"
    (panel,) = plot(lines, [], tmp_path / "one.png").axes
    assert len(panel.patches) == 10
