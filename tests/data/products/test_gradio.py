"""Flag logs of Gradio."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

import pytest

from tests.data.products.conftest import mutants
from valence.data.formats.row import Refused, Skipped
from valence.data.products import gradio

FILES = Path(__file__).parent / "files" / "gradio"
WORDS = {"Like": 1, "Dislike": 0}


def chat_log(name):
    """The rows of a chat log with their lines, cells named by position."""
    with (FILES / name).open(newline="") as file:
        header, *lines = csv.reader(file)
    return [(line, gradio.repair(header, cells)) for line, cells in enumerate(lines, 2)]


@pytest.mark.parametrize(("name", "spam"), [("log.csv", 1), ("log-gradio5.csv", 0)])
def test_the_last_vote_on_an_answer_counts(name, spam, expected):
    right = expected(f"gradio/{name}")
    outcomes = [outcome for _, outcome in gradio.group(chat_log(name))]
    good = [each for each in outcomes if isinstance(each, dict)]
    thumbs = [{**row, "label": WORDS[row["label"]]} for row in good if row["label"] in WORDS]
    assert thumbs == right["labels"]
    assert [row["label"] for row in good if row["label"] not in WORDS] == ["Spam"] * spam
    assert len(outcomes) == right["rows"]


def test_withdrawn_and_replaced_votes_are_counted():
    outcomes = [outcome for name in ("log.csv", "log-gradio5.csv") for _, outcome in gradio.group(chat_log(name))]
    assert Counter(str(each) for each in outcomes if isinstance(each, Skipped)) == {
        gradio.WITHDRAWN: 2,
        gradio.REPLACED: 2,
        "a file or component, not text": 1,
    }
    assert sorted(str(each) for each in outcomes if isinstance(each, Refused)) == [
        "no answer at the index of the vote",
        "the conversation is not JSON",
    ]


def test_a_row_alone_gives_its_vote():
    found = [list(gradio.rows(row)) for _, row in chat_log("log.csv")[:4]]
    assert [each[0]["label"] for each in found[:3]] == ["Like", "Dislike", "Like"]
    assert isinstance(found[3][0], Skipped)


def test_only_the_header_with_one_name_too_many_is_repaired():
    assert gradio.repair(gradio.HEADER, ["[]", "1", "Like", "now"]) == dict(
        zip(gradio.CELLS, ["[]", "1", "Like", "now"], strict=True)
    )
    assert gradio.repair(gradio.HEADER, ["[]", "1", "Like", "x", "now"]) is None
    assert gradio.repair(["conversation", "index", "value"], ["[]", "1"]) is None


def test_an_interface_has_its_flag_as_label(read, expected):
    reading, right = read(gradio, "gradio/dataset1.csv"), expected("gradio/dataset1.csv")
    words = {"correct": 1, "incorrect": 0}
    found = [row for row in reading.rows if row["label"] in words and "output" in row]
    assert [(row["question"], row["output"], words[row["label"]]) for row in found] == [
        (row["prompt"][0]["content"], row["completion"], row["label"]) for row in right["labels"]
    ]
    assert {row["annotator"] for row in reading.rows} == {"rita", "omar"}
    assert len(reading.rows) == right["rows"] and not reading.unmatched


def test_an_empty_flag_says_nothing(read):
    assert not read(gradio, "gradio/log-classic.csv").rows


def test_other_rows_are_not_taken():
    assert not gradio.matches({"prompt": "a", "completion": "b", "label": True})
    assert not gradio.matches({"prompt": "a", "completion": "b", "flag": "good", "timestamp": "2026-11-20"})
    assert not gradio.matches({"prompt": "a", "flag": "good", "timestamp": "2026-11-20 10:00:01.123456", "more": 1})
    assert not gradio.matches({"conversation": [], "index": 1, "timestamp": "x", "label": 1})


def test_spoiled_rows_are_refused_or_skipped(only_known_outcomes):
    assert only_known_outcomes(gradio, "gradio/dataset1.csv") > 100
    count = 0
    for line, row in chat_log("log.csv") + chat_log("log-gradio5.csv"):
        whole = {**row, "conversation": gradio._parsed(row["conversation"]), "index": gradio._parsed(row["index"])}
        for spoiled in mutants(whole):
            count += 1
            gradio.matches(spoiled)
            outcomes = [outcome for _, outcome in gradio.group([(line, spoiled)])]
            assert len(outcomes) == 1 and isinstance(outcomes[0], (dict, Skipped, Refused))
    assert count > 1000
