"""Any feedback into rewards."""

from __future__ import annotations

from collections.abc import Sequence

from valence.data.groups.group import Group, Notes, contexts
from valence.data.groups.stacked import spread
from valence.data.records import Record

MADE_UP = "some rewards were made up (+1 and -1) and others given: they stand on different scales"


def to_rewards(records: Sequence[Record], notes: Notes, max_actions: int) -> list[Group]:
    """A reward for each completion; identical completions stay separate actions, as each was judged.

    label: +1 or -1 (as `feedback.labels_to_rewards`), one a context. Scores, scored pairs and scored rankings: as
    they are. Bare pairs: +1 and -1, or half their margin up and down. Ranks: spread evenly from +1 for the best to -1
    for the worst by their win rates (`feedback.win_rates_to_rewards`), so that a ranking of two and a bare pair give
    the same.
    """
    groups = [group for record in records if record.shape == "label" for group in _of_label(record, notes)]
    made_up = bool(groups)
    unscored = [record for record in records if record.shape == "ranking" and not record.scored]
    even = dict(zip(map(id, unscored), spread([record.values for record in unscored]), strict=True))
    for context in contexts([record for record in records if record.shape != "label"], max_actions, notes):
        rewards = [_of(record, even.get(id(record), ()), notes) for record in context]
        made_up = made_up or any(values and not record.scored for record, values in zip(context, rewards, strict=True))
        kept = [(record, values) for record, values in zip(context, rewards, strict=True) if values]
        if kept:
            first = kept[0][0]
            completions = tuple(completion for record, _ in kept for completion in record.completions)
            reward = tuple(value for _, values in kept for value in values)
            groups.append(
                Group(first.prompt, completions, reward=reward, file=first.file, line=first.line, split=first.split)
            )
    if made_up and any(record.scored for record in records):
        notes.add(MADE_UP)
    return groups


def _of_label(record: Record, notes: Notes) -> list[Group]:
    value = record.values[0]
    if not value:
        notes.add("{n} unlabelled completions were dropped: nothing says what they are worth")
        return []
    notes.add("{n} labels became rewards of +1 and -1")
    where = {"file": record.file, "line": record.line, "split": record.split}
    return [Group(record.prompt, record.completions, reward=(value,), **where)]


def _of(record: Record, even: tuple[float, ...], notes: Notes) -> tuple[float, ...]:
    """The rewards of a record's completions, `even` for ranks; none where it has no spread to make them of."""
    if record.scored:
        notes.add("{n} scored pairs became the rewards of their completions", record.shape == "pair")
        notes.add("{n} scored rankings became the rewards of their completions", record.shape == "ranking")
        return record.values
    if record.shape == "pair":
        if record.margin:
            notes.add("{n} pairs with a margin became rewards of half the margin up and down (only the gap is real)")
            return record.margin / 2, -record.margin / 2
        notes.add("{n} pairs without scores became rewards of +1 and -1 (how much better is not known)")
        return 1.0, -1.0
    if len(set(record.values)) < 2:
        notes.add("{n} rankings without any difference were dropped")
        return ()
    notes.add("{n} rankings without scores became rewards spread evenly from +1 to -1 (the true gaps are not known)")
    return even
