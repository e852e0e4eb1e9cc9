"""Any feedback into accepted and rejected completions, one a context."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from statistics import fmean, median

from valence.data.groups.group import Group, Notes
from valence.data.records import Record, Text

Signs = dict[int, int]
"""Index of a completion in its record -> +1, -1 or 0."""


def to_labels(records: Sequence[Record], notes: Notes) -> list[Group]:
    """Accepted and rejected completions, in the records' order.

    pair: accept and reject. ranking: top and bottom half, the middle of an odd count dropped. score: accepted if it
    is at least its prompt's mean where that prompt has two distinct scores, else at least the data set's median.
    What has no spread (a tied pair or ranking; scores that are all alike) is dropped.
    """
    scores = [record for record in records if record.shape == "score"]
    bars = _bars(scores)
    if scores and not bars:
        notes.add("{n} scores were dropped: they are all the same, which tells nothing apart", len(scores))
    groups: list[Group] = []
    for record in records:
        match record.shape:
            case "label":
                signs = _of_label(record, notes)
            case "score":
                signs = _of_score(record, bars, notes)
            case "pair":
                signs = _of_pair(record, notes)
            case _:
                signs = _of_ranking(record, notes)
        groups += [_group(record, index, sign) for index, sign in signs.items()]
    return groups


def _group(record: Record, index: int, sign: int) -> Group:
    completions = (record.completions[index],)
    return Group(record.prompt, completions, (sign,), file=record.file, line=record.line, split=record.split)


def _of_label(record: Record, notes: Notes) -> Signs:
    notes.add("{n} unlabelled completions were kept (they feed the KL or BC term alone)", record.values[0] == 0)
    return {0: int(record.values[0])}


def _bars(scores: Sequence[Record]) -> dict[Text, tuple[float, bool]]:
    """What a score has to reach, by prompt, and whether it is the prompt's own mean; empty where all are alike."""
    by_prompt: defaultdict[Text, list[float]] = defaultdict(list)
    for record in scores:
        by_prompt[record.prompt].append(record.values[0])
    everything = [record.values[0] for record in scores]
    if len(set(everything)) < 2:
        return {}
    middle = median(everything)
    return {
        prompt: (fmean(values), True) if len(set(values)) > 1 else (middle, False)
        for prompt, values in by_prompt.items()
    }


def _of_score(record: Record, bars: dict[Text, tuple[float, bool]], notes: Notes) -> Signs:
    if not bars:
        return {}
    bar, own = bars[record.prompt]
    sign = 1 if record.values[0] >= bar else -1
    whose = "its prompt's mean" if own else "the data set's median"
    notes.add(f"{{n}} scores became {'accepted' if sign > 0 else 'rejected'} by {whose} (how good or bad is lost)")
    return {0: sign}


def _of_pair(record: Record, notes: Notes) -> Signs:
    if record.scored and record.values[0] == record.values[1]:
        notes.add("{n} pairs with equal scores were dropped (neither is preferred)")
        return {}
    notes.add("{n} pairs became {n} accepted and {n} rejected completions (which of a pair they came from is lost)")
    return {0: 1, 1: -1}


def _of_ranking(record: Record, notes: Notes) -> Signs:
    """The better half accepted, the worse rejected; where a tie straddles the middle, at least the mean accepts."""
    values = record.values
    if len(set(values)) < 2:
        notes.add("{n} rankings without any difference were dropped")
        return {}
    ascending, half = sorted(values), len(values) // 2
    low, high = ascending[half - 1], ascending[-half]
    if low == high:
        low = high = fmean(values)
    signs = {index: 1 if value >= high else -1 for index, value in enumerate(values) if not low < value < high}
    notes.add("{n} rankings became their better half accepted and their worse half rejected (the order is lost)")
    notes.add("{n} completions in the middle of a ranking were dropped", len(values) - len(signs))
    return signs
