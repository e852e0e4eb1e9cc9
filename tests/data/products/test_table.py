"""Every row of the table of products in docs/formats.md is what its command reads."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from valence.data.formats.verdicts import SCHEMES
from valence.data.inspect import summarize
from valence.data.products import PRODUCTS
from valence.runs.data import read_feedback
from valence.runs.inspect import InspectConfig
from valence.runs.settings import configure

FILES = Path(__file__).parent / "files"
PAGE = (Path(__file__).parents[3] / "docs" / "formats.md").read_text(encoding="utf-8")
ROWS = [[cell.strip() for cell in line.strip("|").split("|")] for line in PAGE.splitlines() if line.count("|") == 10]
ROWS = [row for row in ROWS if (FILES / row[1]).is_file()]


def placed(word: str) -> str:
    """A file of the table, where it lies."""
    return str(FILES / word) if (FILES / word).is_file() else word


@pytest.mark.parametrize("row", ROWS, ids=[row[0] for row in ROWS])
def test_a_product_is_read_as_the_page_says(row: list[str]) -> None:
    _, path, shape, rows, accepted, rejected, skipped, problems, options = row
    words = [] if options == "none" else [placed(word) for word in shlex.split(options.strip("`"))]
    config = configure(InspectConfig, words, {"files": (str(FILES / path),)})
    loaded = read_feedback(config.files, config.read)
    summary = summarize(loaded)
    sides = ["" if count is None else str(count) for count in (summary.accepted, summary.rejected)]
    assert [summary.shape, str(loaded.rows), *sides] == [shape, rows, accepted, rejected]
    assert [str(sum(loaded.skipped.values())), str(len(loaded.problems))] == [skipped, problems]
    assert len(loaded.records) + len(loaded.problems) + sum(loaded.skipped.values()) == loaded.rows
    assert len(words) <= 5, "no more than a join and a choice"


def test_every_product_and_every_spelling_is_on_the_page() -> None:
    read = {path.split("/")[0] for _, path, *_ in ROWS}
    assert len(ROWS) >= 40 and len(read) == len(PRODUCTS)
    for accepted, rejected in SCHEMES:
        for each in (*accepted.split(), *rejected.split()):
            assert f"`{each}`" in PAGE
