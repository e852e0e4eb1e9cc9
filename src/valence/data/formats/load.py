"""Files of feedback in any shape, read into records; each row that cannot be used is a problem with its line."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from valence.data.formats.layouts import detect
from valence.data.formats.read import read_rows
from valence.data.formats.row import ALIASES, LABEL, SCORE, Refused, Row
from valence.data.records import Problem, Record
from valence.errors import UserError


@dataclass(frozen=True)
class Loaded:
    """The content of files of feedback: every row is one record or one problem.

    Args:
        records: the rows that can be used, in the order of the files.
        problems: the rows that cannot be used, each with its file, line and reason.
        layouts: layout -> number of its records.
        rows: number of rows.
        unread: column that no layout reads -> number of records with it; most common first.
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
        strict: raise a UserError for the first row that cannot be used.
    Raises:
        UserError: a file cannot be read or has no usable row; `columns` has an unknown field, or a column that no row
            has.
    """
    if isinstance(paths, str) or not paths:
        raise UserError("no feedback files given")
    reader = _Reader(columns or {})
    records: list[Record] = []
    problems: list[Problem] = []
    layouts: Counter[str] = Counter()
    for path in paths:
        before = len(records)
        for line, row in read_rows(Path(path)):
            try:
                name, record = reader.record(row)
            except Refused as refused:
                problems.append(Problem(str(path), line, str(refused)))
            else:
                records.append(replace(record, file=str(path), line=line))
                layouts[name] += 1
        if len(records) == before:
            raise UserError(_no_usable_row(str(path), problems))
    reader.check_renames()
    if strict and problems:
        more = f" (and {len(problems) - 1} more rows with problems)" if len(problems) > 1 else ""
        raise UserError(f"{problems[0]}{more}")
    return Loaded(records, problems, dict(layouts), len(records) + len(problems), reader.never_read())


class _Reader:
    """Rows into records, by the user's names of the columns.

    It counts which columns of the files the layouts read, and how many records have each of the others.
    """

    def __init__(self, columns: Mapping[str, str]) -> None:
        self.renames = _canonical(columns)
        self.theirs = set(self.renames.values())
        # A field that a rename displaces is no feedback, but still a column.
        self.displaced = {name for ours in self.renames for name in _displaced(ours, self.renames)} - self.theirs
        self.seen: dict[str, None] = {}
        self.read: set[str] = set()
        self.unread: Counter[str] = Counter()

    def record(self, row: dict[str, Any] | Refused) -> tuple[str, Record]:
        """(the layout of a row, the row as a Record with its split and its other columns)."""
        if isinstance(row, Refused):
            raise row
        self.seen.update(dict.fromkeys(row))
        aside = {name: row[name] for name in self.displaced if row.get(name) is not None}
        fields = {name: value for name, value in row.items() if name not in self.theirs | self.displaced}
        fields |= {ours: row[name] for ours, name in self.renames.items() if name in row}
        view = Row(fields, aside)
        name, record = detect(view)
        split = view.take("split") if isinstance(view.peek("split"), str) else None
        self.read.update(self.renames.get(name, name) for name in view.used)
        self.unread.update([*(self.renames.get(name, name) for name in view.unread()), *aside])
        return name, replace(record, split=split, columns=view.rest())

    def never_read(self) -> dict[str, int]:
        """The columns that the layout of no row read, most common first."""
        return {name: rows for name, rows in self.unread.most_common() if name not in self.read}

    def check_renames(self) -> None:
        """Raises UserError if no row has a column that the user named."""
        for ours, theirs in self.renames.items():
            if theirs not in self.seen:
                names = ", ".join(self.seen)
                raise UserError(f"`columns` has {ours}={theirs}, and no row has a column {theirs}: there are {names}")


def _canonical(columns: Mapping[str, str]) -> dict[str, str]:
    """`columns` under our first name of each field, so that score=stars and reward=stars are the same."""
    known = {name: aliases[0] for aliases in ALIASES for name in aliases}
    known |= {name: name for name in ("messages", "conversations", "system")}
    for name in columns:
        if name not in known:
            fields = ", ".join(aliases[0] for aliases in ALIASES)
            raise UserError(f"`columns` has {name}={columns[name]}, which is no field: the fields are {fields}")
        if sum(known.get(other) == known[name] for other in columns) > 1:
            raise UserError(f"`columns` names the field {known[name]} twice")
    return {known[name]: theirs for name, theirs in columns.items()}


def _displaced(ours: str, renames: Mapping[str, str]) -> Sequence[str]:
    """The names that a rename replaces: those of its field; for a score also the labels, and the reverse."""
    same = next((aliases for aliases in ALIASES if ours in aliases), (ours,))
    if ours == SCORE[0] and LABEL[0] not in renames:
        return (*same, *LABEL)
    return (*same, *SCORE) if ours == LABEL[0] and SCORE[0] not in renames else same


def _no_usable_row(path: str, problems: Sequence[Problem]) -> str:
    """The message for a file without a usable row."""
    here = [problem for problem in problems if problem.file == path]
    if not here:
        return f"{path}: no rows"
    return f"{path}: none of its {len(here)} rows can be used; line {here[0].line}: {here[0].reason}"
