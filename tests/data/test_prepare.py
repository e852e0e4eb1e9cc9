"""What is logged when feedback is encoded: how long rows are, and how plain prompts meet the model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from valence.data.collate import Encoder
from valence.data.groups import Group
from valence.data.prepare import Encoded, Feedback, encode_feedback, length_lines
from valence.errors import UserError

TEMPLATE = (
    "{% for turn in messages %}{% if turn['content'] == 'no' %}{{ raise_exception('never') }}{% endif %}"
    "{{ turn['role'] }}: {{ turn['content'] }}</s>{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
)


def test_the_share_of_rows_beyond_usual_limits() -> None:
    lengths = [100] * 880 + [600] * 90 + [1500] * 26 + [3000] * 4
    (line,) = length_lines(lengths, 512)
    assert line == "`max_length=512` cuts 12% of the rows (1,024: 3%, 2,048: 0.4%); the longest has 3,000 tokens"
    (line,) = length_lines(lengths, 700, cuts="drops")
    assert line.startswith("`max_length=700` drops 3% of the rows (512: 12%, 1,024: 3%, 2,048: 0.4%)")
    # Limits that the model has no room for are of no use.
    assert "(512: 12%)" in length_lines(lengths, 700, 1000)[0] and "(" not in length_lines(lengths, 512, 600)[0]


def test_rows_near_the_limit_are_told_and_short_ones_are_not() -> None:
    assert length_lines([10, 500], 512) == ["`max_length=512` cuts no row: the longest has 500 tokens"]
    assert length_lines([10, 460], 512) == length_lines([], 512) == []
    assert "0.1% of the rows" in length_lines([10] * 100_000 + [513], 512)[0]


def encode(
    tiny: Path, out: Path, lines: list[str], *texts: tuple[str, str], template: str | None = None, max_length: int = 40
) -> Encoded:
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    tokenizer.chat_template = template
    groups = [Group(prompt, (text,), sign=(1,), file="f", line=n) for n, (prompt, text) in enumerate(texts, start=1)]
    encoder = Encoder(tokenizer, max_length=max_length, positions=256)
    return encode_feedback(Feedback(groups, [], []), encoder, out, strict=False, log=lines.append)


def test_a_run_logs_the_separator_and_the_share_that_is_cut(tiny_llama: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    rows = encode(tiny_llama, tmp_path, lines, ("p", "x" * 60), ("p", "x"), ("p ", "y"), ("p", "z"))
    assert lines[-2:] == [
        "`max_length=40` cuts 25% of the rows; the longest has 64 tokens",
        "a newline was put between prompt and completion of 3 of 4 plain-text rows, which have no white space there; "
        '`separator` takes another text, and `separator=""` none',
    ]
    assert [len(row.completions[0]) for row in rows.train] == [37, 2, 2, 2] and 1 not in rows.train[0].completions[0]


def test_a_run_logs_the_template_in_one_line(tiny_llama: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    encode(tiny_llama, tmp_path, lines, ("p", "x"), ("", "y"), template=TEMPLATE)
    assert lines == ["plain prompts go through the model's chat template; `chat_template=False` uses them as they are"]


def test_no_row_left_says_why(tiny_llama: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^no row fits `max_length=4`: raise it$"):
        encode(tiny_llama, tmp_path, [], ("a long prompt", "x"), max_length=4)
    with pytest.raises(UserError, match=r"^no row is left to train on: f:1: the model's chat template rejects .*never"):
        encode(tiny_llama, tmp_path, [], ("no", "x"), template=TEMPLATE)
    (problem,) = (tmp_path / "problems.jsonl").read_text().splitlines()
    assert json.loads(problem)["line"] == 1
