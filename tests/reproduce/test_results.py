"""The page beside a result: its table, its pictures, and claims only where there are any."""

from __future__ import annotations

from pathlib import Path

from valence.reproduce.results import Claim, write_page, write_results


def test_a_page_has_what_there_is(tmp_path: Path) -> None:
    rows = [{"method": "A", "return": 1.234}, {"method": "B", "seeds": 3}]
    write_results(tmp_path, "some", rows, [Claim("A wins", "yes (Fig. 1)", "1.2", False)], [0])
    write_page(tmp_path / "README.md", "Some", "Text.", "one.png", "two.png")
    page = (tmp_path / "README.md").read_text()
    assert "![Some](one.png)" in page and "![Some](two.png)" in page
    assert "| method | return | seeds |" in page and "| A | 1.23 |  |" in page and "| B |  | 3 |" in page
    assert "| A wins | yes (Fig. 1) | 1.2 | **no** |" in page
    write_results(tmp_path, "some", rows, [], [0])
    write_page(tmp_path / "README.md", "Some", "Text.")
    page = (tmp_path / "README.md").read_text()
    assert "Claims" not in page and "![" not in page
