"""The thumbs experiment: its data, its rules of choice, and its smoke size."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from valence.reproduce.thumbs import GRIDS, SMOKE, Setting, _feedback, average, check_claims, choose, run
from valence.reproduce.thumbs_data import Judge, read_sentences, split_sentences


def test_the_three_parts_share_no_sentence() -> None:
    halves = split_sentences(read_sentences())
    judge, feedback, heldout = ({row["completion"] for row in part} for part in halves)
    assert not judge & feedback
    assert not judge & heldout
    assert not feedback & heldout
    assert len(halves.heldout) == 1057
    assert abs(len(halves.judge) - len(halves.feedback)) < 100


def test_the_judge_knows_sentiment_and_has_not_seen_the_heldout() -> None:
    halves = split_sentences(read_sentences())
    judge = Judge(halves.judge)
    assert judge.accuracy(halves.heldout) > 0.7
    assert judge.positive(["a warm , funny and moving film"]) == 1
    assert judge.positive(["a dull , lifeless and pointless mess"]) == 0


def test_shuffled_labels_keep_their_number_and_lose_their_sentence() -> None:
    rows = [{"completion": str(n), "accept": n < 30} for n in range(60)]
    shuffled = _feedback(rows, Setting("s", rows="shuffled", seed=3))
    assert sum(row["accept"] for row in shuffled) == 30
    assert [row["completion"] for row in shuffled] == [row["completion"] for row in rows]
    assert 10 < sum(row["accept"] for row in shuffled[:30]) < 20
    assert [row["accept"] for row in _feedback(rows, Setting("r", rows="rejected"))] == [False] * 30


def row(positive: float, kl: float, distinct: float = 0.6) -> dict[str, Any]:
    return {"positive": positive, "kl_policy_ref": kl, "distinct_2": distinct}


def test_choose_takes_the_most_positive_within_the_limits() -> None:
    rows = [row(60, 1), row(80, 3.4), row(95, 3.6), row(90, 2, distinct=0.4)]
    assert choose(rows, {"distinct_2": 0.6}) is rows[1]
    assert choose([row(95, 30), row(90, 9)], {"distinct_2": 0.6})["positive"] == 90


def test_claims_can_fail() -> None:
    def line(method: str, positive: float, kl: float) -> dict[str, Any]:
        return row(positive, kl) | {"method": method}

    lines = [line("reference", 50, 0), line("PMPO-AR", 74, 2), line("PMPO-A", 70, 2), line("PMPO-R", 70, 5)]
    lines += [line("shuffled labels", 55, 1), line("PMPO-R beta=0", 50, 19)]
    assert [claim.holds for claim in check_claims(lines)] == [False, True, False, False, False]


def test_every_method_has_the_same_tuning_effort() -> None:
    assert {len(grid) for grid in GRIDS.values()} == {3}


def test_average_is_the_mean_over_seeds() -> None:
    base = {"name": "a", "options": {"lr": 1e-4}, "kl_ref_policy": 1.0, "words": 10.0}
    (line,) = average([base | row(50, 1), base | row(60, 3)])
    assert (line["positive"], line["kl_policy_ref"], line["setting"]) == (55, 2, "lr=0.0001")
    assert line["positive_sd"] == pytest.approx(50**0.5)


def test_smoke(tmp_path: Path) -> None:
    path = run(tmp_path, "smoke", workers=2)
    result = json.loads(path.read_text())
    assert set(result) >= {"name", "rows", "claims", "command", "commit", "seeds", "machine"}
    assert [line["method"] for line in result["rows"]] == ["reference", *SMOKE]
    moved = {line["method"]: line["kl_policy_ref"] for line in result["rows"]}
    assert moved["reference"] == 0
    assert all(0 < kl < 5 for name, kl in moved.items() if name != "reference")
    assert (tmp_path / "thumbs.png").stat().st_size > 1000
