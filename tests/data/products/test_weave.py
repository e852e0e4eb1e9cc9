"""Weave's calls with feedback, made from its documented format."""

import pytest

from valence.data.products import weave

CALLS, QUERY = "weave/calls_with_feedback.jsonl", "weave/feedback_query.json"


def test_calls_are_read_as_written(read, expected, agrees):
    reading = read(weave, CALLS)
    assert not agrees(reading, expected(CALLS))
    assert reading.skipped == {
        "a note": 1, "a reaction that is no thumb": 1, "made by a scorer": 1, "no output": 1, "no feedback": 1,
        "feedback of a type of one's own": 1,
    }  # fmt: skip
    assert not reading.refused and not reading.unmatched


def test_names_and_people_are_kept(read):
    rows = read(weave, CALLS).rows
    assert [row["feedback_name"] for row in rows] == ["reaction"] * 3 + ["helpful", "rating"]
    assert [row["annotator"] for row in rows] == ["VXNlcjox", "ann", "bob", "VXNlcjox", "VXNlcjox"]


def test_a_query_alone_has_no_prompt(read):
    assert "fetch the calls with `include_feedback=True`" in read(weave, QUERY).refused[0]


def feedback(kind="wandb.reaction.1", **payload):
    call = {"inputs": {"question": "1+1?", "model": "m", "of": "weave:///x"}, "output": "2"}
    return {"feedback_type": kind, "weave_ref": "weave:///e/p/call/c", "payload": payload, "JOINED": call}


def test_joined_feedback_is_read():
    (row,) = weave.rows(feedback(emoji="👎🏿"))
    assert row == {"prompt": "1+1?", "completion": "2", "label": False, "feedback_name": "reaction"}


def test_an_annotation_of_no_simple_kind_is_skipped():
    (row,) = weave.rows(feedback("wandb.annotation.tags", value=["a"]))
    assert str(row) == "an annotation that is no number, text or boolean"


def test_two_texts_are_no_clear_prompt():
    row = feedback(emoji="👍")
    row["JOINED"]["inputs"]["other"] = "text"
    with pytest.raises(ValueError, match="inputs have 2 texts"):
        list(weave.rows(row))


@pytest.mark.parametrize("name", (CALLS, QUERY))
def test_spoiled_rows(name, only_known_outcomes):
    assert only_known_outcomes(weave, name) > 100


def test_it_matches_its_own_rows_alone(matches_alone):
    matches_alone(weave)
