"""Files of feedback in any shape, read into records; what cannot be used is told row by row."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from valence.data.formats.layouts import detect
from valence.data.formats.read import Found, read_rows
from valence.data.formats.row import ALIASES, LABEL, SCORE, Refused, Row
from valence.data.records import Problem, Record
from valence.errors import UserError


@dataclass(frozen=True)
class Loaded:
    """What files of feedback held: every row read is one record or one problem.

    Args:
        records: the rows that can be used, in the files' order.
        problems: the rows that cannot, each with its file, line and reason.
        layouts: name of the layout -> how many records were of it.
        rows: how many rows were read.
        unread: column of the files -> how many records have it, where no record's layout read it; most common first.
    """

    records: list[Record]
    problems: list[Problem]
    layouts: dict[str, int]
    rows: int
    unread: dict[str, int] = field(default_factory=dict)


def load_feedback(
    paths: Sequence[str | Path], *, columns: Mapping[str, str] | None = None, strict: bool = False
) -> Loaded:
    """Read feedback of any shape from JSON, JSONL, CSV, Parquet (the text ones also gzipped) or saved datasets.

    Args:
        paths: files, or folders that `datasets` saved.
        columns: our name -> the file's name of a column, such as {"completion": "answer"}.
        strict: refuse files with any row that cannot be used.
    Raises:
        UserError: a file that cannot be read at all or has no usable row; a name in `columns` that is unknown, or
            that no row has; with `strict`, the first problem.
    """
    if isinstance(paths, str) or not paths:
        raise UserError("no feedback files given")
    renames = _canonical(columns or {})
    records: list[Record] = []
    problems: list[Problem] = []
    layouts: Counter[str] = Counter()
    told = _Columns()
    seen: dict[str, None] = {}
    for path in paths:
        before = len(records)
        rows = _noting(read_rows(Path(path)), seen)
        for line, row in rows:
            try:
                name, record = _record(row, renames, told)
            except Refused as refused:
                problems.append(Problem(str(path), line, str(refused)))
            else:
                records.append(replace(record, file=str(path), line=line))
                layouts[name] += 1
        if len(records) == before:
            raise UserError(_nothing(str(path), problems))
    _all_there(renames, seen)
    if strict and problems:
        more = f" (and {len(problems) - 1} more rows with problems)" if len(problems) > 1 else ""
        raise UserError(f"{problems[0]}{more}")
    return Loaded(records, problems, dict(layouts), len(records) + len(problems), told.never_read())


class _Columns:
    """Which columns of the files were read, and how often each of the others stood beside a record."""

    def __init__(self) -> None:
        self.read: set[str] = set()
        self.left: Counter[str] = Counter()

    def note(self, row: Row, renames: Mapping[str, str], displaced: Sequence[str]) -> None:
        """Count a row's columns by the names that they have in the file."""
        self.read.update(renames.get(name, name) for name in row.used)
        self.left.update(renames.get(name, name) for name in row.unread())
        self.left.update(displaced)

    def never_read(self) -> dict[str, int]:
        """The columns that no row's layout read, most common first."""
        return {name: rows for name, rows in self.left.most_common() if name not in self.read}


def _record(row: dict[str, Any] | Refused, renames: Mapping[str, str], told: _Columns) -> tuple[str, Record]:
    """One row in the one schema, with its split and its other columns."""
    if isinstance(row, Refused):
        raise row
    theirs = set(renames.values())
    # What a rename displaces is no feedback any more, but stays a column.
    displaced = {name for ours in renames for name in _displaced(ours, renames)} - theirs
    aside = {name: row[name] for name in displaced if row.get(name) is not None}
    fields = {name: value for name, value in row.items() if name not in theirs | displaced}
    fields |= {ours: row[name] for ours, name in renames.items() if name in row}
    view = Row(fields, aside)
    name, record = detect(view)
    split = view.take("split") if isinstance(view.peek("split"), str) else None
    told.note(view, renames, list(aside))
    return name, replace(record, split=split, columns=view.rest())


def _noting(rows: Iterable[Found], seen: dict[str, None]) -> Iterable[Found]:
    """The rows as they are; the names of their columns are added to `seen`."""
    for line, row in rows:
        if isinstance(row, dict):
            seen.update(dict.fromkeys(row))
        yield line, row


def _canonical(columns: Mapping[str, str]) -> dict[str, str]:
    """`columns` by our first name for each field, so that score=stars and reward=stars are one."""
    known = {name: aliases[0] for aliases in ALIASES for name in aliases}
    known |= {name: name for name in ("messages", "conversations", "system")}
    for name in columns:
        if name not in known:
            raise UserError(f"--columns {name}={columns[name]}: no such field; there are {', '.join(_FIELDS)}")
        if sum(known.get(other) == known[name] for other in columns) > 1:
            raise UserError(f"--columns names the field {known[name]} twice")
    return {known[name]: theirs for name, theirs in columns.items()}


def _displaced(ours: str, renames: Mapping[str, str]) -> Sequence[str]:
    """The names that give way to a rename: those of the same field, and for a score the labels and the reverse."""
    same = next((aliases for aliases in ALIASES if ours in aliases), (ours,))
    if ours == SCORE[0] and LABEL[0] not in renames:
        return (*same, *LABEL)
    return (*same, *SCORE) if ours == LABEL[0] and SCORE[0] not in renames else same


def _all_there(renames: Mapping[str, str], seen: dict[str, None]) -> None:
    for ours, theirs in renames.items():
        if theirs not in seen:
            raise UserError(f"--columns {ours}={theirs}: no row has a column {theirs}; there are {', '.join(seen)}")


def _nothing(path: str, problems: Sequence[Problem]) -> str:
    """One line on a file without a usable row."""
    here = [problem for problem in problems if problem.file == path]
    if not here:
        return f"{path}: no rows"
    return f"{path}: none of its {len(here)} rows can be used; line {here[0].line}: {here[0].reason}"


_FIELDS = tuple(aliases[0] for aliases in ALIASES)
