"""Records into the contexts of a method: prompts with their completions and one kind of feedback.

Each conversion that loses something is counted and noted. The arithmetic is that of `valence.feedback`; this folder
adds what only records have: identical prompts and completions, compared as text, and the counts.
"""

from __future__ import annotations

from collections.abc import Sequence

from valence.data.groups.group import Group, Notes, Takes
from valence.data.groups.labels import to_labels
from valence.data.groups.preferences import to_preferences
from valence.data.groups.rewards import to_rewards
from valence.data.groups.split import split_groups
from valence.data.records import Record
from valence.data.stored import Stored, picked
from valence.errors import UserError

__all__ = ["Group", "Takes", "groups_for", "split_groups"]


def groups_for(records: Sequence[Record], takes: Takes) -> tuple[Sequence[Group], list[str]]:
    """(contexts with the kind of feedback that a method takes, notes on every conversion). The contexts lie on disk.

    A context of labels has one completion. Scores, pairs and rankings of one identical prompt (and split) form one
    context of at most `MAX_ACTIONS` completions. Further ones form further contexts of the same prompt, so that ten
    thousand rows without a prompt are not one context.

    Raises:
        UserError: nothing can be converted; the message has the notes.
    """
    notes = Notes()
    judged = picked(records, (place for place, record in enumerate(records) if record.shape != "prompt"))
    notes.add("{n} rows with only a prompt were dropped (valence improve uses them)", len(records) - len(judged))
    convert = {"labels": to_labels, "rewards": to_rewards, "preferences": to_preferences}[takes]
    groups = Stored(Group.restored, convert(judged, notes))
    if not groups:
        why = "; ".join(notes.lines())
        raise UserError(f"no feedback can become {takes}" + (f": {why}" if why else ""))
    return groups, notes.lines()
