"""Product exports read through one adapter, and spoiled rows."""

from __future__ import annotations

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
    return {**joined, **row, "JOINED": joined}


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


ORDINARY: list[dict[str, Any]] = [
    {"prompt": "1+1?", "completion": "2", "label": True},
    {"prompt": "1+1?", "completion": "2", "score": 4.0, "id": 7, "model": "m"},
    {"prompt": "1+1?", "chosen": "2", "rejected": "3", "winner": "model_a"},
    {"prompt": "1+1?", "response_a": "2", "response_b": "3", "winner": "a", "model_a": "m", "model_b": "n"},
    {"prompt": "1+1?", "completions": ["2", "3"], "ranks": [1, 2]},
    {"instruction": "Add.", "input": "1 and 1", "output": "2", "rating": 5},
    {"messages": [{"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "2"}], "label": 1},
    {"question": "1+1?", "answer": "accept", "feedback": "up"},
    {"request": "1+1?", "response": "2", "verdict": "good"},
    {"inputs": {"question": "1+1?"}, "output": "2", "feedback": [{"score": 1}]},
    {"id": 1, "data": {"prompt": "1+1?"}, "name": "x", "result": "2", "status": "completed"},
    {"fields": {}, "responses": ["2", "3"]},
    {},
]
"""Rows of no product."""


@pytest.fixture
def matches_alone() -> Callable[[ModuleType], None]:
    """Check that an adapter matches no ordinary row and no row of another product's files."""

    def run(adapter: ModuleType) -> None:
        own = adapter.__name__.rpartition(".")[2]
        assert not [row for row in ORDINARY if adapter.matches(row)]
        for path in sorted(FILES.glob("*/*")):
            if path.parent.name != own and not path.name.endswith(".expected.json"):
                rows = [row for _, row in read_rows(path) if isinstance(row, dict)]
                assert not [row for row in rows if adapter.matches(row)], path

    return run


def mutants(row: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Copies of a row with one value in it, at any depth, replaced by another kind of value, or left out. They share
    with the row what is not on the way to that value."""
    for path in _paths(row):
        for value in (None, 3, "x", [], {}, True, [None], {"x": []}):
            spoiled, parent = _copied_to(row, path)
            parent[path[-1]] = value
            yield spoiled
        spoiled, parent = _copied_to(row, path)
        del parent[path[-1]]
        yield spoiled


@pytest.fixture
def agrees() -> Callable[..., list[Any]]:
    """`agrees(reading, written, words={"good": 1, "bad": 0})`: labels, scores, pairs and rankings are those written.

    `words` says what the user's own labels mean; labels of other words are returned.
    """

    def check(reading: Reading, written: dict[str, Any], words: dict[Any, int] | None = None) -> list[Any]:
        sides = {True: 1, False: 0, **(words or {})}
        labels = [{**row, "label": sides[row["label"]]} for row in reading.rows if row.get("label") in sides]
        for name, found in (("labels", labels), ("scores", reading.rows), ("pairs", reading.rows)):
            fields = ("chosen", "rejected") if name == "pairs" else ("completion", name.removesuffix("s"))
            rows = [row for row in found if all(each in row for each in fields)]
            shown = [{"prompt": as_messages(row["prompt"]), **{each: row[each] for each in fields}} for row in rows]
            assert shown == written[name], name
        ranked = [row for row in reading.rows if "completions" in row]
        orders = [{"prompt": as_messages(row["prompt"]), "completions": row["completions"]} for row in ranked]
        assert orders == written["rankings"]
        assert all(row["ranks"] == sorted(row["ranks"]) for row in ranked)
        return [row["label"] for row in reading.rows if "label" in row and row["label"] not in sides]

    return check


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


def _copied_to(row: dict[str, Any], path: tuple[Any, ...]) -> tuple[dict[str, Any], Any]:
    """(a copy of the row in which everything on the way to `path` is copied, the holder of the path's last step)."""
    copied = dict(row)
    holder: Any = copied
    for key in path[:-1]:
        inner = holder[key]
        holder[key] = inner = list(inner) if isinstance(inner, list) else dict(inner)
        holder = inner
    return copied, holder
