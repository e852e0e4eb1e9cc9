"""Phoenix's annotations joined with their spans, made from the documented format."""

import pytest

from valence.data.products import phoenix

FILES = ("phoenix/span_annotations.csv", "phoenix/span_annotations_api.json")
JOIN = ("phoenix/spans.jsonl", "span_id=context.span_id")


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_read_as_written(name, read, expected, agrees):
    reading = read(phoenix, name, *JOIN)
    assert not agrees(reading, expected(name), {"thumbs-up": 1, "thumbs-down": 0})
    assert reading.skipped == {"made by a judge": 1, "no answer": 1, "no label and no score": 1}
    assert not reading.refused and not reading.unmatched
    assert [row["feedback_name"] for row in reading.rows] == ["feedback"] * 3 + ["quality"]
    assert [row["annotator"] for row in reading.rows] == ["VXNlcjox", "VXNlcjox", "VXNlcjoy", "VXNlcjox"]


@pytest.mark.parametrize("name", FILES)
def test_annotations_alone_ask_for_the_spans(name, read):
    reading = read(phoenix, name)
    assert {each.rpartition("give the spans with ")[2] for each in reading.refused} == {
        "`join=spans.jsonl on=span_id=context.span_id`"
    }
    assert len(reading.refused) == 7 and not reading.rows


def annotation(**span):
    span = {f"attributes.{name}": value for name, value in span.items()}
    label = {"annotation_name": "ok", "annotator_kind": "HUMAN", "span_id": "s", "result.label": "yes"}
    return {**label, "JOINED": span}


def test_inputs_and_outputs_that_are_text():
    (row,) = phoenix.rows(annotation(**{"input.value": "1+1?", "output.value": "2"}))
    assert row == {"prompt": "1+1?", "completion": "2", "label": "yes", "feedback_name": "ok"}


def test_an_input_without_messages_is_refused():
    span = {"input.value": '{"a": 1}', "input.mime_type": "application/json", "output.value": "2"}
    with pytest.raises(ValueError, match="an object without messages"):
        list(phoenix.rows(annotation(**span)))


def test_an_answer_that_looks_like_json_stays_text():
    (row,) = phoenix.rows(annotation(**{"input.value": "A list?", "output.value": "[1, 2]"}))
    assert row["completion"] == "[1, 2]"


@pytest.mark.parametrize("name", FILES)
def test_spoiled_rows(name, only_known_outcomes):
    assert only_known_outcomes(phoenix, name, *JOIN) > 100


def test_it_matches_its_own_rows_alone(matches_alone):
    matches_alone(phoenix)
