"""The same rows from every kind of file, with the right line numbers; and what importing the loader costs."""

from __future__ import annotations

import csv
import gzip
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from valence.data.load import load_feedback
from valence.data.records import Message, Record

ROWS: list[dict[str, Any]] = [
    {"prompt": "a,b", "completion": 'a "quoted"\nline', "label": True, "id": "x"},
    {
        "prompt": [{"role": "user", "content": "hi"}],
        "completion": [{"role": "assistant", "content": "ho"}],
        "label": False,
    },
    {"prompt": "", "completion": "naïve ☂", "label": None, "split": "heldout"},
    {"prompt": "c", "completion": "d", "reward": 0.5},
    {"prompt": "e", "completions": ["f", "g"], "scores": [1.0, 2.0]},
]


def expected(file: Path, lines: tuple[int, ...] = (1, 2, 3, 4, 5)) -> list[Record]:
    where = [{"file": str(file), "line": line} for line in lines]
    asked, said = (Message("user", "hi"),), (Message("assistant", "ho"),)
    return [
        Record("label", "a,b", ('a "quoted"\nline',), (1.0,), columns={"id": "x"}, **where[0]),
        Record("label", asked, (said,), (-1.0,), **where[1]),
        Record("label", "", ("naïve ☂",), (0.0,), split="heldout", **where[2]),
        Record("score", "c", ("d",), (0.5,), scored=True, **where[3]),
        Record("ranking", "e", ("f", "g"), (1.0, 2.0), scored=True, **where[4]),
    ]


JSONL = "\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS)


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz", "rows.json", "rows.csv", "rows"])
def test_json_lines_whatever_the_file_is_called(write: Any, name: str) -> None:
    content = gzip.compress(JSONL.encode()) if name.endswith(".gz") else JSONL
    path = write(name, content)
    assert load_feedback([path]).records == expected(path)


def test_blank_lines_carriage_returns_and_a_byte_order_mark(write: Any) -> None:
    path = write("rows.jsonl", "\ufeff\n" + JSONL.replace("\n", "\r\n\r\n") + "\r\n")
    assert load_feedback([str(path)]).records == expected(path, (2, 4, 6, 8, 10))


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("name", ["rows.json", "rows.json.gz", "rows.jsonl"])
def test_a_json_array_is_numbered_by_item(write: Any, name: str, indent: int | None) -> None:
    content = json.dumps(ROWS, indent=indent).encode()
    path = write(name, gzip.compress(content) if name.endswith(".gz") else content)
    assert load_feedback([path]).records == expected(path)


@pytest.mark.parametrize("indent", [None, 2])
def test_an_object_of_splits_marks_its_rows(write: Any, indent: int | None) -> None:
    path = write("rows.json", json.dumps({"train": ROWS[:1], "test": ROWS[2:4], "version": 1}, indent=indent))
    records = load_feedback([path]).records
    assert [(record.line, record.split) for record in records] == [(1, "train"), (2, "heldout"), (3, "test")]


def test_an_object_with_data_and_an_object_that_is_one_row(write: Any) -> None:
    assert load_feedback([write("data.json", json.dumps({"data": ROWS}))]).rows == 5
    assert load_feedback([write("row.json", json.dumps(ROWS[0], indent=1))]).rows == 1


@pytest.mark.parametrize(("name", "delimiter"), [("r.csv", ","), ("r.tsv", "\t"), ("r.txt", ";"), ("r.csv.gz", ",")])
def test_csv_with_json_cells_and_cells_over_several_lines(
    write: Any, tmp_path: Path, name: str, delimiter: str
) -> None:
    plain = tmp_path / "plain"
    with plain.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(
            file, ["prompt", "completion", "label", "id", "split", "reward", "completions", "scores"],
            delimiter=delimiter,
        )  # fmt: skip
        table.writeheader()
        for row in ROWS:
            table.writerow({key: json.dumps(v) if isinstance(v, list) else v for key, v in row.items()})
    content = plain.read_bytes()
    path = write(name, gzip.compress(content) if name.endswith(".gz") else content)
    assert load_feedback([path]).records == expected(path, (2, 4, 5, 6, 7))


