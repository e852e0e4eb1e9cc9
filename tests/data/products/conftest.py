"""Product exports read through one adapter, and spoiled rows."""

from __future__ import annotations

import copy
import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from valence.data.formats.read import read_rows
from valence.data.formats.row import Refused, Skipped

FILES = Path(__file__).parent / "files"


@dataclass
class Reading:
    """What one file gave."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)
    refused: list[str] = field(default_factory=list)
    unmatched: list[dict[str, Any]] = field(default_factory=list)

    def having(self, *names: str) -> list[dict[str, Any]]:
        """The rows with these fields, and only these fields of them."""
        return [{name: row[name] for name in names} for row in self.rows if all(name in row for name in names)]


def merged(row: dict[str, Any], joined: dict[str, Any]) -> dict[str, Any]:
    """A feedback row and its joined row, as the join of two files makes it."""
    clashes = {f"JOINED.{name}": value for name, value in joined.items() if name in row}
    return {**{name: value for name, value in joined.items() if name not in row}, **row, **clashes, "JOINED": joined}


@pytest.fixture
def read() -> Callable[..., Reading]:
    """`read(adapter, "product/file", joined="product/other", on="traceId=id")`: every row of the file, read."""

    def run(adapter: ModuleType, path: str | Path, joined: str | Path | None = None, on: str = "") -> Reading:
        key, _, other = on.partition("=")
        found = {} if joined is None else {str(row[other or key]): row for row in _rows(joined)}
        reading = Reading()
        for row in _rows(path):
            if str(row.get(key)) in found:
                row = merged(row, found[str(row[key])])
            if not adapter.matches(row):
                reading.unmatched.append(row)
                continue
            try:
                for each in adapter.rows(row):
                    if isinstance(each, Skipped):
                        reading.skipped[str(each)] += 1
                    else:
                        reading.rows.append(each)
            except Refused as reason:
                reading.refused.append(str(reason))
        return reading

    return run


@pytest.fixture
def expected() -> Callable[[str], dict[str, Any]]:
    """The readings that are written beside a file of FILES."""
    return lambda path: json.loads((FILES / f"{path}.expected.json").read_text())


@pytest.fixture
def only_known_outcomes() -> Callable[..., int]:
    """Run an adapter over spoiled copies of a file's rows: it may give rows, Skipped and Refused, and nothing else."""

    def run(adapter: ModuleType, path: str | Path, joined: str | Path | None = None, on: str = "") -> int:
        key, _, other = on.partition("=")
        found = {} if joined is None else {str(row[other or key]): row for row in _rows(joined)}
        count = 0
        for row in _rows(path):
            whole = merged(row, found[str(row[key])]) if str(row.get(key)) in found else row
            for spoiled in mutants(whole):
                count += 1
                adapter.matches(spoiled)
                try:
                    outcomes = list(adapter.rows(spoiled))
                except Refused as reason:
                    assert str(reason)
                    continue
                for each in outcomes:
                    assert isinstance(each, (dict, Skipped)), each
        return count

    return run


def mutants(row: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Copies of a row with one value in it, at any depth, replaced by another kind of value, or left out."""
    for path in _paths(row):
        for value in (None, 3, "x", [], {}, True, [None], {"x": []}):
            spoiled = copy.deepcopy(row)
            _parent(spoiled, path)[path[-1]] = value
            yield spoiled
        spoiled = copy.deepcopy(row)
        del _parent(spoiled, path)[path[-1]]
        yield spoiled


def as_messages(prompt: Any) -> list[dict[str, str]]:
    """A prompt as the expected readings spell it: text is one message of the user."""
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt


def _rows(path: str | Path) -> list[dict[str, Any]]:
    rows = [row for _, row in read_rows(FILES / path)]
    assert all(isinstance(row, dict) for row in rows), path
    return rows  # type: ignore[return-value]


def _paths(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*path, key)
        yield from _paths(inner, (*path, key))


def _parent(value: Any, path: tuple[Any, ...]) -> Any:
    for key in path[:-1]:
        value = value[key]
    return value
