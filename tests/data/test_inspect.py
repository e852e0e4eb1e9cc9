"""What `valence inspect` says, exactly."""

from __future__ import annotations

import json
from typing import Any

import pytest
from rich.console import Console

from valence.data.inspect import render, summarize

UP = {"prompt": "a", "completion": "bb", "label": 1}
DOWN = {"prompt": "c", "completion": "dddd", "label": 0}
SCORE = {"prompt": "a", "completion": "b", "score": 3}
PAIR = {"prompt": "a", "chosen": "b", "rejected": "c"}
SCORED = {"prompt": "a", "completions": ["b", "c"], "scores": [1, 2]}
RANKED = {"prompt": "a", "completions": ["b", "c"], "ranks": [1, 2]}
PROMPT = {"prompt": "x"}
SILENT = {"prompt": "a", "completion": "b"}


def test_json_of_labels_with_a_problem(load_rows: Any) -> None:
    loaded = load_rows(UP, DOWN, UP, {**UP, "completion": ""}, SILENT)
    assert summarize(loaded).to_json() == {
        "skipped": {},
        "verdict_like_columns": {},
        "agreement": None,
        "examples": {"accepted": "'a' → 'bb'", "rejected": "'c' → 'dddd'"},
        "shape": "labels",
        "rows": 5,
        "prompts": 2,
        "accepted": 2,
        "rejected": 1,
        "problems": [{"file": loaded.records[0].file, "line": 4, "reason": "completion is empty"}],
        "method": "pmpo",
        "why": "2 accepted and 1 rejected completions, 1 unlabelled ones for the KL: "
        "PMPO-AR learns from both, however many of each",
        "empty_prompts": 0,
        "unread_columns": {},
    }


@pytest.mark.parametrize(
    ("rows", "shape", "accepted", "rejected", "method", "why"),
    [
        ([UP], "labels", 1, 0, "pmpo", "1 accepted and 0 rejected completions: PMPO-A learns from acceptances alone"),
        ([DOWN], "labels", 0, 1, "pmpo", "0 accepted and 1 rejected completions: PMPO-R learns from rejections alone"),
        ([SILENT], "labels", 0, 0, None,
         'completions without a label, score or rank: `method="supervised"` imitates them all; '
         "if a column judges them, name it with `columns`"),
        ([SCORE], "scores", None, None, "dro", "one score a completion: DRO-V regresses on the scores themselves"),
        ([PAIR, PAIR], "pairs", 2, 2, "dpo", "chosen and rejected for each prompt: DPO learns from pairs"),
        ([SCORED], "rankings", None, None, "rebel",
         "several scored completions a prompt: REBEL regresses on the gaps between scores"),
        ([RANKED], "rankings", None, None, "dpo",
         "rankings without scores: DPO learns from every pair of an order"),
        ([RANKED, SCORED], "rankings", None, None, "dpo",
         "1 of 2 rankings without scores: DPO learns from every pair of an order"),
        ([PROMPT], "prompts", None, None, None,
         "prompts without feedback: valence improve samples answers and scores them"),
        ([UP, UP, DOWN, PAIR, SCORE], "mixed", 3, 2, "pmpo",
         "mixed feedback (labels, scores, pairs): PMPO learns from all of it as accepted and rejected"),
        ([SCORE, SCORED], "mixed", None, None, "pmpo",
         "mixed feedback (scores, rankings): PMPO learns from all of it as accepted and rejected"),
        ([SCORE, PROMPT], "mixed", None, None, "dro",
         "one score a completion: DRO-V regresses on the scores themselves; "
         "1 rows with only a prompt are dropped (valence improve uses them)"),
    ],
)  # fmt: skip
def test_shape_counts_method_and_why(
    load_rows: Any, rows: list[Any], shape: str, accepted: int | None, rejected: int | None, method: str, why: str
) -> None:
    found = summarize(load_rows(*rows)).to_json()
    assert (found.pop("skipped"), found.pop("verdict_like_columns"), found.pop("agreement")) == ({}, {}, None)
    assert bool(found.pop("examples")) == any(row not in (PROMPT, SILENT) for row in rows)
    assert found == {
        "shape": shape,
        "rows": len(rows),
        "prompts": len({row["prompt"] for row in rows}),
        "accepted": accepted,
        "rejected": rejected,
        "problems": [],
        "method": method,
        "why": why,
        "empty_prompts": 0,
        "unread_columns": {},
    }
    assert json.loads(json.dumps(found)) == found


