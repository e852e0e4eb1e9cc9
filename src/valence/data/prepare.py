"""Feedback as contexts of one method, and as token ids of one model; problem rows are logged and written down."""

from __future__ import annotations

import json
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from valence.data.collate import EncodedGroup, Encoder
from valence.data.groups import Group
from valence.data.records import Problem
from valence.data.stored import Lazy, Stored, Tick
from valence.errors import UserError

Log = Callable[[str], None]
USUAL_LIMITS = (512, 1024, 2048)
"""Limits of tokens whose cost in rows is told."""
NEAR = 0.9
"""Rows are near a limit where the longest has more than this share of it."""


@dataclass(frozen=True)
class Feedback:
    """The contexts of one method, for training and held out, and the rows that had problems."""

    train: Sequence[Group]
    heldout: Sequence[Group]
    problems: list[Problem]


@dataclass(frozen=True)
class Encoded:
    """The same as token ids."""

    train: Sequence[EncodedGroup]
    heldout: Sequence[EncodedGroup]

    @property
    def groups(self) -> Sequence[Group]:
        """The training contexts."""
        return Lazy(len(self.train), lambda place: self.train[place].group)


def log_problems(problems: Sequence[Problem], log: Log, *, of: str = "rows", most: int = 5) -> None:
    """Log how many rows have problems, and the first few with their line and reason."""
    if not problems:
        return
    log(f"{len(problems):,} {of} had problems:")
    for problem in problems[:most]:
        log(f"  {problem}")
    if len(problems) > most:
        log(f"  … and {len(problems) - most:,} more, all in problems.jsonl")


def encode_feedback(
    feedback: Feedback, encoder: Encoder, out: Path, *, strict: bool, log: Log, progress: Tick | None = None
) -> Encoded:
    """Token ids of all groups, which lie on disk; every problem so far is written to `out/problems.jsonl`.

    Args:
        progress: called after each row with the number of rows encoded so far.
    Raises:
        UserError: no row fits or can be given to the model, or with `strict` one was truncated or dropped.
    """
    problems: list[Problem] = []
    lengths = array("q")

    def encoded(groups: Sequence[Group]) -> Iterator[EncodedGroup]:
        for one in encoder.encode_all(groups):
            lengths.append(one.length)
            if one.problem is not None:
                problems.append(one.problem)
            if one.row is not None:
                yield one.row
            if progress is not None:
                progress(len(lengths))

    train = Stored(EncodedGroup.restored, encoded(feedback.train))
    held = Stored(EncodedGroup.restored, encoded(feedback.heldout))
    log_problems(problems, log)
    lines = [json.dumps(vars(problem), ensure_ascii=False) + "\n" for problem in [*feedback.problems, *problems]]
    (out / "problems.jsonl").write_text("".join(lines), encoding="utf-8")
    if strict and problems:
        raise UserError(f"{problems[0]} ({len(problems)} such rows; `strict` makes them errors)")
    for line in length_lines(lengths, encoder.max_length, encoder.positions):
        log(line)
    if not train:
        if all(length > encoder.max_length for length in lengths[: len(feedback.train)]):
            raise UserError(f"no row fits `max_length={encoder.max_length}`: raise it")
        raise UserError(f"no row is left to train on: {problems[0]}")
    for line in encoder.notes((group.prompt, group.completions) for group in feedback.train):
        log(line)
    return Encoded(train, held)


def length_lines(lengths: Sequence[int], limit: int, positions: int | None = None, *, cuts: str = "cuts") -> list[str]:
    """A line that says which share of rows is longer than a limit of tokens, and than other usual ones; none where all
    rows are far shorter.

    Args:
        lengths: tokens of each row, uncut.
        positions: tokens that the model has room for, where known: higher limits are of no use.
        cuts: what happens to longer rows.
    """
    longest = max(lengths, default=0)
    if longest <= NEAR * limit:
        return []
    if longest <= limit:
        return [f"`max_length={limit}` {cuts} no row: the longest has {longest:,} tokens"]

    def share(bound: int) -> str:
        found = sum(length > bound for length in lengths) / len(lengths)
        return f"{100 * found:.0f}%" if found == 0 or found >= 0.01 else f"{100 * max(found, 0.001):.1f}%"

    others = [bound for bound in USUAL_LIMITS if bound != limit and bound <= (positions or bound)]
    compared = f" ({', '.join(f'{bound:,}: {share(bound)}' for bound in others)})" if others else ""
    return [f"`max_length={limit}` {cuts} {share(limit)} of the rows{compared}; the longest has {longest:,} tokens"]
