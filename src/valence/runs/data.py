"""Feedback files made ready for one method; everything found on the way is logged."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from valence.data.groups import groups_for, split_groups
from valence.data.groups.split import is_heldout
from valence.data.inspect import agreed, summarize
from valence.data.load import Loaded
from valence.data.prepare import Feedback, Log, log_problems
from valence.data.stored import picked
from valence.errors import UserError
from valence.runs.methods import Method
from valence.runs.options import DataOptions, ReadOptions
from valence.runs.reading import read_feedback


def load_rows(
    paths: Sequence[str], read: ReadOptions, log: Log, *, of: str = "rows", describe: bool = False, show: bool = True
) -> Loaded:
    """Read files and log their problems; with `describe` also what they hold, and how an example of each side reads."""
    loaded = read_feedback(paths, read, show=show)
    if describe:
        found = summarize(loaded)
        sides = "" if found.accepted is None else f", {found.accepted:,} accepted, {found.rejected:,} rejected"
        log(f"feedback: {loaded.rows:,} rows, {found.prompts:,} prompts, shape {found.shape}{sides}")
        for side, example in found.examples.items():
            log(f"  read as {side}: {example}")
        if agreement := agreed(found):
            log(f"annotators: {agreement}")
    for reason, count in loaded.skipped.items():
        log(f"skipped: {count:,} {of}: {reason}")
    log_problems(loaded.problems, log, of=of)
    return loaded


def convert(
    loaded: Loaded, row: Method, options: Any, objective: Any, data: DataOptions, seed: int, log: Log, *,
    show: bool = True,
) -> Feedback:  # fmt: skip
    """Convert rows to the method's feedback and hold some out; conversions are logged.

    Raises:
        UserError: there is nothing to learn from.
    """
    kind = row.feedback_kind(loaded.records, objective)
    groups, notes = groups_for(loaded.records, kind)
    problems = list(loaded.problems)
    if data.eval_feedback:
        other = load_rows(data.eval_feedback, data, log, of="held-out rows", show=show)
        problems += other.problems
        heldout, more = groups_for(other.records, kind)
        notes += [f"held-out: {note}" for note in more]
        kept = picked(groups, (place for place, group in enumerate(groups) if not is_heldout(group)))
        if marked := len(groups) - len(kept):
            notes.append(f"{marked} contexts marked as held out are not trained on; `eval_feedback` is evaluated")
            groups = kept
    else:
        groups, heldout = split_groups(groups, fraction=data.eval_fraction, seed=seed)
    if not groups:
        raise UserError("no row is left to train on: lower `eval_fraction` or give more feedback")
    if row.prepare is not None:
        groups, more = row.prepare(groups, options, objective)
        notes += more
    for note in notes:
        log(note)
    return Feedback(groups, heldout, problems)
