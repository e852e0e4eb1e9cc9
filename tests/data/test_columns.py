"""Columns of any name and place: paths, sums, lists, templates, joins, maps, tables, data sets of the hub."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from valence.data.formats.columns import parse_columns
from valence.data.load import Loaded, load_feedback
from valence.data.records import Message
from valence.errors import UserError

Load = Callable[..., Loaded]
Write = Callable[[str, Any], Path]


def only(loaded: Loaded) -> tuple[Any, tuple[Any, ...], tuple[float, ...]]:
    """Prompt, completions and values of the one record."""
    (record,) = loaded.records
    return record.prompt, record.completions, record.values


@pytest.mark.parametrize(
    "row",
    [
        {"Prompt": "q", "Completion": "a", "Label": 1}, {"User message": "q", "AI Response": "a", "Thumbs Up": True},
        {"QUESTION": "q", "answer": "a", "verdict": "good"}, {"user-input": "q", "Model Output": "a", "vote": "up"},
    ],
)  # fmt: skip
def test_names_without_regard_to_case_blanks_and_underscores(load_rows: Load, row: dict[str, Any]) -> None:
    assert only(load_rows(row)) == ("q", ("a",), (1.0,))


def test_of_two_columns_with_one_meaning_the_first_is_read(load_rows: Load) -> None:
    loaded = load_rows({"prompt": "q", "completion": "a", "Label": 1, "LABEL": 0})
    assert only(loaded) == ("q", ("a",), (1.0,)) and loaded.unread == {"LABEL": 1}


@pytest.mark.parametrize(
    ("row", "columns"),
    [
        ({"inputs": {"question": "q"}, "out": [{"content": "a"}], "feedback": [{"value": "up"}]},
         "prompt=inputs.question,completion=out[-1].content,label=feedback[0].value"),
        ({"Inputs": '{"Question": "q"}', "o": "a", "f": '[{"value": 1}]'},
         "prompt=inputs.question,completion=o,label=f[0].value"),
        ({"a.b": "q", "o": "a", "l": [True]}, "prompt=a.b,completion=o,label=l"),
        ({"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "a"}], "q": "q", "ok": "yes"},
         "prompt=q,completion=messages[-1].content,label=ok"),
    ],
)  # fmt: skip
def test_paths_into_objects_lists_and_json_text(load_rows: Load, row: dict[str, Any], columns: str) -> None:
    assert only(load_rows(row, columns=parse_columns(columns))) == ("q", ("a",), (1.0,))


def test_a_sum_of_columns_keeps_all_of_the_prompt(load_rows: Load) -> None:
    row = {"task": "Add.", "given": "1 and 1", "out": "2", "label": 1}
    columns = parse_columns("prompt=task+given,completion=out")
    assert only(load_rows(row, columns=columns))[0] == "Add.\n1 and 1"
    assert only(load_rows({**row, "given": ""}, columns=columns))[0] == "Add."


def test_a_list_of_columns_is_a_ranking(load_rows: Load) -> None:
    row = {"p": "q", "a1": "x", "a2": "y", "a3": "z", "r1": 2, "r2": 1, "r3": 3}
    columns = parse_columns("prompt=p,completions=a1|a2|a3,ranks=r1|r2|r3")
    assert only(load_rows(row, columns=columns)) == ("q", ("x", "y", "z"), (-2.0, -1.0, -3.0))


def test_a_system_message_by_its_column(load_rows: Load) -> None:
    row = {"sys": "Be brief.", "q": "q", "a": "a", "label": 1}
    loaded = load_rows(row, columns={"prompt": "q", "completion": "a", "system": "sys"})
    assert only(loaded)[0] == (Message("system", "Be brief."), Message("user", "q"))


def test_a_template_makes_the_prompt(load_rows: Load, tmp_path: Path) -> None:
    template = tmp_path / "prompt.txt"
    template.write_text("Passages:\n{docs.text}\n\nQuestion: {question}\n")
    row = {"question": "Who?", "docs": {"text": "She did."}, "completion": "She.", "label": 1}
    options = {"prompt_template": str(template)}
    assert only(load_rows(row, **options))[0] == "Passages:\nShe did.\n\nQuestion: Who?"
    with pytest.raises(UserError, match=r"no column of the prompt's template \(docs.text, question\)"):
        load_rows({"prompt": "x", "completion": "y", "label": 1}, **options)
    template.write_text("no column")
    with pytest.raises(UserError, match=r"`prompt_template` .* names no column"):
        load_rows(row, **options)
    with pytest.raises(UserError, match=r"`prompt_template` .* cannot be read"):
        load_rows(row, prompt_template=str(tmp_path / "none.txt"))


def test_a_join_by_a_key(write: Write) -> None:
    scores = [{"trace": 1, "thumb": "up"}, {"trace": 1, "thumb": "down"}, {"trace": 9, "thumb": "up"}, {"thumb": "up"}]
    traces = [{"id": 1, "prompt": "q", "completion": "a"}, {"id": 2, "prompt": "p", "completion": "b"}]
    left = write("scores.jsonl", "\n".join(map(json.dumps, scores)))
    right = write("traces.jsonl", "\n".join(map(json.dumps, traces)))
    loaded = load_feedback([left], join=[str(right), "on=trace=id"])
    assert [record.values for record in loaded.records] == [(1.0,), (-1.0,)]
    assert loaded.skipped == {"no row of traces.jsonl has its trace": 1} and len(loaded.problems) == 1
    assert loaded.rows == 4
    with pytest.raises(UserError, match=r"scores.jsonl: two rows have trace=1: give as feedback the file that has"):
        load_feedback([right], join=[str(left), "on=id=trace"])
    with pytest.raises(UserError, match=r"no row of .*traces.jsonl has a column trace: there are id, prompt"):
        load_feedback([left], join=[str(right), "on=trace"])
    for wrong in (["x"], [str(right), "trace"], [str(right), "on="], [str(right), "on=a=b=c"]):
        with pytest.raises(UserError, match=r"must look like traces\.jsonl on=trace_id"):
            load_feedback([left], join=wrong)


def test_a_map_makes_rows_and_counts_what_it_drops(load_rows: Load) -> None:
    def mapped(row: dict[str, Any]) -> dict[str, Any] | None:
        if row["n"] == 3:
            raise KeyError("three")
        if row["n"] == 4:
            return 4  # type: ignore[return-value]
        return None if row["n"] == 2 else {"prompt": "q", "completion": str(row["n"]), "label": True}

    loaded = load_rows(*({"n": number} for number in (1, 2, 3, 4)), map_row=mapped)
    assert [record.completions for record in loaded.records] == [("1",)]
    assert loaded.skipped == {"dropped by `map`": 1} and loaded.rows == 4
    reasons = [problem.reason for problem in loaded.problems]
    assert reasons == ["`map` failed: KeyError: 'three'", "`map` gave int, and must give a row or None"]


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_tables_with_semicolons_tabs_and_a_byte_order_mark(write: Write, delimiter: str) -> None:
    rows = [["Question", "Response", "Rating"], ["q", "a", '"3,5"'], ["p", '"b; c"', "4"]]
    content = "\n".join(delimiter.join(row) for row in rows)
    loaded = load_feedback([write("t.csv", b"\xef\xbb\xbf" + content.encode())])
    assert [(record.prompt, record.values) for record in loaded.records] == [("q", (3.5,)), ("p", (4.0,))]


def test_columns_that_nobody_knows_are_listed_with_what_they_may_be(load_rows: Load) -> None:
    row = {"conversation": {"asked": "Why?", "reply_text": "Because."}, "meta": {"thumb_value": "up", "id": 3}}
    with pytest.raises(UserError) as caught:
        load_rows(row)
    assert "none of its 1 rows can be used" in str(caught.value)
    (note,) = caught.value.__notes__
    assert "conversation.reply_text = 'Because.'   (completion?)" in note
    assert "meta.thumb_value = 'up'   (label?)" in note and "meta.id = 3\n" in note
    columns = caught.value.columns  # type: ignore[attr-defined]
    assert only(load_rows(row, columns=parse_columns(columns))) == ("Why?", ("Because.",), (1.0,))


def test_columns_like_verdicts_that_were_not_read_are_named(load_rows: Load) -> None:
    rows = [{"prompt": f"p{n}", "was_it_good_for_you": word} for n, word in enumerate(["yes", "no", "yes"])]
    assert load_rows(*rows).verdict_like == {"was_it_good_for_you": "'yes', 'no'"}
    assert not load_rows({"prompt": "p", "completion": "c", "label": 1, "note": "a long text"}).verdict_like


def test_parquet_with_broken_text_gives_a_counted_problem(tmp_path: Path) -> None:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")

    texts = pyarrow.array([b"good", b"\xff\xfe bad", b"\xed\xa0\x80"], type=pyarrow.binary())
    completions = pyarrow.Array.from_buffers(pyarrow.string(), 3, texts.buffers())
    table = pyarrow.table({"prompt": ["a", "b", "c"], "completion": completions, "label": [True, True, True]})
    parquet.write_table(table, tmp_path / "t.parquet")
    loaded = load_feedback([tmp_path / "t.parquet"])
    assert [record.completions for record in loaded.records] == [("good",)]
    assert [(problem.line, problem.reason) for problem in loaded.problems] == [
        (2, "not UTF-8 text"), (3, "not UTF-8 text"),
    ]  # fmt: skip


def test_a_hub_id_without_the_hub_ends_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    began = time.monotonic()
    with pytest.raises(UserError, match=r"nobody/nothing: no such file, and the hub cannot be reached"):
        load_feedback(["nobody/nothing"])
    assert time.monotonic() - began < 15
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a"}\n')
    with pytest.raises(UserError, match="`split` chooses a part of a data set of the hub"):
        load_feedback([tmp_path / "rows.jsonl"], split="train")
