"""Rows and files that cannot be used: the exact line and the exact reason, and never anything but UserError."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from valence.data.load import load_feedback
from valence.errors import UserError

GOOD = {"prompt": "a", "completion": "b", "label": 1}
USER = {"role": "user", "content": "hi"}
BOT = {"role": "assistant", "content": "yes"}

BAD_ROWS = [
    ("{oops", "not JSON: Expecting property name enclosed in double quotes at column 2"),
    ("[1, 2]", "not a JSON object"),
    ("17", "not a JSON object"),
    ({"id": 3}, "no prompt, completion, pair or ranking among its columns (id): name them with `columns`"),
    ({}, "no prompt, completion, pair or ranking among its columns (none): name them with `columns`"),
    ({**GOOD, "completion": ""}, "completion is empty"),
    ({**GOOD, "completion": " \n"}, "completion is empty"),
    ({**GOOD, "completion": 5}, "completion is a number, not text or messages"),
    ({**GOOD, "prompt": 5}, "prompt is a number, not text or messages"),
    ({**GOOD, "prompt": ["hi", "ho"]}, "prompt is a list with text in it, not a list of messages"),
    ({**GOOD, "prompt": [{"content": "hi"}]}, "prompt has a message without a role"),
    ({**GOOD, "completion": [{**BOT, "content": None, "tool_calls": [1]}]},
     "completion has a message without text (tool calls are not supported)"),
    ({**GOOD, "completion": [{**BOT, "content": [{"type": "image_url"}]}]},
     "completion has a message part that is not text ('image_url')"),
    ('{"prompt": "a", "completion": "\\ud800", "label": 1}', "completion is not valid Unicode"),
    ({**GOOD, "label": [1, 0]}, "label is a list, not a label"),
    ({**GOOD, "accept": 0}, "label and accept contradict each other"),
    ({"prompt": "a", "completion": "b", "reward": True},
     "reward is True: a boolean is a label, not a score"),
    ('{"prompt": "a", "completion": "b", "reward": NaN}', "reward is nan: not a finite number"),
    ('{"prompt": "a", "completion": "b", "score": -Infinity}', "score is -inf: not a finite number"),
    ({"prompt": "a", "completion": "b", "score": "nan"}, "score is nan: not a finite number"),
    ({"prompt": "a", "completion": "b", "score": 10**400}, "score is too large a number"),
    ({"prompt": "a", "completion": "b", "score": "much"}, "score is 'much', not a number"),
    ({"prompt": "a", "completion": "b", "score": {}}, "score is an object, not a number"),
    ({"prompt": "a", "label": True}, "label without a completion"),
    ({"prompt": "a", "completion": None, "score": 3}, "score without a completion"),
    ({"prompt": "a", "scores": [1, 2]}, "scores without a completion"),
    ({"prompt": ""}, "prompt is empty, and the row has no completion"),
    ({"prompt": "a", "chosen": "b", "rejected": "b"}, "chosen and rejected are the same"),
    ({"prompt": "a", "chosen": "b", "rejected": ""}, "rejected is empty"),
    ({"prompt": "a", "chosen": "b"}, "chosen without rejected"),
    ({"prompt": "a", "rejected": "b"}, "rejected without chosen"),
    ({"prompt": "a", "chosen": "b", "rejected": "c", "score_chosen": 1, "score_rejected": 2},
     "chosen scores 1, less than rejected with 2"),
    ({"prompt": "a", "chosen": "b", "rejected": "c", "score_chosen": 1},
     "score_chosen without a score of the other completion"),
    ({"prompt": "a", "chosen": "b", "rejected": "c", "margin": -1},
     "margin is -1, which makes rejected the better one"),
    ({"prompt": "a", "chosen": "b", "rejected": "c", "margin": float("nan")}, "margin is nan: not a finite number"),
    ({**GOOD, "chosen": "b", "rejected": "c"}, "a pair and a completion with label in one row: keep one of the two"),
    ({"chosen": [USER, BOT], "rejected": [{**USER, "content": "ho"}, BOT]},
     "chosen and rejected answer different prompts"),
    ({"chosen": [USER, BOT], "rejected": [USER, BOT]}, "chosen and rejected are the same"),
    ({"chosen": [USER, BOT], "rejected": [USER]}, "chosen and rejected answer different prompts"),
    ({"prompt": "else", "chosen": [USER, BOT], "rejected": [USER, {**BOT, "content": "no"}]},
     "chosen and rejected begin with another prompt than the row's"),
    ({"messages": [USER], "label": 1}, "completion does not end with an answer of the assistant"),
    ({"messages": [USER, BOT, USER], "label": 1}, "completion does not end with an answer of the assistant"),
    ({"messages": [USER, {**BOT, "content": " "}], "label": 1},
     "completion does not end with an answer of the assistant"),
    ({"prompt": [USER], "chosen": [BOT], "rejected": [{**BOT, "role": "tool"}]},
     "rejected does not end with an answer of the assistant"),
    ({"chosen_conversations": [USER, BOT], "rejected_conversations": [USER, {**BOT, "content": "no"}, USER]},
     "rejected does not end with an answer of the assistant"),
    ({"conversations": "hi", "kto_tag": True}, "conversations is not a list of messages"),
    ({"prompt": "a", "completions": ["b", "c"], "scores": [1]}, "2 completions but 1 scores"),
    ({"prompt": "a", "completions": ["b", "c"], "ranks": [1, 2, 3]}, "2 completions but 3 ranks"),
    ({"prompt": "a", "completions": ["b", "c"]}, "completions without scores or ranks"),
    ({"prompt": "a", "completions": ["b"], "scores": [1]}, "completions has 1 items: a ranking needs two or more"),
    ({"prompt": "a", "completions": "bc", "scores": [1, 2]}, "completions is not a list"),
    ({"prompt": "a", "completions": ["b", "c"], "scores": 3}, "scores is not a list"),
    ({"prompt": "a", "completions": ["b", "c"], "scores": [1, True]},
     "scores[1] is True: a boolean is a label, not a score"),
    ({"prompt": "a", "completions": ["b", ""], "scores": [1, 2]}, "completions[1] is empty"),
    ({"prompt": "a", "completions": ["b", "c"], "scores": [1, 2], "ranks": [1, 2]},
     "scores and ranks contradict each other"),
    ({"prompt": "a", "completions": ["b", "c"], "labels": [True, False]},
     "the labels are of single steps: give one label or score for the whole answer"),
    ({"prompt": "a", "response_0": "b", "response_0_reward": 1, "response_1": "c"},
     "response_1 has no response_1_reward"),
    ({"type": "pairwise_feedback", "prompt": "a", "output_A": "b", "output_B": "c"},
     "a pair without a label: give the better output in `label`"),
    ({"type": "binary_feedback", "prompt": "a", "label": 1}, "completion is missing"),
    ({"type": "scalar_feedback", "prompt": "a", "output": "b"}, "reward is missing"),
    ({"instruction": "a", "output": "b", "history": "x"}, "history is not a list of [instruction, answer]"),
]  # fmt: skip


@pytest.mark.parametrize(("bad", "reason"), BAD_ROWS)
def test_a_bad_row_is_told_by_line_and_reason_and_loading_goes_on(load_rows: Any, bad: Any, reason: str) -> None:
    loaded = load_rows(GOOD, "", bad, GOOD)
    assert [(problem.line, problem.reason) for problem in loaded.problems] == [(3, reason)]
    assert [record.line for record in loaded.records] == [1, 4]
    assert loaded.rows == 3


@pytest.mark.parametrize(("bad", "reason"), BAD_ROWS[:5])
def test_strict_names_the_first_problem_and_their_number(load_rows: Any, bad: Any, reason: str) -> None:
    with pytest.raises(UserError) as caught:
        load_rows(GOOD, bad, bad, strict=True)
    assert str(caught.value).endswith(f"rows.jsonl:2: {reason} (and 1 more rows with problems)")


def test_strict_passes_what_has_no_problem(load_rows: Any) -> None:
    assert load_rows(GOOD, strict=True).rows == 1


FILES = [
    ("empty.jsonl", b"", "the file is empty"),
    ("blank.jsonl", b"\n \n", "the file is empty"),
    ("junk.jsonl", bytes(range(256)) * 8, "a binary file, and neither JSON, JSONL, CSV nor Parquet"),
    ("prose.json", b"Once upon a time.\nThe end.", "not JSON, JSONL, CSV or Parquet (not JSON: Expecting value at co"),
    ("cut.json", b'[{"prompt": "a"}, ', "not JSON, JSONL, CSV or Parquet (not JSON: Expecting value at column 19)"),
    (
        "late.json",
        b'[{"prompt": "a"},\n{"prompt": }]',
        "not JSON, JSONL, CSV or Parquet (not JSON: Expecting value at li",
    ),
    ("latin.jsonl", b"\xff\xfe{", "not JSON, JSONL, CSV or Parquet (not UTF-8 text)"),
    ("number.json", b"3", "not JSON, JSONL, CSV or Parquet (neither a list nor an object)"),
    ("none.json", b"[]", "no rows"),
    ("nothing.jsonl", b'{"id": 1}\n{"id": 2}\n', "none of its 2 rows can be used; line 1: no prompt, completion, pair"),
    ("cut.jsonl.gz", gzip.compress(b'{"prompt": "a"}', mtime=0)[:-4], "a damaged or incomplete gzip file"),
    ("bad.parquet", b"PAR1 and no more", "a damaged Parquet file"),
    ("twice.csv", b"prompt,prompt\na,b\n", "the header names a column twice"),
    ("latin.csv", b"prompt,completion\na,\xe9\n", "not UTF-8 text"),
]


@pytest.mark.parametrize(("name", "content", "reason"), FILES)
def test_a_file_that_cannot_be_read_gives_one_clear_line(write: Any, name: str, content: bytes, reason: str) -> None:
    with pytest.raises(UserError) as caught:
        load_feedback([write(name, content)])
    message = str(caught.value)
    assert name in message and reason in message and "\n" not in message


def test_no_such_file_and_a_folder_that_is_no_dataset(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.jsonl: no such file$"):
        load_feedback([tmp_path / "none.jsonl"])
    with pytest.raises(UserError, match=r"a folder that is no saved dataset: give the files in it$"):
        load_feedback([tmp_path])
    (tmp_path / "state.json").write_text("{")
    with pytest.raises(UserError, match="a damaged saved dataset"):
        load_feedback([tmp_path])


def test_no_files() -> None:
    with pytest.raises(UserError, match="no feedback files given"):
        load_feedback([])


def test_unknown_and_absent_columns(load_rows: Any) -> None:
    with pytest.raises(UserError, match="has promt=question, which is no field: the fields are prompt, completion"):
        load_rows(GOOD, columns={"promt": "question"})
    with pytest.raises(UserError, match="has prompt=question, and no row has a column question: there are prompt, c"):
        load_rows(GOOD, columns={"prompt": "question"})


def test_one_field_named_twice(load_rows: Any) -> None:
    with pytest.raises(UserError, match="`columns` names the field reward twice"):
        load_rows(GOOD, columns={"score": "a", "reward": "b"})


def test_one_unusable_file_among_good_ones_is_named(write: Any) -> None:
    good, bad = write("good.jsonl", json.dumps(GOOD)), write("bad.jsonl", '{"id": 1}')
    with pytest.raises(UserError, match=r"bad\.jsonl: none of its 1 rows"):
        load_feedback([good, bad])


NAMES = (
    "prompt completion label accept reward score chosen rejected completions scores ranks margin split type messages",
    "conversations instruction output response input preferred_output non_preferred_output response_0 labels role",
    "response_0_reward content from value history system kto_tag score_chosen binary_feedback text",
)
WORDS = st.sampled_from([name for line in NAMES for name in line.split()])
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | WORDS
JUNK = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=6), max_leaves=12
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(JUNK, min_size=1, max_size=4), array=st.booleans(), good=st.booleans())
def test_junk_never_raises_anything_but_user_error(write: Any, rows: list[Any], array: bool, good: bool) -> None:
    rows = [GOOD, *rows] if good else rows
    path = write("junk.json", json.dumps(rows) if array else "\n".join(map(json.dumps, rows)))
    try:
        loaded = load_feedback([path])
    except UserError as error:
        assert "\n" not in str(error)
        assert not good or "Say" in str(error) or "write" in str(error)
        return
    skipped = sum(loaded.skipped.values())
    assert len(loaded.records) == sum(loaded.layouts.values())
    assert len(loaded.records) + len(loaded.problems) + skipped == loaded.rows
    if good:
        assert loaded.rows == len(rows)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=60), name=st.sampled_from(("x.csv", "x.json", "x.parquet", "x.jsonl.gz")))
def test_bytes_never_raise_anything_but_user_error(write: Any, content: bytes, name: str) -> None:
    try:
        loaded = load_feedback([write(name, content)])
    except UserError as error:
        assert name in str(error)
    else:
        assert loaded.records
