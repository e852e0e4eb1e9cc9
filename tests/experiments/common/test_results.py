"""The page beside a result, and the small functions that tables are made with."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from experiments.common.results import (
    Claim,
    by_name,
    mean,
    print_claims,
    print_table,
    read_lines,
    spread,
    write_lines,
    write_page,
    write_results,
)  # fmt: skip

RESULTS = Path(__file__).parents[3] / "docs" / "results"


def test_a_page_has_what_there_is(tmp_path: Path) -> None:
    rows = [{"method": "A", "return": 1.234}, {"method": "B", "seeds": 3}]
    write_results(tmp_path, "some", rows, [Claim("A wins", "yes (Fig. 1)", "1.2", False)], [0], command="make it")
    write_page(tmp_path / "README.md", "# Some\n\nText.", "one.png", "two.png")
    page = (tmp_path / "README.md").read_text()
    assert page.startswith("# Some\n\nText.\n\n![Some](one.png)\n")
    assert "![Some](one.png)" in page and "![Some](two.png)" in page and "Made by `make it` at commit" in page
    assert "| method | return | seeds |" in page and "| A | 1.23 |  |" in page and "| B |  | 3 |" in page
    assert "| A wins | yes (Fig. 1) | 1.2 | **no** |" in page and "Its runs" not in page
    write_results(tmp_path, "some", rows, [], [0], command="make it")
    write_page(tmp_path / "README.md", "# Some\n\nText.")
    page = (tmp_path / "README.md").read_text()
    assert "Claims" not in page and "![" not in page


def test_tables_and_claims_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    print_table("Some", [{"method": "A", "return": 1.234}, {"method": "B"}])
    print_claims([Claim("A wins", "yes", "1.2", False), Claim("B loses", "yes", "0.1", True)])
    text = capsys.readouterr().out
    assert all(part in text for part in ("Some", "method", "1.23", "Claims", "A wins", "NO", "B loses", "yes"))


def test_groups_means_and_spreads() -> None:
    rows = [{"name": "b", "x": 1.0}, {"name": "a", "x": 5.0}, {"name": "b", "x": 3.0}]
    assert {name: len(group) for name, group in by_name(rows).items()} == {"b": 2, "a": 1}
    assert list(by_name(rows, lambda row: row["x"] > 2)) == [False, True]
    assert mean(rows, "x") == 3.0 and spread(rows[:1], "x") == 0.0
    assert spread(rows, "x") == pytest.approx(2.0)


def test_json_lines_come_back(tmp_path: Path) -> None:
    rows = [{"text": "é\nx"}, {"n": 1}]
    assert read_lines(write_lines(tmp_path / "deep" / "rows.jsonl", rows)) == rows


def test_the_results_in_docs_can_be_made_again_by_a_command_without_folders_of_a_machine() -> None:
    for path in sorted(RESULTS.glob("*/results.json")):
        command = json.loads(path.read_text(encoding="utf-8"))["command"]
        page = (path.parent / "README.md").read_text(encoding="utf-8")
        assert f"Made by `{command}`" in page
        if path.parent.name != "gsm8k":
            assert command.startswith(f"python -m experiments {path.parent.name}")
        assert not re.search(r"(^|\s|=)[/~]", command), command
        assert "/work/" not in page and "/tmp/" not in page