def test_what_the_printed_view_adds(load_rows: Any) -> None:
    tied = {**PAIR, "score_chosen": 2, "score_rejected": 2}
    loaded = load_rows(
        UP, {**UP, "label": 0, "split": "test"}, {**UP, "label": 0}, {**SCORE, "score": -3}, tied, SILENT
    )
    summary = summarize(loaded)
    assert summary.loaded.layouts == {"label": 4, "score": 1, "pair": 1}
    assert summary.splits == {"": 5, "test": 1}
    assert summary.score_range == (-3.0, 2.0)
    assert summary.mean_length == pytest.approx((2 + 2 + 2 + 1 + 1 + 1 + 1) / 7)
    assert (summary.conflicts, summary.ties, summary.unlabelled) == (1, 1, 1)


def test_the_printed_view_shows_counts_method_and_problems_and_no_markup(load_rows: Any) -> None:
    bad = [{**UP, "label": ["[bold]no", 1], "completion": "[bold]no"}] * 12
    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(render(summarize(load_rows(UP, DOWN, *bad))))
    shown = console.export_text()
    console.file.close()
    assert "1 accepted, 1 rejected" in shown and "pmpo: " in shown and "labels (2 label)" in shown
    assert "12 rows cannot be used" in shown and "and 2 more" in shown
    assert shown.count("label is a list, not a label") == 10 and "labels (2 label)" in shown
    assert "ties" not in shown and "conflicts" not in shown


def test_a_missed_prompt_column_shows(load_rows: Any) -> None:
    """`asked` is the prompt and nobody knew; `rating` is read in one row and so is none of the unread columns."""
    rows = [{"asked": "2+2?", "completion": "4", "label": 1, "id": 1}, {"asked": "3+3?", "completion": "6", "label": 0}]
    rows += [{**UP, "rating": 3}, {**SCORE, "id": 4}, {"prompt": "a", "completion": "b", "rating": 2}, PROMPT]
    summary = summarize(load_rows(*rows, {"asked": "no use"}))
    found = summary.to_json()
    assert list(found)[8:10] == ["empty_prompts", "unread_columns"]
    assert found["empty_prompts"] == 2
    assert list(found["unread_columns"].items()) == [("asked", 2), ("id", 2)]
    shown = printed(summary)
    assert (
        "no prompt" in shown and "2 rows; if a column below is their prompt, name it with `columns`: prompt=" in shown
    )
    assert "asked (2 rows), id (2 rows)" in shown


def test_named_and_displaced_columns_go_by_the_files_names(load_rows: Any) -> None:
    row = {"prompt": "old", "asked": "2+2?", "completion": "4", "label": 1}
    assert summarize(load_rows(row, columns={"prompt": "asked"})).loaded.unread == {"prompt": 1}
    assert summarize(load_rows(row)).loaded.unread == {"asked": 1}


def test_agreement_of_annotators(load_rows: Any) -> None:
    """Two verdicts each on three answers: both up, one of each, both down. Alpha by hand: 1 - (2/6) / (18/30)."""
    verdicts = [("a", 1), ("a", 1), ("b", 1), ("b", 0), ("c", 0), ("c", 0)]
    rows = [
        {"prompt": "p", "completion": answer, "label": label, "annotator": name}
        for name, (answer, label) in enumerate(verdicts)
    ]
    summary = summarize(load_rows(*rows))
    assert summary.agreement == (3, pytest.approx(2 / 3), pytest.approx(4 / 9))
    assert "67% of annotators' pairs on 3 answers" in printed(summary)
    two = [{"prompt": "p", "chosen": one, "rejected": other, "annotator": one} for one, other in ("xy", "yx")]
    assert summarize(load_rows(*two)).agreement == (1, 0.0, pytest.approx(0.0))
    assert summarize(load_rows(UP, UP)).agreement is None


def test_no_more_than_a_few_unread_columns_are_printed(load_rows: Any) -> None:
    summary = summarize(load_rows({**UP, **{f"c{index}": index for index in range(11)}}))
    assert len(summary.loaded.unread) == 11
    assert "c7 (1 rows) and 3 more" in printed(summary) and "no prompt" not in printed(summary)


def printed(summary: Any) -> str:
    """The printed view as text."""
    console = Console(width=300, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(render(summary))
    console.file.close()
    return console.export_text()
