"""Any feedback into rewards."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from valence.data.groups.group import RANKINGS_TIED, Group, Notes, contexts
from valence.data.groups.stacked import spread
from valence.data.records import Record
from valence.data.stored import blocks

MADE_UP = "some rewards are scores of the data and others were made of labels or ranks: their scales differ"


def to_rewards(records: Sequence[Record], notes: Notes) -> Iterator[Group]:
    """A reward for each completion; identical completions stay separate actions, as each has its own feedback.

    Labels: +1 or -1 (as `feedback.labels_to_rewards`), one per context. Scores, also of pairs and rankings: unchanged.
    Pairs without scores: +1 and -1, or plus and minus half of their margin. Ranks: evenly spaced from +1 for the best
    to -1 for the worst by their win rates (`feedback.win_rates_to_rewards`), so that a ranking of two equals a pair.
    """
    made_up = scored = False
    for record in records:
        if record.shape == "label":
            for group in _of_label(record, notes):
                made_up = True
                yield group
        scored = scored or record.scored
    others = contexts(((place, each) for place, each in enumerate(records) if each.shape != "label"), notes)
    for block in blocks(others):
        several = [[records[place] for place in places] for places in block]
        # One call of torch for each context would take most of the time.
        even = iter(spread([record.values for context in several for record in context if _is_order(record)]))
        for context in several:
            rewards = [_of(record, next(even) if _is_order(record) else (), notes) for record in context]
            kept = [(record, values) for record, values in zip(context, rewards, strict=True) if values]
            made_up = made_up or any(not record.scored for record, _ in kept)
            if kept:
                completions = tuple(completion for record, _ in kept for completion in record.completions)
                reward = tuple(value for _, values in kept for value in values)
                yield Group.of(kept[0][0], completions, reward=reward)
    if made_up and scored:
        notes.add(MADE_UP)


def _is_order(record: Record) -> bool:
    return record.shape == "ranking" and not record.scored


def _of_label(record: Record, notes: Notes) -> list[Group]:
    value = record.values[0]
    if not value:
        notes.add("{n} unlabelled completions were dropped: they have no reward")
        return []
    notes.add("{n} labels became rewards of +1 and -1")
    return [Group.of(record, record.completions, reward=(value,))]


def _of(record: Record, even: tuple[float, ...], notes: Notes) -> tuple[float, ...]:
    """The rewards of a record's completions, `even` for ranks; none if its ranks are all equal."""
    if record.scored:
        notes.add("{n} scored pairs became the rewards of their completions", record.shape == "pair")
        notes.add("{n} scored rankings became the rewards of their completions", record.shape == "ranking")
        return record.values
    if record.shape == "pair":
        if record.margin:
            notes.add("{n} pairs with a margin became rewards of plus and minus half of it (only their gap is known)")
            return record.margin / 2, -record.margin / 2
        notes.add("{n} pairs without scores became rewards of +1 and -1 (their gap is not known)")
        return 2 * record.rate - 1, 1 - 2 * record.rate
    if len(set(record.values)) < 2:
        notes.add(RANKINGS_TIED)
        return ()
    notes.add("{n} rankings without scores became evenly spaced rewards from +1 to -1 (their gaps are not known)")
    return even
