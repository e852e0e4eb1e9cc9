"""Votes of Chainlit."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import pytest

from tests.data.products.conftest import mutants
from valence.data.formats.read import read_rows
from valence.data.formats.row import Refused, Skipped
from valence.data.products import chainlit

FILES = Path(__file__).parent / "files" / "chainlit"
TABLES = [("feedbacks.csv", "steps.csv", "forId"), ("Feedback.jsonl", "Step.jsonl", "stepId")]
ANSWER = ("prompt", "completion", "label")


def joined(votes, steps, key):
    """The votes' rows, each with its step and the thread of the step."""
    rows = [row for _, row in read_rows(FILES / steps)]
    assert all(map(chainlit.joins, rows))
    found = {row["id"]: row for row in chainlit.gather(rows)}
    for _, row in read_rows(FILES / votes):
        step = found.get(row.get(key))
        yield row if step is None else {"type": step["type"], "name": step["name"], **row, "JOINED": step}


def outcomes(rows):
    """(rows, reasons of skips, reasons of refusals)"""
    good, skipped, refused = [], [], []
    for row in rows:
        try:
            for each in chainlit.rows(row):
                (skipped if isinstance(each, Skipped) else good).append(each)
        except Refused as reason:
            refused.append(str(reason))
    return good, skipped, refused


@pytest.mark.parametrize(("votes", "steps", "key"), TABLES)
def test_a_vote_on_a_run_is_a_vote_on_its_last_answer(votes, steps, key, expected):
    right = expected(f"chainlit/{votes}")
    rows = list(joined(votes, steps, key))
    assert all(map(chainlit.matches, rows))
    good, skipped, refused = outcomes(rows)
    assert [{name: row[name] for name in ANSWER} for row in good] == right["labels"]
    assert all(isinstance(row["label"], bool) and "feedback_name" not in row for row in good)
    assert len(skipped) + len(refused) == sum(right["skipped"].values())


def test_votes_on_errors_and_other_steps_are_counted():
    good, skipped, refused = outcomes(joined(*TABLES[0]))
    assert sorted(map(str, skipped)) == ["a vote on a step that is no answer", "an error message"]
    assert len(refused) == 1 and "`join` the table of steps" in refused[0]
    assert [row["comment"] for row in good if "comment" in row] == ["wrong syllables, and\ntoo long", "second reviewer"]


def test_threads_hold_their_votes(read, expected):
    reading = read(chainlit, "chainlit/threads.json")
    assert reading.having(*ANSWER) == expected("chainlit/threads.json")["labels"]
    assert reading.having("annotator")[2] == {"annotator": "ben"}
    assert reading.skipped == {"an error message": 1, "a thread without a vote": 1}


def test_literal_ai_has_scores_beside_the_thumb(read, expected):
    reading, right = read(chainlit, "chainlit/literalai-threads.json"), expected("chainlit/literalai-threads.json")
    assert reading.having(*ANSWER) == right["labels"]
    scored = [{**row, "name": row["feedback_name"]} for row in reading.rows if "score" in row]
    assert [{name: row[name] for name in right["scores"][0]} for row in scored] == right["scores"]
    assert {row["feedback_name"] for row in reading.rows} == {"user-feedback", "helpfulness"}
    assert reading.skipped == {"a score of a judge model": 1}


def test_one_bad_vote_does_not_lose_the_others():
    question = {"id": "q", "type": "user_message", "threadId": "t", "output": "Hi", "createdAt": "1"}
    first = {"id": "a", "type": "assistant_message", "threadId": "t", "output": "Hello", "createdAt": "2"}
    second = {**first, "id": "b", "createdAt": "3"}
    thread = {"steps": [question, {**first, "feedback": {"value": 2}}, {**second, "feedback": {"value": 0}}]}
    found = chainlit.rows(thread)
    assert next(found)["label"] is False
    with pytest.raises(Refused, match="value is 2, not 1 or 0"):
        next(found)


def test_other_rows_are_not_taken():
    assert not chainlit.matches({"prompt": "a", "completion": "b", "label": True})
    assert not chainlit.matches({"id": 1, "name": "helpful", "value": 1})
    assert not chainlit.matches({"prompt": "a", "steps": ["1 + 1", "= 2"]})


def test_spoiled_threads_are_refused_or_skipped(only_known_outcomes):
    assert only_known_outcomes(chainlit, "chainlit/threads.json") > 100
    assert only_known_outcomes(chainlit, "chainlit/literalai-threads.json") > 100


@pytest.mark.parametrize(("votes", "steps", "key"), TABLES)
def test_spoiled_votes_are_refused_or_skipped(votes, steps, key):
    for row in (spoiled for whole in islice(joined(votes, steps, key), 2) for spoiled in mutants(whole)):
        chainlit.matches(row)
        outcomes([row])
        list(chainlit.gather([row]))
