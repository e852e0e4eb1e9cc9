"""Logs in OpenAI's formats, made from the documented ones."""

import pytest

from valence.data.products import openai_logs

BATCH = ("batch_output_with_verdict.jsonl", "openai_logs/batch_input.jsonl", "custom_id")
NONE, FAILED = "no verdict", "the request failed"
SKIPPED = {
    BATCH[0]: {FAILED: 1},
    "helicone_export.jsonl": {NONE: 1, FAILED: 1},
    "litellm_standard_logging.jsonl": {FAILED: 1, "redacted": 1, NONE: 1},
    "request_response_verdict.jsonl": {NONE: 1, "a refusal": 1, "several answers, and one verdict": 1, FAILED: 1},
    "stored_completions_list.json": {NONE: 1},
}
WORDS = {"good": 1, "bad": 0, "up": 1, "down": 0, "thumbs_up": 1, "thumbs_down": 0}


@pytest.mark.parametrize("name", SKIPPED)
def test_a_file_is_read_as_written(name, read, expected, agrees):
    reading = read(openai_logs, f"openai_logs/{name}", *(BATCH[1:] if name == BATCH[0] else ()))
    assert not agrees(reading, expected(f"openai_logs/{name}"), WORDS)
    assert reading.skipped == SKIPPED[name]
    assert len(reading.refused) == (1 if "stored" in name else 0) and not reading.unmatched


def test_a_batch_alone_asks_for_its_input(read):
    reading = read(openai_logs, f"openai_logs/{BATCH[0]}")
    assert reading.refused[0].endswith("give the input with `join=batch_input.jsonl on=custom_id`")
    assert len(reading.refused) == 3 and not reading.skipped and not reading.rows


def log(content="2", **columns):
    response = {"choices": [{"message": {"role": "assistant", "content": content}}]}
    return {"request": {"messages": [{"role": "user", "content": "1+1?"}]}, "response": response, **columns}


@pytest.mark.parametrize(
    "columns, found",
    [
        ({"verdict": 0}, [("label", 0, "verdict")]),
        ({"rating": "4"}, [("score", 4.0, "rating")]),
        ({"rating": 4, "thumb": True}, [("label", True, "thumb"), ("score", 4.0, "rating")]),
        ({"metadata": {"vote": "up"}}, [("label", "up", "vote")]),
    ],
)
def test_where_a_verdict_may_be(columns, found):
    rows = list(openai_logs.rows(log(**columns)))
    assert [(key, row[key], row["feedback_name"]) for row in rows for key in ("label", "score") if key in row] == found


def test_an_image_is_skipped():
    row = log(verdict="good")
    row["request"]["messages"][0]["content"] = [{"type": "image_url", "image_url": {"url": "x"}}]
    assert [str(each) for each in openai_logs.rows(row)] == ["an image"]


def test_who_judged_is_kept(read):
    rows = read(openai_logs, "openai_logs/request_response_verdict.jsonl").rows
    assert [row.get("annotator") for row in rows] == ["ann", "ann", "bob", "bob", None]


@pytest.mark.parametrize("name", SKIPPED)
def test_spoiled_rows(name, only_known_outcomes):
    assert only_known_outcomes(openai_logs, f"openai_logs/{name}", *(BATCH[1:] if name == BATCH[0] else ())) > 100


def test_it_matches_its_own_rows_alone(matches_alone):
    matches_alone(openai_logs)
