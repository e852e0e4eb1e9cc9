"""Any feedback into accepted and rejected completions, one per context."""

from __future__ import annotations

from array import array
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from statistics import median

from valence.data.groups.group import PAIRS_TIED, RANKINGS_TIED, Group, Notes
from valence.data.groups.stacked import signs
from valence.data.records import Record
from valence.data.stored import blocks, digest
from valence.feedback.labelling import label_group_mean, label_threshold

Signs = tuple[int, ...] | None
"""+1, -1 or 0 for each completion of a record; None if the record is dropped."""


def to_labels(records: Sequence[Record], notes: Notes) -> Iterator[Group]:
    """Accepted and rejected completions, in the records' order.

    pair, ranking: a completion that beats at least half of the others is accepted (`feedback.label_halves`). score:
    the threshold is the mean of its prompt if that has two distinct scores (`label_group_mean`), else the median of the
    data set (`label_threshold`). A score equal to its threshold is accepted. Feedback without spread is dropped: tied
    pairs and rankings, and scores that are all equal.
    """
    _note_unlabelled(records, notes)
    scored = iter(_of_scores((record for record in records if record.shape == "score"), notes))
    for block in blocks(records):
        # Of a pair without scores, the first completion is better.
        compared = iter(signs([one.values or (1.0, 0.0) for one in block if one.shape in ("pair", "ranking")]))
        for record in block:
            match record.shape:
                case "label":
                    verdict: Signs = (int(record.values[0]),)
                case "score":
                    verdict = next(scored)
                case _:
                    verdict = next(compared)
                    _note_halves(record, verdict, notes)
            signed = zip(record.completions, verdict, strict=True) if verdict else ()
            yield from (Group.of(record, (completion,), sign=(sign,)) for completion, sign in signed)


def _note_unlabelled(records: Sequence[Record], notes: Notes) -> None:
    silent = sum(record.shape == "label" and not record.values[0] for record in records)
    if silent == len(records):
        notes.add("{n} completions were kept, and none of them has a label", silent)
    else:
        notes.add("{n} unlabelled completions were kept (for the KL or behaviour-cloning term only)", silent)


def _of_scores(scores: Iterable[Record], notes: Notes) -> list[Signs]:
    """The sign of each score by the mean of its prompt or the median of the data set."""
    everything = array("d")
    by_prompt: defaultdict[bytes, list[int]] = defaultdict(list)
    for place, record in enumerate(scores):
        everything.append(record.values[0])
        by_prompt[digest(record.prompt)].append(place)
    verdicts: list[Signs] = [None] * len(everything)
    if len(set(everything)) < 2:
        notes.add("{n} scores were dropped: they are all equal", len(everything))
        return verdicts
    prompts = list(by_prompt.values())
    own = signs([[everything[place] for place in places] for places in prompts], label_group_mean)
    middle = median(everything)
    # A prompt without spread has no sign by its mean: the median decides.
    by_median = signs([[value] for value in everything], lambda rewards: label_threshold(rewards, middle))
    for places, row in zip(prompts, own, strict=True):
        whose = "the data set's median" if row is None else "its prompt's mean"
        for index, place in enumerate(places):
            verdicts[place] = by_median[place] if row is None else (row[index],)
            word = "accepted" if verdicts[place] == (1,) else "rejected"
            notes.add(f"{{n}} scores became {word} by {whose} (the size of the score is lost)")
    return verdicts


def _note_halves(record: Record, verdict: Signs, notes: Notes) -> None:
    if record.shape == "pair" and verdict is None:
        notes.add(PAIRS_TIED)
    elif record.shape == "pair":
        notes.add("{n} pairs became {n} accepted and {n} rejected completions (which two form a pair is lost)")
    elif verdict is None:
        notes.add(RANKINGS_TIED)
    else:
        notes.add("{n} rankings became accepted (the better half) and rejected completions (the order is lost)")
