"""The thumbs experiment's table, claims and picture on figures made by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from experiments.thumbs.report import average, check_claims, plot


def row(positive: float, kl: float) -> dict[str, Any]:
    return {"positive": positive, "kl_policy_ref": kl, "distinct_2": 0.6}


def test_claims_can_fail() -> None:
    def line(method: str, positive: float, kl: float) -> dict[str, Any]:
        return row(positive, kl) | {"method": method}

    lines = [line("reference", 50, 0), line("PMPO-AR", 74, 2), line("PMPO-A", 70, 2), line("PMPO-R", 70, 5)]
    lines += [line("shuffled labels", 55, 1), line("PMPO-R beta=0", 50, 19)]
    assert [claim.holds for claim in check_claims(lines)] == [False, True, False, False, False]


def test_average_is_the_mean_over_seeds() -> None:
    base = {"name": "a", "options": {"method": "kto", "lr": 1e-4}, "kl_ref_policy": 1.0, "words": 10.0}
    (line,) = average([base | row(50, 1), base | row(60, 3)])
    assert (line["positive"], line["kl_policy_ref"], line["setting"]) == (55, 2, "lr=0.0001")
    assert line["positive_sd"] == pytest.approx(50**0.5)


def test_the_picture_shows_each_method_at_its_kl(tmp_path: Path) -> None:
    lines = [row(50, 0) | {"method": "reference", "positive_sd": 0.0}, row(80, 2) | {"method": "A", "positive_sd": 3.0}]
    (panel,) = plot(lines, tmp_path / "thumbs.png").axes
    assert panel.get_xscale() == "log" and "nats per sentence" in panel.get_xlabel() and "%" in panel.get_ylabel()
    assert [text.get_text() for text in panel.get_legend().get_texts()] == ["reference", "A"]
    points = [container.lines[0].get_xydata()[0].tolist() for container in panel.containers]
    assert points == [[0.01, 50], [2, 80]]
