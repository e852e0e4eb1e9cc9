"""Label Studio's exports, made from its documented format."""

import pytest

from valence.data.products import label_studio

SKIPPED = {
    "grading.json_min.json": {"an annotation without a verdict": 1, "several choices": 1, "no annotation": 1},
    "grading_rating_choices.json": {"cancelled": 1, "an annotation without a verdict": 1, "several choices": 1},
    "pairwise.csv": {"an empty annotation": 1},
    "pairwise.json": {"cancelled": 2, "an empty annotation": 1, "no annotation": 1},
    "ranker.json": {"cancelled": 1},
    "ranker_buckets.json": {"items left unplaced": 1, "nothing is ranked": 1},
}


@pytest.mark.parametrize("name", SKIPPED)
def test_a_file_is_read_as_written(name, read, expected, agrees):
    reading = read(label_studio, f"label_studio/{name}")
    assert not agrees(reading, expected(f"label_studio/{name}"), {"Good": 1, "Bad": 0})
    assert reading.skipped == SKIPPED[name]
    missing = ["rank ranks an item that the task does not have"]
    assert reading.refused == (missing if name == "ranker.json" else [])
    assert not reading.unmatched


def test_annotators_comments_and_names_are_kept(read):
    rows = read(label_studio, "label_studio/grading_rating_choices.json").rows
    assert {row["feedback_name"] for row in rows} == {"rating", "verdict"}
    assert [row["annotator"] for row in rows if row.get("comment")] == ["1", "1"]
    assert read(label_studio, "label_studio/pairwise.json").rows[-1]["annotator"] == "2"
    assert read(label_studio, "label_studio/ranker_buckets.json").rows[0]["feedback_name"] == "rank.relevant_results"


def task(data, value, to_name="x"):
    result = [{"value": value, "from_name": "tag", "to_name": to_name, "type": "t"}]
    return {"id": 1, "data": data, "annotations": [{"result": result, "was_cancelled": False}]}


@pytest.mark.parametrize(
    "first, second", [("answer1", "answer2"), ("response_a", "response_b"), ("OutputA", "OutputB")]
)
def test_left_is_the_field_with_the_lower_number(first, second):
    data = {second: "right one", first: "left one", "prompt": "p", "model_a": "m", "model_b": "n"}
    (row,) = label_studio.rows(task(data, {"selected": "left"}))
    assert (row["chosen"], row["rejected"]) == ("left one", "right one")
    (row,) = label_studio.rows(task(data, {"selected": "right"}))
    assert (row["chosen"], row["rejected"]) == ("right one", "left one")


def test_the_tags_own_names_win():
    data = {"prompt": "p", "answer1": "1", "answer2": "2"}
    (row,) = label_studio.rows(task(data, {"selected": "left"}, to_name="answer2,answer1"))
    assert row["chosen"] == "2"


@pytest.mark.parametrize("data", [{"good": "1", "bad": "2"}, {"foo1": "1", "foo2": "2", "bar1": "3", "bar2": "4"}])
def test_unclear_sides_are_refused(data):
    with pytest.raises(ValueError, match="which fields are left and right is not clear"):
        list(label_studio.rows(task({"prompt": "p", **data}, {"selected": "left"})))


def test_the_judged_field_is_the_one_that_the_tag_names():
    data = {"prompt": "p", "answer1": "1", "answer2": "2"}
    (row,) = label_studio.rows(task(data, {"rating": 4}, to_name="answer2"))
    assert (row["completion"], row["score"]) == ("2", 4)
    with pytest.raises(ValueError, match="no field is named response"):
        list(label_studio.rows(task(data, {"rating": 4}, to_name="x")))


def test_a_chat_ends_with_its_answer():
    chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    (row,) = label_studio.rows(task({"chat": chat}, {"choices": ["yes"]}))
    assert (row["prompt"], row["completion"], row["label"]) == (chat[:1], "Hello", "yes")


def test_choices_of_a_table_are_yielded_by_name():
    row = {"annotation_id": "1", "annotator": "2", "lead_time": "3", "prompt": "p", "response": "r", "verdict": "yes"}
    (found,) = label_studio.rows(row)
    assert (found["label"], found["feedback_name"]) == ("yes", "verdict")


@pytest.mark.parametrize("name", SKIPPED)
def test_spoiled_rows(name, only_known_outcomes):
    assert only_known_outcomes(label_studio, f"label_studio/{name}") > 100


def test_it_matches_its_own_rows_alone(matches_alone):
    matches_alone(label_studio)
