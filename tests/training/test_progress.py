"""Parts without steps show that they go on; nothing is shown where nothing is wanted."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from valence.data.load import load_feedback
from valence.training.progress import Busy


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("valence.training.progress.EVERY", 0.02)


def test_lines_while_it_goes_on_and_none_after(capsys: pytest.CaptureFixture[str]) -> None:
    with Busy("reading") as progress:
        progress(1234)
        time.sleep(0.15)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) >= 2 and set(lines) == {"  reading: 1,234 rows, 0 s"}
    time.sleep(0.1)
    assert not capsys.readouterr().err
    assert all(thread.name != "progress" for thread in threading.enumerate())


def test_a_part_without_a_count_and_one_that_fails(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="no"), Busy("evaluating"):
        time.sleep(0.1)
        raise ValueError("no")
    assert capsys.readouterr().err.startswith("  evaluating: 0 s\n")
    time.sleep(0.1)
    assert not capsys.readouterr().err


def test_what_is_short_or_not_to_be_shown_shows_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with Busy("evaluating", show=False):
        time.sleep(0.1)
    monkeypatch.setattr("valence.training.progress.EVERY", 60)
    with Busy("evaluating"):
        pass
    assert not capsys.readouterr().err


def test_rows_are_counted_as_they_are_read(tmp_path: Path) -> None:
    path, seen = tmp_path / "a.jsonl", list[int]()
    path.write_text('{"prompt": "a", "completion": "b", "label": true}\n' * 3 + "{}\n")
    load_feedback([path], progress=seen.append)
    assert seen == [1, 2, 3, 4]
