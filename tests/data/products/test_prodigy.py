"""Prodigy's db-out, made from its documented format."""

import pytest

from valence.data.products import prodigy

SKIPPED = {
    "binary_and_rating.jsonl": {"ignored": 1},
    "choice_ab.jsonl": {"ignored": 1, "nothing is chosen": 1, "several are chosen": 1, "a rejected task": 1},
    "compare.jsonl": {"ignored": 1},
    "review.jsonl": {},
}


@pytest.mark.parametrize("name", SKIPPED)
def test_a_file_is_read_as_written(name, read, expected, agrees):
    reading = read(prodigy, f"prodigy/{name}")
    assert not agrees(reading, expected(f"prodigy/{name}"))
    assert reading.skipped == SKIPPED[name]
    assert not reading.refused and not reading.unmatched


def test_annotators_are_kept(read):
    rows = read(prodigy, "prodigy/binary_and_rating.jsonl").rows
    assert [row.get("annotator") for row in rows] == ["bin-ann", "bin-ann", "bin-bob", "bin-ann", None]


def task(**changes):
    return {"prompt": "1+1?", "response": "2", "answer": "accept", "_task_hash": 1, **changes}


OPTIONS = [{"id": 1, "text": "good"}, {"id": 2, "text": "bad"}, {"id": 3, "text": "odd"}]


def test_an_option_about_a_response_is_a_label():
    (row,) = prodigy.rows(task(options=OPTIONS, accept=[2]))
    assert row["label"] == "bad"


def test_one_of_three_beats_both_others():
    (row,) = prodigy.rows(task(options=OPTIONS, accept=[3], response=None))
    assert (row["completions"], row["ranks"]) == (["odd", "good", "bad"], [1, 2, 2])


@pytest.mark.parametrize(
    "changes, reason",
    [
        ({"label": "TOXIC"}, "whether a label fits"),
        ({"response": None}, "a task without response"),
        ({"options": OPTIONS, "accept": [9]}, "none of the options"),
    ],
)
def test_what_is_refused(changes, reason):
    with pytest.raises(ValueError, match=reason):
        list(prodigy.rows(task(**changes)))


@pytest.mark.parametrize("name", SKIPPED)
def test_spoiled_rows(name, only_known_outcomes):
    assert only_known_outcomes(prodigy, f"prodigy/{name}") > 100


def test_it_matches_its_own_rows_alone(matches_alone):
    matches_alone(prodigy)
