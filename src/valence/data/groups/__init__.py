"""Records into contexts ready for a method: prompts with their completions and one kind of feedback.

Conversions that lose something are counted and said. The arithmetic is that of `valence.feedback`; here stands what
only records have: identical prompts and completions, known as text, and the counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from valence.data.groups.group import Group, Notes, Win
from valence.data.groups.labels import to_labels
from valence.data.groups.preferences import to_preferences
from valence.data.groups.rewards import to_rewards
from valence.data.groups.split import split_groups
from valence.data.records import Record
from valence.errors import UserError

__all__ = ["Group", "Win", "groups_for", "split_groups"]


def groups_for(
    records: Sequence[Record], takes: Literal["labels", "rewards", "preferences"], *, max_actions: int = 32
) -> tuple[list[Group], list[str]]:
    """Contexts with the kind of feedback that a method takes, and notes on every conversion.

    Labels are one completion a context. Scores, pairs and rankings of one identical prompt (and split) form one
    context of at most `max_actions` completions; what exceeds it opens another context of the same prompt, so that
    ten thousand rows without a prompt are not one context.

    Raises:
        UserError: nothing can be converted, with the reason.
        ValueError: max_actions < 2.
    """
    if max_actions < 2:
        raise ValueError(f"max_actions is {max_actions}: a comparison needs two")
    notes = Notes()
    judged = [record for record in records if record.shape != "prompt"]
    notes.add("{n} rows of a prompt only were left out (valence improve is for them)", len(records) - len(judged))
    if takes == "labels":
        groups = to_labels(judged, notes)
    elif takes == "rewards":
        groups = to_rewards(judged, notes, max_actions)
    else:
        groups = to_preferences(judged, notes, max_actions)
    if not groups:
        said = "; ".join(notes.lines())
        raise UserError(f"no feedback that can become {takes}" + (f": {said}" if said else ""))
    return groups, notes.lines()
