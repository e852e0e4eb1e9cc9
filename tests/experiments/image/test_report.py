"""The image experiment's table, claims and pictures from made-up rows."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiments.common.statistics import bootstrap_interval
from experiments.image.report import (
    check_claims,
    early,
    judged,
    plot_curves,
    plot_grids,
    rewards,
    summed,
    table,
    verdict,
)  # fmt: skip
from experiments.image.run import Setting


@pytest.fixture(autouse=True)
def few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer bootstrap draws: the tests' rows are far apart."""
    monkeypatch.setattr("experiments.image.report.bootstrap_interval", partial(bootstrap_interval, draws=200))


def point(queries: int, reward: float, judge: float = 1.0, spread: float = 0.1) -> dict[str, Any]:
    """Twenty images."""
    values: list[float | None] = [reward + spread * (place - 9.5) / 10 for place in range(20)]
    right = round(20 * judge)
    return {"queries": queries, "reward": values, "judge": [1.0] * right + [0.0] * (20 - right), "kl": queries / 100}


def result(
    name: str, curve: tuple[float, ...], *, seed: int = 0, lr: float = 3e-3, judge: float = 1.0
) -> dict[str, Any]:
    points = [point(320 * place, value, judge if place else 1.0) for place, value in enumerate(curve)]
    setting = vars(Setting(name, seed, {"lr": lr}))
    return {"name": name, "seed": seed, "setting": setting, "seconds": 1.0, "evaluations": points}


def found(rebel: tuple[float, ...], ppo: tuple[float, ...], *, judge: float = 1.0) -> dict[str, list[dict[str, Any]]]:
    return {
        "REBEL": [result("REBEL", rebel, seed=seed, judge=judge) for seed in (0, 1, 2)],
        "PPO": [result("PPO", ppo, seed=seed) for seed in (0, 1, 2)],
    }


def test_the_papers_claims_hold_where_they_should_and_fail_where_not() -> None:
    paper = found((0.0, 0.6, 0.9, 1.0), (0.0, 0.3, 0.8, 1.0))
    assert early(paper["REBEL"]) == 1
    claims = check_claims(paper)
    assert [claim.holds for claim in claims] == [True] * 4
    assert verdict(claims).endswith("the paper's claim holds here.")
    swapped = check_claims(found((0.0, 0.3, 0.8, 0.5), (0.0, 0.6, 0.9, 1.0)))
    assert [claim.holds for claim in swapped] == [True, True, False, False]
    assert verdict(swapped).endswith("the paper's claim does not hold here.")
    half = verdict(check_claims(found((0.0, 0.3, 0.8, 1.0), (0.0, 0.6, 0.9, 1.0))))
    assert "not faster than PPO at first, and at the end the two are level: the paper's claim half holds" in half
    other = verdict(check_claims(found((0.0, 0.6, 0.8, 2.0), (0.0, 0.3, 0.9, 1.0))))
    assert "is faster than PPO at first, and at the end the two are apart" in other
    both = paper | {"REBEL, two epochs": paper["REBEL"]}
    assert verdict(check_claims(both)).count("the paper's claim holds here.") == 2


def test_a_rise_within_the_interval_or_without_the_digits_is_no_success() -> None:
    assert not check_claims(found((0.0, 0.0, 0.01), (0.0, 0.5, 1.0)))[0].holds
    assert not check_claims(found((0.0, 0.5, 1.0), (0.0, 0.5, 1.0), judge=0.85))[0].holds
    assert check_claims(found((0.0, 0.5, 1.0), (0.0, 0.5, 1.0), judge=0.9))[0].holds


def test_intervals_are_of_images_drawn_anew_within_each_seed() -> None:
    rows = [result("REBEL", (0.0, 1.0), seed=0), result("REBEL", (0.0, 3.0), seed=1)]
    mean, low, high = summed(rows, -1)
    # Half of the images are near 1 and half near 3, whichever are drawn: the middle half reaches both.
    assert mean == pytest.approx(2.0, abs=1e-9) and low > 1.8 and high < 2.2
    assert judged(rows, -1) == 1.0
    rows[0]["evaluations"][-1]["reward"][0] = None
    assert len(rewards(rows[0]["evaluations"][-1])) == 19


def test_the_table_and_the_curves(tmp_path: Path) -> None:
    some = found((0.0, 0.6, 0.9, 1.0), (0.0, 0.3, 0.8, 1.0))
    lines = table(some)
    assert [line["method"] for line in lines] == ["before", "REBEL", "REBEL", "PPO", "PPO"]
    assert lines[1]["queries"] == 320 and lines[2]["queries"] == 960 and lines[1]["learning_rate"] == "0.003"
    reward, judge, kl = plot_curves(some, tmp_path / "curves.png").axes
    assert [text.get_text() for text in reward.get_legend().get_texts()] == ["REBEL", "PPO"]
    assert {panel.get_xlabel() for panel in (reward, judge, kl)} == {"reward queries"}
    assert list(reward.lines[1].get_xdata()) == [0, 320, 640, 960]
    assert list(reward.lines[1].get_ydata()) == pytest.approx([0.0, 0.3, 0.8, 1.0], abs=0.01)
    assert list(judge.lines[0].get_ydata()) == [100.0] * 4 and kl.lines[0].get_ydata()[-1] == pytest.approx(9.6)


def test_the_grids_are_shown_as_they_are(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    for name, color in (("before", (255, 0, 0)), ("after", (0, 0, 255))):
        image.new("RGB", (8, 4), color).save(tmp_path / f"{name}.png")
    grids = {"before": tmp_path / "before.png", "REBEL": tmp_path / "after.png"}
    before, after = plot_grids(grids, tmp_path / "grids.png").axes
    assert (before.get_title(), after.get_title()) == ("before", "REBEL") and not before.axison
    assert np.asarray(before.images[0].get_array())[0, 0, :3].tolist() == [1, 0, 0]
    assert np.asarray(after.images[0].get_array()).shape[:2] == (4, 8)