def test_csv_of_pandas_with_python_lists_and_a_row_too_short(write: Any) -> None:
    path = write("rows.csv", "completions,scores\n\"['a', 'b']\",\"[1, 2]\"\nonly\n")
    loaded = load_feedback([path])
    assert loaded.records == [Record("ranking", "", ("a", "b"), (1.0, 2.0), scored=True, file=str(path), line=2)]
    assert [(item.line, item.reason) for item in loaded.problems] == [(3, "1 cells where the header names 2")]


def test_csv_text_that_only_looks_like_a_list_stays_text(write: Any) -> None:
    path = write("rows.csv", 'prompt,completion,label\n[INST] hi [/INST],"[sic]",1\n')
    assert load_feedback([path]).records[0].completions == ("[sic]",)
    assert load_feedback([path]).records[0].prompt == "[INST] hi [/INST]"


def test_csv_cells_longer_than_the_csv_module_allows(write: Any) -> None:
    limit = csv.field_size_limit()
    path = write("rows.csv", f"prompt,completion,label\na,{'b' * (limit + 1)},1\n")
    assert len(load_feedback([path]).records[0].completions[0]) == limit + 1  # pyright: ignore[reportArgumentType]
    assert csv.field_size_limit() == limit


def test_an_empty_prompt_cell_is_no_prompt_and_not_an_implicit_one(write: Any) -> None:
    path = write("rows.csv", "prompt,chosen,rejected\n,The sky is blue,The sky is green\n")
    record = load_feedback([path]).records[0]
    assert (record.prompt, record.completions) == ("", ("The sky is blue", "The sky is green"))


TABLE = [{**ROWS[0], "split": None}, {**ROWS[0], "label": False}, {**ROWS[2], "label": None}]


@pytest.mark.parametrize("name", ["rows.parquet", "rows.json"])
def test_parquet_whatever_the_file_is_called(tmp_path: Path, name: str) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / name
    rows = [ROWS[1], {**ROWS[1], "label": None}, {"prompt": ROWS[1]["prompt"], "reward": None}]
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    records = load_feedback([path]).records
    assert [(record.shape, record.values, record.line) for record in records] == [
        ("label", (-1.0,), 1),
        ("label", (0.0,), 2),
        ("prompt", (), 3),
    ]
    assert records[0] == expected(path, (1, 1, 1, 1, 1))[1]


def test_saved_datasets(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_list(TABLE)
    rows.save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict(train=rows, test=rows.remove_columns("split")).save_to_disk(str(tmp_path / "both"))
    one = load_feedback([tmp_path / "one"])
    assert [(record.values[0], record.line, record.split) for record in one.records] == [
        (1.0, 1, None),
        (-1.0, 2, None),
        (0.0, 3, "heldout"),
    ]
    assert one.records[0].completions == ('a "quoted"\nline',) and one.records[0].columns == {"id": "x"}
    both = load_feedback([tmp_path / "both"])
    assert [record.split for record in both.records] == ["train", "train", "heldout", "test", "test", "test"]
    assert both.rows == 6


def test_several_files_are_one_list(write: Any) -> None:
    first, second = write("1.jsonl", json.dumps(ROWS[0])), write("2.json", json.dumps(ROWS))
    loaded = load_feedback([first, second])
    assert [record.file for record in loaded.records] == [str(first)] + [str(second)] * 5
    assert loaded.layouts == {"label": 4, "score": 1, "ranking": 1} and loaded.rows == 6


def test_importing_the_loader_imports_no_heavy_library() -> None:
    heavy = "{'transformers', 'datasets', 'pyarrow', 'pandas', 'torch', 'rich'}"
    imports = "import valence.data.formats, valence.data.inspect"
    code = f"import sys; {imports}; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
