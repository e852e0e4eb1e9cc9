"""The real feedback of ../shared/data: every row is used or told, by the READMEs' counts."""

from __future__ import annotations

import functools
from collections import Counter
from pathlib import Path

import pytest

from valence.data.groups import groups_for, split_groups
from valence.data.inspect import summarize
from valence.data.load import Loaded, load_feedback

DATA = Path(__file__).parents[2].parent / "shared" / "data"
pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason=f"the real data is not at {DATA}")

FILES = [
    ("rt_polarity/thumbs", "label", 10662, 1057, {}),
    ("tulu_human_eval/thumbs", "label", 2300, 180, {"completion is empty": 1}),
    ("tulu_human_eval/pairs", "pair", 774, 58, {"chosen and rejected are the same": 1, "rejected is empty": 1}),
    ("ultrafeedback_subset/rewards", "score", 2400, 400, {"completion is empty": 2}),
    (
        "ultrafeedback_subset/pairs",
        "pair",
        1200,
        200,
        {"chosen and rejected are the same": 5, "chosen is empty": 1, "rejected is empty": 1},
    ),
    ("gsm8k/problems", "prompt", 8792, 1319, {}),
    ("gsm8k/thumbs", "label", 5276, 524, {}),
    ("squality_human/ratings", "label", 900, 45, {}),
]


@functools.cache
def real(name: str) -> Loaded:
    """A file, read once for all tests."""
    return load_feedback([DATA / f"{name}.jsonl.gz"])


@pytest.mark.slow
@pytest.mark.parametrize(("name", "shape", "rows", "heldout", "problems"), FILES)
def test_every_row_is_used_or_told(name: str, shape: str, rows: int, heldout: int, problems: dict[str, int]) -> None:
    loaded = real(name)
    assert loaded.rows == rows
    assert Counter(problem.reason for problem in loaded.problems) == problems
    assert len(loaded.records) == rows - sum(problems.values())
    assert {record.shape for record in loaded.records} == {shape}
    splits = Counter(record.split for record in loaded.records)
    assert set(splits) == {"train", "heldout"}
    assert heldout - sum(problems.values()) <= splits["heldout"] <= heldout


def test_squality_has_scores_once_its_column_is_named() -> None:
    loaded = load_feedback([DATA / "squality_human/ratings.jsonl.gz"], columns={"score": "overall"})
    summary = summarize(loaded)
    assert (summary.shape, loaded.rows, summary.method) == ("scores", 900, "dro")
    assert summary.score_range is not None and 0 <= summary.score_range[0] < summary.score_range[1] <= 100


def test_the_two_ultrafeedback_files_together_are_mixed_and_ties_are_counted() -> None:
    loaded = load_feedback([DATA / f"ultrafeedback_subset/{name}.jsonl.gz" for name in ("rewards", "pairs")])
    summary = summarize(loaded)
    # 136 of the 1,200 pairs tie; two of those are among the problem rows.
    assert (summary.shape, summary.method, summary.ties) == ("mixed", "pmpo", 134)
    groups, notes = groups_for([record for record in loaded.records if record.shape == "pair"], "preferences")
    assert notes == ["134 pairs with equal scores were dropped (neither is preferred)"]
    train, heldout = split_groups(groups, fraction=0.5)
    assert sum(len(group.wins or ()) for group in groups) == 1193 - 134
    assert {group.split for group in train} == {"train"} and {group.split for group in heldout} == {"heldout"}


@pytest.mark.slow
def test_rt_polarity_is_ten_thousand_labels_of_no_prompt() -> None:
    loaded = real("rt_polarity/thumbs")
    summary = summarize(loaded)
    assert (summary.accepted, summary.rejected, summary.prompts) == (5331, 5331, 1)
    groups, notes = groups_for(loaded.records, "labels")
    assert len(groups) == 10662 and notes == [] and all(len(group.completions) == 1 for group in groups)
    pairs, _ = groups_for(loaded.records[:200] + loaded.records[-200:], "preferences")
    assert max(len(group.completions) for group in pairs) == 32
