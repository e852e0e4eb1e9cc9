"""Feedback files made ready for one method and one model, with everything that was found said and written down."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from valence.data.collate import EncodedGroup, Encoder
from valence.data.formats import load_feedback
from valence.data.groups import Group, groups_for, split_groups
from valence.data.groups.split import is_heldout
from valence.data.inspect import choose_method, summarize
from valence.data.records import Problem, Record
from valence.errors import UserError
from valence.runs.config import AlignConfig, parse_columns
from valence.runs.methods import prepare_groups, takes

Say = Callable[[str], None]


@dataclass(frozen=True)
class Feedback:
    """What the files hold, as contexts for one method."""

    method: str
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
        return [row.group for row in self.train]


def read_feedback(config: AlignConfig, say: Say) -> Feedback:
    """Load, choose the method, convert, hold out; what was found is said.

    Raises:
        UserError: nothing to learn from, or a bad row under --strict.
    """
    columns = parse_columns(config.data.columns)
    loaded = load_feedback(config.feedback, columns=columns, strict=config.data.strict)
    found = summarize(loaded).to_json()
    sides = "" if found["accepted"] is None else f", {found['accepted']:,} accepted, {found['rejected']:,} rejected"
    say(f"feedback: {found['rows']:,} rows, {found['prompts']:,} prompts, shape {found['shape']}{sides}")
    say_problems(loaded.problems, say)
    method = _method(config, loaded.records, say)
    config.method.check_read_by(method)
    kind = takes(method, loaded.records, config.method)
    groups, notes = groups_for(loaded.records, kind)
    problems = list(loaded.problems)
    if config.data.eval_feedback:
        other = load_feedback(config.data.eval_feedback, columns=columns, strict=config.data.strict)
        problems += other.problems
        say_problems(other.problems, say, of="held-out rows")
        heldout, more = groups_for(other.records, kind)
        notes += [f"held-out: {note}" for note in more]
        marked = [group for group in groups if is_heldout(group)]
        if marked:
            notes.append(f"{len(marked)} contexts marked as held out are not trained on; --eval-feedback is evaluated")
            groups = [group for group in groups if not is_heldout(group)]
    else:
        groups, heldout = split_groups(groups, fraction=config.data.eval_fraction, seed=config.train.seed)
    if not groups:
        raise UserError("no row is left to train on: lower --eval-fraction or give more feedback")
    groups, more = prepare_groups(method, groups, config.method)
    for note in [*notes, *more]:
        say(note)
    return Feedback(method, groups, heldout, problems)


def split_records(records: Sequence[Record], *, fraction: float, seed: int) -> tuple[list[Record], list[Record]]:
    """(rows to learn from, rows to look at): those marked as held out, else a share of the prompts, none in both; where
    all rows have one prompt, a share of the rows."""
    if any(map(is_heldout, records)):
        return [row for row in records if not is_heldout(row)], [row for row in records if is_heldout(row)]
    names: list[Any] = [row.prompt for row in records]
    if len(set(names)) == 1:
        names = list(range(len(records)))
    different = list(dict.fromkeys(names))
    order = torch.randperm(len(different), generator=torch.Generator().manual_seed(seed)).tolist()
    away = {different[place] for place in order[: int(len(different) * fraction)]}
    pairs = list(zip(names, records, strict=True))
    return [row for name, row in pairs if name not in away], [row for name, row in pairs if name in away]


def _method(config: AlignConfig, records: Sequence[Record], say: Say) -> str:
    method = config.method.method
    if method != "auto":
        say(f"method: {method} (asked for)")
        return method
    chosen, why = choose_method(records)
    if chosen is None:
        raise UserError(why)
    say(f"method: {chosen} ({why})")
    return chosen


def say_problems(problems: Sequence[Problem], say: Say, *, of: str = "rows", most: int = 5) -> None:
    """Every problem row is counted; the first few are shown with their line and reason."""
    if not problems:
        return
    say(f"{len(problems):,} {of} had problems:")
    for problem in problems[:most]:
        say(f"  {problem}")
    if len(problems) > most:
        say(f"  … and {len(problems) - most:,} more, all in problems.jsonl")


def encode_feedback(feedback: Feedback, encoder: Encoder, out: Path, *, strict: bool, say: Say) -> Encoded:
    """Token ids of all groups; every problem so far goes to `out/problems.jsonl`.

    Raises:
        UserError: no row fits, or under --strict one had to be cut or left out.
    """
    train, problems = encoder.groups(feedback.train)
    heldout, more = encoder.groups(feedback.heldout)
    problems += more
    say_problems(problems, say)
    lines = [json.dumps(vars(problem), ensure_ascii=False) + "\n" for problem in [*feedback.problems, *problems]]
    (out / "problems.jsonl").write_text("".join(lines), encoding="utf-8")
    if strict and problems:
        raise UserError(f"{problems[0]} ({len(problems)} such rows; --strict makes them errors)")
    if not train:
        raise UserError(f"no row fits --max-length {encoder.max_length}: raise it")
    texts = any(isinstance(group.prompt, str) and group.prompt for group in feedback.train)
    if encoder.tokenizer.chat_template and texts:
        say("note: plain-text prompts are taken as they are; give messages to use the model's chat template")
    return Encoded(train, heldout)
