"""Feedback as contexts of one method, and as token ids of one model; problem rows are logged and written down."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from valence.data.collate import EncodedGroup, Encoder
from valence.data.groups import Group
from valence.data.records import Problem
from valence.errors import UserError

Log = Callable[[str], None]


@dataclass(frozen=True)
class Feedback:
    """The contexts of one method, for training and held out, and the rows that had problems."""

    train: list[Group]
    heldout: list[Group]
    problems: list[Problem]


@dataclass(frozen=True)
class Encoded:
    """The same as token ids."""

    train: list[EncodedGroup]
    heldout: list[EncodedGroup]

    @property
    def groups(self) -> list[Group]:
        """The training contexts."""
        return [row.group for row in self.train]


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
    feedback: Feedback, encoder: Encoder, out: Path, *, strict: bool, log: Log,
    progress: Callable[[int], object] = lambda contexts: None,
) -> Encoded:  # fmt: skip
    """Token ids of all groups; every problem so far is written to `out/problems.jsonl`.

    Args:
        progress: called with the number of contexts encoded so far.
    Raises:
        UserError: no row fits, or with `strict` one was truncated or dropped.
    """
    train, problems = encoder.groups(feedback.train, progress)
    heldout, more = encoder.groups(feedback.heldout, progress)
    problems += more
    log_problems(problems, log)
    lines = [json.dumps(vars(problem), ensure_ascii=False) + "\n" for problem in [*feedback.problems, *problems]]
    (out / "problems.jsonl").write_text("".join(lines), encoding="utf-8")
    if strict and problems:
        raise UserError(f"{problems[0]} ({len(problems)} such rows; `strict` makes them errors)")
    if not train:
        raise UserError(f"no row fits `max_length={encoder.max_length}`: raise it")
    texts = any(isinstance(group.prompt, str) and group.prompt for group in feedback.train)
    if encoder.tokenizer.chat_template and texts:
        log("note: plain-text prompts are used as they are; give messages to use the model's chat template")
    return Encoded(train, heldout)
