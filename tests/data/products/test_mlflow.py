"""MLflow's traces with assessments, made from their documented format."""

import pytest

from valence.data.products import mlflow

FILES = ("mlflow/traces.jsonl", "mlflow/search_traces.jsonl")


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_read_as_written(name, read, expected, agrees):
    reading = read(mlflow, name)
    assert not agrees(reading, expected(name))
    assert reading.skipped == {
        "made by a judge": 1, "overridden": 1, "no feedback": 2, "no answer": 1, "an error instead of feedback": 1
    }  # fmt: skip
    assert not reading.refused and not reading.unmatched


def test_names_and_people_are_kept(read):
    rows = read(mlflow, FILES[0]).rows
    assert [row["feedback_name"] for row in rows] == ["user_satisfaction", "human_rating"] + ["user_satisfaction"] * 4
    assert [row["annotator"] for row in rows[2:4]] == ["ann@example.org", "bob@example.org"]


def trace(**changes):
    spans = [
        {"span_id": "r", "attributes": {"mlflow.spanInputs": '"1+1?"', "mlflow.spanOutputs": '"2"'}},
        {
            "span_id": "s",
            "parent_span_id": "r",
            "attributes": {"mlflow.spanInputs": '"q"', "mlflow.spanOutputs": '"a"'},
        },
    ]
    source = {"source_type": "HUMAN", "source_id": "ann"}
    assessment = {"assessment_name": "ok", "source": source, "feedback": {"value": "yes"}, **changes}
    return {"info": {"trace_id": "t", "assessments": [assessment]}, "data": {"spans": spans}}


def test_words_stay_as_they_are():
    (row,) = mlflow.rows(trace(rationale="short"))
    assert row == {
        "prompt": "1+1?", "completion": "2", "label": "yes", "feedback_name": "ok", "annotator": "ann",
        "comment": "short",
    }  # fmt: skip


def test_texts_of_the_table_stay_text():
    row = trace()
    table = {"trace_id": "t", "trace_metadata": {}, "assessments": row["info"]["assessments"]}
    (found,) = mlflow.rows({**table, "request": "1+1?", "response": "2"})
    assert (found["prompt"], found["completion"]) == ("1+1?", "2")


def test_a_span_that_was_judged_is_the_one_that_is_read():
    (row,) = mlflow.rows(trace(span_id="s"))
    assert (row["prompt"], row["completion"]) == ("q", "a")
    with pytest.raises(ValueError, match="the judged span is not in the trace"):
        list(mlflow.rows(trace(span_id="other")))


@pytest.mark.parametrize("name", FILES)
def test_spoiled_rows(name, only_known_outcomes):
    assert only_known_outcomes(mlflow, name) > 100


def test_it_matches_its_own_rows_alone(matches_alone):
    matches_alone(mlflow)
