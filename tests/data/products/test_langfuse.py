"""Scores exported from Langfuse."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path

import pytest

from tests.data.products.conftest import mutants
from valence.data.formats.read import read_rows
from valence.data.formats.row import Refused, Skipped
from valence.data.products import langfuse

FILES = Path(__file__).parent / "files" / "langfuse"
TRACES = [f"langfuse/traces-export.{end}" for end in ("csv", "json")]
SCORES = [
    ("scores.jsonl", "observations_v2.jsonl"),
    ("scores-v2.json", "observations_v2.jsonl"),
    ("scores-v3.json", "observations_v2.jsonl"),
    ("scores-export.csv", "traces-export.json"),
]


def joined(scores, other):
    """The scores' rows with the trace or the observations that they judge."""
    rows = [row for _, row in read_rows(FILES / other)]
    rows = list(langfuse.gather(rows)) if langfuse.joins(rows[0]) else rows
    found = {row.get("trace_id") or row["id"]: row for row in rows}
    for _, row in read_rows(FILES / scores):
        trace = row.get("traceId") or row.get("trace_id") or row.get("subject", {}).get("traceId")
        yield {**found[trace], **row, "JOINED": found[trace]} if trace in found else row


def outcomes(rows):
    """(rows, reasons of skips, reasons of refusals)"""
    good, skipped, refused = [], [], []
    for row in rows:
        try:
            for each in langfuse.rows(row):
                (skipped if isinstance(each, Skipped) else good).append(each)
        except Refused as reason:
            refused.append(str(reason))
    return good, skipped, refused


def readings(found, names, rename=None):
    """Some columns of the rows, sorted, a prompt of one text as a message."""
    rows = [{(rename or {}).get(name, name): row[name] for name in names} for row in found]
    for row in rows:
        if isinstance(row["prompt"], str):
            row["prompt"] = [{"role": "user", "content": row["prompt"]}]
    return sorted(json.dumps(row, sort_keys=True) for row in rows)


def of(expected, name):
    return sorted(json.dumps(row, sort_keys=True) for row in expected.get(name, []))


@pytest.mark.parametrize(("scores", "other"), SCORES)
def test_each_type_of_score_is_read_as_its_own(scores, other, expected):
    right = expected(f"langfuse/{scores}")
    rows = list(joined(scores, other))
    assert all(map(langfuse.matches, rows))
    good, skipped, refused = outcomes(rows)
    labels = [row for row in good if isinstance(row.get("label"), bool)]
    words = [row for row in good if isinstance(row.get("label"), str)]
    for row in right["labels"]:
        row["label"] = bool(row["label"])
    for row in right["scores"]:
        row["score"] = float(row["score"])
    assert readings(labels, ("prompt", "completion", "label")) == of(right, "labels")
    named = ("prompt", "completion", "feedback_name")
    assert readings([row for row in good if "score" in row], (*named, "score"), {"feedback_name": "name"}) == of(
        right, "scores"
    )
    assert readings(words, (*named, "label"), {"feedback_name": "name", "label": "value"}) == of(right, "categories")
    pairs = [row for row in good if "chosen" in row]
    assert readings(pairs, ("prompt", "chosen", "rejected")) == of(right, "pairs")
    assert len(skipped) + len(refused) == sum(right["skipped"].values())
    assert len(good) + len(skipped) + len(refused) == right["rows"]


def test_judge_models_remarks_and_sessions_are_skipped():
    _, skipped, refused = outcomes(joined("scores.jsonl", "observations_v2.jsonl"))
    assert sorted(map(str, skipped)) == [
        "a remark",
        "a score of a judge model",
        *["a score of a session or an experiment, not of an answer"] * 2,
    ]
    assert len(refused) == 1 and "`join`" in refused[0]


def test_a_score_joined_with_one_observation_needs_no_gathering():
    score = {
        "name": "thumb",
        "source": "API",
        "data_type": "BOOLEAN",
        "value": 0,
        "trace_id": "t",
        "observation_id": "o",
    }
    other = {"id": "o", "trace_id": "t", "type": "GENERATION", "start_time": "1", "input": "Hi", "output": "Go away"}
    assert list(langfuse.rows({**other, **score, "JOINED": other})) == [
        {"prompt": "Hi", "completion": "Go away", "label": False, "feedback_name": "thumb"}
    ]
    with pytest.raises(Refused, match="not there"):
        list(langfuse.rows({**score, "observation_id": "p", "JOINED": other}))


@pytest.mark.parametrize("path", [*TRACES, "langfuse/observations-export.json"])
def test_the_tables_hold_means_and_words(read, expected, path):
    right, reading = expected(path), read(langfuse, path)
    numbers = right["labels"] + right["scores"]
    for row in numbers:
        row["score"] = float(row.pop("label", row.get("score")))
        row.pop("name", None)
    scored = [{**row, "score": float(row["score"])} for row in reading.rows if "score" in row]
    assert readings(scored, ("prompt", "completion", "score")) == sorted(
        json.dumps(row, sort_keys=True) for row in numbers
    )
    assert reading.having("feedback_name", "label") == [
        {"feedback_name": row["name"], "label": row["value"]} for row in right.get("categories", [])
    ]
    assert sum(reading.skipped.values()) == sum(right["skipped"].values()) and not reading.refused


def test_other_rows_are_not_taken():
    assert not langfuse.matches({"prompt": "a", "completion": "b", "label": True})
    assert not langfuse.matches({"name": "a", "source": "web", "value": 1, "input": "x", "output": "y"})


@pytest.mark.parametrize("path", [*TRACES, "langfuse/observations-export.json"])
def test_spoiled_tables_are_refused_or_skipped(only_known_outcomes, path):
    assert only_known_outcomes(langfuse, path) > 100


@pytest.mark.parametrize(("scores", "other"), SCORES)
def test_spoiled_scores_are_refused_or_skipped(scores, other):
    for row in (spoiled for whole in islice(joined(scores, other), 4) for spoiled in mutants(whole)):
        langfuse.matches(row)
        outcomes([row])
        list(langfuse.gather([row]))
