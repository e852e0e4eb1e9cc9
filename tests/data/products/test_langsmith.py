"""Feedback exported from LangSmith."""

from __future__ import annotations

from collections import defaultdict

import pytest

from tests.data.products.conftest import as_messages, mutants
from valence.data.formats.row import Refused, Skipped
from valence.data.products import langsmith

FEEDBACK, RUNS, TRACES = "langsmith/feedback.jsonl", "langsmith/runs.jsonl", "langsmith/trace-export.jsonl"
THUMBS = ("user_score", "correctness")
"""The keys of the file whose scores are all 0 or 1."""


@pytest.fixture
def reading(read):
    return read(langsmith, FEEDBACK, joined=RUNS, on="run_id=id")


def readings(found, *names):
    """Some columns of the rows."""
    return [{name: as_messages(row[name]) if name == "prompt" else row[name] for name in names} for row in found]


def test_scores_are_read_with_their_key(reading, expected):
    right = expected(FEEDBACK)
    single = [row for row in reading.rows if "score" in row and "comparison" not in row]
    thumbs = [{**row, "label": row["score"]} for row in single if row["feedback_name"] in THUMBS]
    others = [{**row, "name": row["feedback_name"]} for row in single if row["feedback_name"] not in THUMBS]
    assert readings(thumbs, "prompt", "completion", "label") == right["labels"]
    assert readings(others, "prompt", "completion", "name", "score") == right["scores"]
    assert not reading.refused and not reading.unmatched


def test_a_correction_and_a_group_of_feedback_are_pairs(reading, expected):
    groups = defaultdict(list)
    for row in reading.rows:
        if "comparison" in row:
            groups[row["comparison"]].append(row)
    first, tie = (langsmith.compare(group) for group in groups.values())
    corrections = [row for row in reading.rows if "chosen" in row]
    assert readings([*corrections, first], "prompt", "chosen", "rejected") == expected(FEEDBACK)["pairs"]
    assert isinstance(tie, Skipped) and str(tie) == "a tie"


def test_comparisons_of_more_answers_keep_their_scores():
    found = [{"prompt": "q", "completion": name, "score": score} for name, score in (("a", 0.5), ("b", 1), ("c", 0))]
    assert langsmith.compare(found) == {"prompt": "q", "completions": ["a", "b", "c"], "scores": [0.5, 1, 0]}
    for odd in (found[:1], [found[0], {**found[1], "prompt": "other"}]):
        with pytest.raises(Refused, match="comparison"):
            langsmith.compare(odd)


def test_what_is_no_verdict_is_counted(reading):
    assert reading.skipped == {
        "a remark": 1,
        "a score of a judge model or an evaluator": 1,
        "the run failed or has no answer": 1,
        "feedback on a whole project, not on an answer": 1,
    }


def test_without_the_runs_it_says_how_to_join_them(read):
    assert "runs.jsonl on=run_id=id" in read(langsmith, FEEDBACK).refused[0]


def test_runs_hold_a_summary_of_their_feedback(read, expected):
    right, reading = expected(TRACES), read(langsmith, TRACES)
    scored = [{**row, "name": row["feedback_name"]} for row in reading.rows]
    assert readings(scored[:2], "prompt", "completion", "score") == [
        {"prompt": row["prompt"], "completion": row["completion"], "score": row["label"]} for row in right["labels"]
    ]
    assert readings(scored[2:], "prompt", "completion", "name", "score") == right["scores"]
    assert reading.skipped == {"no score": 1, "the run failed or has no answer": 1}


def test_a_category_without_a_score_is_the_label():
    run = {"inputs": {"query": "Hi"}, "outputs": {"output": {"role": "assistant", "content": "Hello"}}}
    row = {"key": "tone", "run_id": "r", "feedback_source": {"type": "app"}, "value": "kind", "JOINED": run}
    assert list(langsmith.rows(row)) == [
        {"prompt": "Hi", "completion": "Hello", "label": "kind", "feedback_name": "tone"}
    ]


def test_passages_are_not_lost():
    run = {"inputs": {"question": "Hi", "context": "a page"}, "outputs": {"output": "Hello"}}
    row = {"key": "k", "run_id": "r", "feedback_source": {"type": "app"}, "score": 1, "JOINED": run}
    with pytest.raises(Refused, match="context"):
        list(langsmith.rows(row))


def test_other_rows_are_not_taken():
    assert not langsmith.matches({"prompt": "a", "completion": "b", "score": 1, "key": "k"})
    assert not langsmith.matches({"inputs": {}, "outputs": {}, "trace_id": "t"})


def test_spoiled_rows_are_refused_or_skipped(only_known_outcomes):
    assert only_known_outcomes(langsmith, FEEDBACK, joined=RUNS, on="run_id=id") > 100
    assert only_known_outcomes(langsmith, TRACES) > 100


def test_spoiled_comparisons_are_refused_or_skipped(reading):
    found = [row for row in reading.rows if "comparison" in row][:2]
    for spoiled in mutants({"score": found[0]["score"]}):
        try:
            langsmith.compare([{**found[0], **spoiled}, found[1]])
        except Refused as reason:
            assert str(reason)
