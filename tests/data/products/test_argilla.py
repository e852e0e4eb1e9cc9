"""Argilla's records, made from its documented format."""

import pytest

from valence.data.products import argilla

FILES = ("flat_chat_label_hub.jsonl", "flat_ranking.json", "flat_rating.jsonl", "nested_index_ranking.json")
NESTED = "records_nested_rating_label.json"
WORDS = {"good": 1, "bad": 0}


@pytest.mark.parametrize("name", (*FILES, NESTED))
def test_a_file_is_read_as_written(name, read, expected, agrees):
    reading, written = read(argilla, f"argilla/{name}"), expected(f"argilla/{name}")
    if "ranking" in name:
        written["rankings"] = [
            {"prompt": pair["prompt"], "completions": [pair["chosen"], pair["rejected"]]} for pair in written["pairs"]
        ]
        written["pairs"] = []
    others = agrees(reading, written, WORDS)
    assert others == (["skip_unclear"] if "chat" in name else [])
    assert not reading.refused and not reading.unmatched


def test_what_is_skipped(read):
    assert read(argilla, "argilla/flat_rating.jsonl").skipped == {"discarded": 3, "a draft": 1, "no response": 1}
    assert read(argilla, "argilla/flat_chat_label_hub.jsonl").skipped == {"a draft": 1, "a comment": 1}
    ranking = {"discarded": 1, "no response": 1, "ranked answers are the same": 1}
    assert read(argilla, "argilla/flat_ranking.json").skipped == ranking
    assert read(argilla, f"argilla/{NESTED}").skipped == {
        "no response": 1,
        "several labels, or a ranking of no fields": 1,
    }


def test_questions_are_named_and_annotators_kept(read):
    rows = read(argilla, f"argilla/{NESTED}").rows
    assert {row["feedback_name"] for row in rows if "score" in row} == {"rating"}
    assert {row["feedback_name"] for row in rows if "label" in row} == {"label"}
    assert len({row["annotator"] for row in rows}) == 3


def record(**responses):
    fields = {"instruction": "1+1?", "response": "2", "context": "Base ten."}
    return {"_server_id": "s", "fields": fields, "responses": responses}


def test_context_belongs_to_the_prompt():
    (row,) = argilla.rows(record(rating=[{"value": 5, "user_id": "u"}]))
    assert row == {
        "prompt": "1+1?\n\nBase ten.", "completion": "2", "score": 5, "feedback_name": "rating", "annotator": "u"
    }  # fmt: skip


def test_given_ranks_may_tie():
    ranks = [{"value": "response", "rank": 1}, {"value": "other", "rank": 1}]
    row = record(order=[{"value": ranks, "user_id": "u"}])
    row["fields"]["other"] = "two"
    assert next(argilla.rows(row))["ranks"] == [1, 1]


def test_columns_of_records():
    columns = {
        "_server_id": ["a", "b"], "prompt": ["1?", "2?"], "response": ["1", "2"], "q.responses": [[1], [2]],
        "q.responses.users": [["u"], ["v"]], "q.responses.status": [["submitted"], ["submitted"]],
    }  # fmt: skip
    assert argilla.matches(columns)
    assert [(row["prompt"], row["score"]) for row in argilla.rows(columns)] == [("1?", 1), ("2?", 2)]


def test_one_bad_answer_does_not_lose_the_others():
    found = argilla.rows(record(rating=[{"value": {}, "user_id": "u"}, {"value": 4, "user_id": "v"}]))
    assert next(found)["score"] == 4
    with pytest.raises(ValueError, match="a response to rating is neither"):
        next(found)


def test_a_record_without_an_answer_field_is_refused():
    row = record(rating=[{"value": 5}])
    del row["fields"]["response"]
    with pytest.raises(ValueError, match=r"no field is named response or .*: there are instruction, context"):
        list(argilla.rows(row))


@pytest.mark.parametrize("name", (*FILES, NESTED))
def test_spoiled_rows(name, only_known_outcomes):
    assert only_known_outcomes(argilla, f"argilla/{name}") > 100


def test_it_matches_its_own_rows_alone(matches_alone):
    matches_alone(argilla)
