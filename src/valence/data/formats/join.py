"""Rows of two files joined by a key, such as scores and the traces that they judge."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from valence.data.formats.columns import ABSENT, look_up
from valence.data.formats.read import read_rows
from valence.data.formats.row import Refused, Skipped
from valence.errors import UserError

JOINED = "JOINED"
"""The field of a joined row that holds the other file's whole row."""


@dataclass(frozen=True)
class Join:
    """Gives every row the columns of the row of another file with the same key; its own columns come first.

    Args:
        path: the other file.
        ours, theirs: the key's column, or path, in each file.
        index: key -> row of the other file.
    """

    path: str
    ours: str
    theirs: str
    index: Mapping[str, Mapping[str, object]] = field(repr=False)

    @classmethod
    def parse(
        cls, words: Sequence[str], joinable: Callable[[list[dict[str, object]]], list[dict[str, object]]]
    ) -> Join:
        """(FILE, "on=KEY") or (FILE, "on=KEY=KEY_OF_FILE"). `joinable` gathers rows that have one key.

        Raises:
            UserError: another form, a file that cannot be read, a key that no row has or that two rows share.
        """
        parts = words[1].split("=") if len(words) == 2 else []
        if len(parts) not in (2, 3) or parts[0].strip() != "on" or not all(part.strip() for part in parts):
            raise UserError(f"`join` is {' '.join(words)}, and must look like traces.jsonl on=trace_id")
        path, ours, theirs = words[0], parts[1].strip(), parts[-1].strip()
        index: dict[str, Mapping[str, object]] = {}
        columns: dict[str, None] = {}
        for row in joinable([row for _, row in read_rows(path) if not isinstance(row, Refused)]):
            columns.update(dict.fromkeys(row))
            key = look_up(row, theirs)
            if key is ABSENT:
                continue
            if str(key) in index and index[str(key)] != row:
                raise UserError(f"{path}: two rows have {theirs}={key}: give as feedback the file that has several")
            index[str(key)] = row
        if not index:
            raise UserError(f"`join`: no row of {path} has a column {theirs}: there are {', '.join(columns)}")
        return cls(path, ours, theirs, index)

    def __call__(self, rows: Iterator[tuple[int, object]]) -> Iterator[tuple[int, object]]:
        """The rows with the columns of the other file. One without the key stays as it is; one without a match is
        skipped, with the reason."""
        for line, row in rows:
            key = look_up(row, self.ours) if isinstance(row, Mapping) else ABSENT
            if not isinstance(row, Mapping) or key is ABSENT:
                yield line, row
            elif (other := self.index.get(str(key))) is None:
                yield line, Skipped(f"no row of {Path(self.path).name} has its {self.ours}")
            else:
                yield line, {**other, **row, JOINED: dict(other)}
