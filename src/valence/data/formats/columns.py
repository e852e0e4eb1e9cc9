"""Columns as a user names them: other names, paths into nested values, sums and lists, and a prompt's template."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from valence.data.formats.row import ALIASES, CHOSEN, LABEL, REJECTED, SCORE, Refused
from valence.errors import UserError

SPARE = ("messages", "conversations", "system")
FIELDS = {name: aliases[0] for aliases in ALIASES for name in aliases} | {name: name for name in SPARE}
"""Every name that a field may have -> our first name of it."""
ABSENT = object()


@cache
def folded(name: str) -> str:
    """A column's name without case, blanks, underscores, hyphens and dots."""
    return re.sub(r"[\s_.-]+", "", name).lower()


FOLDED = {folded(name): name for name in FIELDS}


def parse_columns(text: str | None) -> dict[str, str]:
    """`prompt=question,completion=answer` as a dictionary.

    Raises:
        UserError: it is not of that form.
    """
    pairs = [part.partition("=") for part in (text or "").split(",") if part.strip()]
    if any(not ours.strip() or not theirs.strip() for ours, _, theirs in pairs):
        raise UserError(f"`columns` is {text!r}, and must look like prompt=question,completion=answer")
    return {ours.strip(): theirs.strip() for ours, _, theirs in pairs}


def canonical(columns: Mapping[str, str]) -> dict[str, str]:
    """`columns` under our first name of each field, so that score=stars and reward=stars are the same.

    Raises:
        UserError: a name that is no field, or a field that is named twice.
    """
    found: dict[str, str] = {}
    for name, theirs in columns.items():
        ours = FIELDS.get(name)
        if ours is None:
            fields = ", ".join(dict.fromkeys(FIELDS.values()))
            raise UserError(f"`columns` has {name}={theirs}, which is no field: the fields are {fields}")
        if ours in found:
            raise UserError(f"`columns` names the field {ours} twice")
        found[ours] = theirs
    return found


def displaced(renames: Mapping[str, str]) -> set[str]:
    """The names that the renames replace: those of their fields; for a score also the labels, and the reverse; for a
    pair of answers with a winner also chosen and rejected."""
    names: set[str] = set()
    for ours in renames:
        names.update(next((aliases for aliases in ALIASES if ours in aliases), (ours,)))
    if (SCORE[0] in renames) != (LABEL[0] in renames):
        names.update(SCORE, LABEL)
    if "winner" in renames:
        names.update(CHOSEN, REJECTED)
    return names - set(renames.values())


class Column:
    """One column, or several, of the file's rows: `question`, `inputs.question`, `turns[-1].content`,
    `instruction+input` (the texts that there are, a line each), `a|b|c` (a list).

    A name is compared without regard to case, blanks and underscores. A path also enters JSON text in a cell.
    """

    def __init__(self, spec: str) -> None:
        self.spec = spec
        self.sum = [part.strip() for part in spec.split("+")]
        self.list = [part.strip() for part in spec.split("|")]

    def of(self, row: Mapping[str, Any]) -> Any:
        """The value in a row, or `ABSENT`."""
        if (value := look_up(row, self.spec)) is not ABSENT:
            return value
        if len(self.list) > 1:
            found = [look_up(row, part) for part in self.list]
            return ABSENT if all(value is ABSENT for value in found) else [v for v in found if v is not ABSENT]
        if len(self.sum) > 1:
            found = [look_up(row, part) for part in self.sum]
            texts = [value for value in found if isinstance(value, str) and value.strip()]
            return "\n".join(texts) if texts else ABSENT
        return ABSENT

    def names(self, row: Mapping[str, Any]) -> list[str]:
        """The names of the row's columns that it reads."""
        parts = self.list if len(self.list) > 1 else self.sum
        return [name for part in {self.spec, *parts} if (name := key_of(row, part)) is not None]


def key_of(row: Mapping[str, Any], spec: str) -> str | None:
    """The row's own name of the column that a name or the beginning of a path means."""
    if spec in row:
        return spec
    wanted = {folded(spec), folded(_steps(spec)[0])} if _steps(spec) else {folded(spec)}
    return next((name for name in row if folded(name) in wanted), None)


def look_up(row: Mapping[str, Any], spec: str) -> Any:
    """The value of a column or at a path, or `ABSENT`."""
    if spec in row:
        return row[spec]
    wanted = folded(spec)
    for name, value in row.items():
        if folded(name) == wanted:
            return value
    value: Any = row
    for step in _steps(spec):
        if isinstance(value, str) and value.lstrip()[:1] in ("{", "["):
            try:
                value = json.loads(value)
            except ValueError:
                return ABSENT
        if isinstance(step, int):
            if not isinstance(value, list) or not -len(value) <= step < len(value):
                return ABSENT
            value = value[step]
        else:
            if not isinstance(value, Mapping):
                return ABSENT
            name = step if step in value else next((each for each in value if folded(str(each)) == folded(step)), None)
            if name is None:
                return ABSENT
            value = value[name]
    return ABSENT if value is row or value is None else value


@cache
def _steps(spec: str) -> tuple[Any, ...]:
    """The names and indices of a path such as turns[-1].content; empty if it is no path."""
    if not re.fullmatch(r"[^.\[\]]+(\.[^.\[\]]+|\[-?\d+\])*", spec):
        return ()
    return tuple(int(part[1:-1]) if part[0] == "[" else part for part in re.findall(r"\[-?\d+\]|[^.\[\]]+", spec))


class Template:
    """A prompt made of several columns: a text file with {column} in it, where a path may stand too."""

    def __init__(self, path: str) -> None:
        try:
            self.text = Path(path).read_text(encoding="utf-8").rstrip("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"`prompt_template` {path} cannot be read: {error}") from error
        self.columns = re.findall(r"\{([^{}\n]+)\}", self.text)
        if not self.columns:
            raise UserError(f"`prompt_template` {path} names no column: write {{question}} where its text belongs")

    def of(self, row: Mapping[str, Any]) -> str:
        """The prompt of a row.

        Raises:
            Refused: the row has none of the columns, or one that is no text.
        """
        found = {name: look_up(row, name) for name in self.columns}
        if all(value is ABSENT for value in found.values()):
            raise Refused(f"no column of the prompt's template ({', '.join(found)})")
        for name, value in found.items():
            if value is not ABSENT and not isinstance(value, (str, int, float)):
                raise Refused(f"{name} is no text for the prompt's template")
        values = {name: "" if value is ABSENT else str(value) for name, value in found.items()}
        return re.sub(r"\{([^{}\n]+)\}", lambda match: values[match[1]], self.text)
