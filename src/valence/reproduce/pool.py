"""Runs of an experiment side by side, each kept on disk, so that what an interrupted one has finished is not redone."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

Row = dict[str, Any]


def kept_row(folder: Path, name: str, of: Any, make: Callable[[], Row]) -> Row:
    """The row of `of` from `folder`, made where it is not there yet.

    Args:
        name: what its file's name begins with.
        of: all that the row depends on; JSON values.
    """
    mark = hashlib.sha256(json.dumps(of).encode()).hexdigest()[:12]
    path = folder / f"{name}-{mark}.json"
    if not path.exists():
        row = make()
        # Whole or not at all: another process may be waiting for it.
        draft = path.with_suffix(f".{os.getpid()}")
        draft.write_text(json.dumps(row, ensure_ascii=False), encoding="utf-8")
        draft.replace(path)
    return json.loads(path.read_text(encoding="utf-8"))


def run_each(
    function: Callable[..., Row], settings: Sequence[Any], *shared: Any, workers: int, say: Callable[[Row], None]
) -> list[Row]:
    """`function(setting, *shared)` of every setting, in processes of their own where there are workers for them; each
    row is said when it is there, in the order of the settings."""
    columns = (settings, *([each] * len(settings) for each in shared))
    rows: list[Row] = []

    def take(found: Any) -> list[Row]:
        for row in found:
            say(row)
            rows.append(row)
        return rows

    if workers == 1 or len(settings) == 1:
        return take(map(function, *columns))
    with ProcessPoolExecutor(max_workers=workers, mp_context=get_context("spawn")) as pool:
        return take(pool.map(function, *columns))
