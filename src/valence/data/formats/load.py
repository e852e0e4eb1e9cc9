"""Files of feedback in any shape, read into records; each row that cannot be used is a problem with its line."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

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
    unread: dict[str, int]


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
            here = [problem for problem in problems if problem.file == str(path)]
            if not here:
                raise UserError(f"{path}: no rows")
            first = f"line {here[0].line}: {here[0].reason}"
            raise UserError(f"{path}: none of its {len(here)} rows can be used; {first}")
    reader.check_renames()
    if strict and problems:
        more = f" (and {len(problems) - 1} more rows with problems)" if len(problems) > 1 else ""
        raise UserError(f"{problems[0]}{more}")
    unread = {name: rows for name, rows in reader.unread.most_common() if name not in reader.read}
    return Loaded(records, problems, dict(layouts), len(records) + len(problems), unread)


class _Reader:
    """Rows into records, by the user's names of the columns.

    It counts which columns of the files the layouts read, and how many records have each of the others.
    """

    def __init__(self, columns: Mapping[str, str]) -> None:
        self.renames = _canonical(columns)
        self.theirs = set(self.renames.values())
        # A field that a rename displaces is no feedback, but still a column.
        self.displaced = _displaced(self.renames) - self.theirs
        self.seen: dict[str, None] = {}
        self.read: set[str] = set()
        self.unread: Counter[str] = Counter()

    def record(self, row: dict[str, object] | Refused) -> tuple[str, Record]:
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
        return name, replace(record, split=split, columns=view.unread() | view.aside)

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


def _displaced(renames: Mapping[str, str]) -> set[str]:
    """The names that renames replace: those of their fields; a score also replaces the labels, and the reverse."""
    verdicts = {LABEL[0], SCORE[0]}
    fields = {*renames, *verdicts} if verdicts & renames.keys() else {*renames}
    return fields.union(*(aliases for aliases in ALIASES if aliases[0] in fields))


def parse_columns(text: str | None) -> dict[str, str]:
    """`prompt=question,completion=answer` as a dictionary.

    Raises:
        UserError: it is not of that form.
    """
    pairs = [part.split("=") for part in (text or "").split(",") if part.strip()]
    if any(len(pair) != 2 or not all(side.strip() for side in pair) for pair in pairs):
        raise UserError(f"`columns` is {text!r}, and must look like prompt=question,completion=answer")
    return {ours.strip(): theirs.strip() for ours, theirs in pairs}
