"""Any feedback into accepted and rejected completions, one a context."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from statistics import median

from valence.data.groups.group import Group, Notes
from valence.data.groups.stacked import signs
from valence.data.records import Record, Text
from valence.feedback import label_group_mean, label_threshold

Signs = tuple[int, ...] | None
"""+1, -1 or 0 of each of a record's completions; None where it is dropped."""


def to_labels(records: Sequence[Record], notes: Notes) -> list[Group]:
    """Accepted and rejected completions, in the records' order.

    pair, ranking: `feedback.label_halves`, so what beats at least half of the others is accepted. score: accepted if
    it is at least its prompt's mean where that prompt has two distinct scores (`label_group_mean`), else at least the
    data set's median (`label_threshold`). What equals the bar is accepted everywhere; what has no spread (a tied pair
    or ranking; scores that are all alike) is dropped.
    """
    _note_unlabelled(records, notes)
    scored = iter(_of_scores([record for record in records if record.shape == "score"], notes))
    compared = iter(signs([_order(record) for record in records if record.shape in ("pair", "ranking")]))
    groups: list[Group] = []
    for record in records:
        match record.shape:
            case "label":
                found: Signs = (int(record.values[0]),)
            case "score":
                found = next(scored)
            case _:
                found = next(compared)
                _note_halves(record, found, notes)
        groups += [_group(record, index, sign) for index, sign in enumerate(found or ())]
    return groups


def _group(record: Record, index: int, sign: int) -> Group:
    completions = (record.completions[index],)
    return Group(record.prompt, completions, (sign,), file=record.file, line=record.line, split=record.split)


def _note_unlabelled(records: Sequence[Record], notes: Notes) -> None:
    silent = sum(record.shape == "label" and not record.values[0] for record in records)
    if silent == len(records):
        notes.add("{n} completions were kept, none of which has a label", silent)
    else:
        notes.add("{n} unlabelled completions were kept (they feed the KL or BC term alone)", silent)


def _order(record: Record) -> tuple[float, ...]:
    """Numbers that order a record's completions; a pair without scores has its better one first."""
    return record.values or (1.0, 0.0)


def _of_scores(scores: Sequence[Record], notes: Notes) -> list[Signs]:
    """The sign of each score, by its prompt's mean or the data set's median."""
    found: list[Signs] = [None] * len(scores)
    everything = [record.values[0] for record in scores]
    if len(set(everything)) < 2:
        notes.add("{n} scores were dropped: they are all the same, which tells nothing apart", len(scores))
        return found
    by_prompt: defaultdict[Text, list[int]] = defaultdict(list)
    for place, record in enumerate(scores):
        by_prompt[record.prompt].append(place)
    prompts = list(by_prompt.values())
    own = signs([[everything[place] for place in places] for places in prompts], label_group_mean)
    middle = median(everything)
    # A prompt's mean drops it where it has no spread: then the median decides.
    by_median = signs([[value] for value in everything], lambda rewards: label_threshold(rewards, middle))
    for places, row in zip(prompts, own, strict=True):
        for index, place in enumerate(places):
            found[place] = by_median[place] if row is None else (row[index],)
    for sign, place in ((row, place) for places, row in zip(prompts, own, strict=True) for place in places):
        accepted = found[place] == (1,)
        whose = "the data set's median" if sign is None else "its prompt's mean"
        notes.add(f"{{n}} scores became {'accepted' if accepted else 'rejected'} by {whose} (how good or bad is lost)")
    return found


def _note_halves(record: Record, found: Signs, notes: Notes) -> None:
    if record.shape == "pair" and found is None:
        notes.add("{n} pairs with equal scores were dropped (neither is preferred)")
    elif record.shape == "pair":
        notes.add("{n} pairs became {n} accepted and {n} rejected completions (which of a pair they came from is lost)")
    elif found is None:
        notes.add("{n} rankings without any difference were dropped")
    else:
        notes.add("{n} rankings became their better half accepted and their worse half rejected (the order is lost)")
