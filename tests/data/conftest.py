"""Rows written to a file and loaded back."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from valence.data.load import Loaded, load_feedback


@pytest.fixture
def load_rows(tmp_path: Path) -> Callable[..., Loaded]:
    """Rows (or raw lines) as a JSONL file, loaded."""

    def load(*rows: Any, **options: Any) -> Loaded:
        path = tmp_path / "rows.jsonl"
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        path.write_text("\n".join(lines) + "\n")
        return load_feedback([path], **options)

    return load


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, str | bytes], Path]:
    """A file of this name with this content."""

    def make(name: str, content: str | bytes) -> Path:
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return make
