"""Feedback exported from Open WebUI."""

from __future__ import annotations

import json

import pytest

from valence.data.formats.row import Refused, Skipped
from valence.data.products import openwebui

EXPORT = "openwebui/feedback-history-export-1764378000000.json"
TABLE = "openwebui/feedback-history-export-1764378000001.csv"
ARENA = "openwebui/arena.json"


@pytest.mark.parametrize("path", [EXPORT, ARENA])
def test_every_thumb_is_read_as_it_was_given(read, expected, path):
    reading = read(openwebui, path)
    assert in_order(reading.having("prompt", "completion", "label")) == in_order(expected(path)["labels"])
    assert not reading.unmatched


def test_what_is_no_verdict_is_counted(read):
    reading = read(openwebui, EXPORT)
    assert reading.skipped == {"no rating": 1, "the answer is unfinished": 1, "the answer was edited": 1}
    assert len(reading.refused) == 2  # without a snapshot; voted message gone
    assert read(openwebui, ARENA).skipped == {"a tie": 1}


def test_the_number_of_the_dialog_is_a_column(read, expected):
    rated = [row for row in read(openwebui, EXPORT).rows if "details_rating" in row]
    scores = expected(EXPORT)["scores"]
    assert {row["completion"]: row["details_rating"] for row in rated} == {
        each["completion"]: each["score"] for each in scores
    }
    assert {row["label"] for row in rated if row["details_rating"] == 2} == {False}


def test_the_csv_without_text_says_what_to_export(read):
    reading = read(openwebui, TABLE)
    assert not reading.rows and not reading.unmatched
    assert set(reading.refused) == {"Open WebUI's CSV has neither prompt nor answer: export the feedback as JSON"}


def test_an_attached_file_is_part_of_the_prompt_and_missing():
    row = _feedback()
    row["snapshot"]["chat"]["chat"]["history"]["messages"]["q"]["files"] = [{"type": "image"}]
    assert [type(each) for each in openwebui.rows(row)] == [Skipped]


@pytest.mark.parametrize("rating", [7, 0.5, True, "up", [1]])
def test_another_rating_is_refused(rating):
    row = _feedback()
    row["data"]["rating"] = rating
    with pytest.raises(Refused, match="not 1 or -1"):
        list(openwebui.rows(row))


def test_other_rows_are_not_taken():
    assert not openwebui.matches({"prompt": "a", "completion": "b", "label": True})
    assert not openwebui.matches({"id": 1, "type": "rating", "prompt": "a", "rating": 1})
    assert not openwebui.matches(
        {"id": 1, "user_id": 2, "model_id": 3, "created_at": 4, "updated_at": 5, "prompt": "a"}
    )


@pytest.mark.parametrize("path", [EXPORT, ARENA, TABLE])
def test_spoiled_rows_are_refused_or_skipped(only_known_outcomes, path):
    assert only_known_outcomes(openwebui, path) > 100


def in_order(found):
    return sorted(found, key=lambda row: (row["completion"], row["label"]))


def _feedback() -> dict:
    question = {"id": "q", "parentId": None, "role": "user", "content": "Hi"}
    answer = {"id": "a", "parentId": "q", "role": "assistant", "content": "Hello", "done": True}
    chat = {"history": {"messages": {"q": question, "a": answer}}, "params": {}}
    row = {"type": "rating", "data": {"rating": 1, "model_id": "m"}, "meta": {"message_id": "a"}}
    return json.loads(json.dumps({**row, "snapshot": {"chat": {"chat": chat}}}))
