"""Any feedback into comparisons within a context."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import chain, zip_longest
from statistics import fmean
from typing import NamedTuple

from valence.data.groups.group import PAIRS_TIED, RANKINGS_TIED, Group, Notes, Win, contexts
from valence.data.groups.stacked import ordered
from valence.data.records import Record, Text
from valence.data.stored import blocks, digest
from valence.errors import UserError


class Comparison(NamedTuple):
    """One judgement: `better` beats `worse` with probability `rate`, by `margin` if they have scores."""

    better: Text
    worse: Text
    margin: float | None
    rate: float = 1.0


class Judged(NamedTuple):
    """Completions with numbers that order them; `scored` says whether these are scores. Two that differ give a
    comparison."""

    completions: Sequence[Text]
    values: Sequence[float]
    scored: bool


def to_preferences(records: Sequence[Record], notes: Notes) -> Iterator[Group]:
    """Comparisons of the completions of each context; identical completions of a context are one action.

    Pairs: unchanged. Rankings: every pair of distinct values (`feedback.rewards_to_pairs`). Scores of one prompt: every
    pair of distinct scores. Labels: an accepted completion beats a rejected one of the identical prompt. Without a
    prompt, a context holds only completions that a chain of comparisons connects.

    Raises:
        UserError: there are only labels, and no prompt has both signs.
    """
    later = Notes()
    grouped = contexts(((place, records[place]) for place in _alternated(records)), notes)
    for block in blocks(grouped):
        several = [[records[place] for place in places] for places in block]
        judged = [list(_judged(context, notes)) for context in several]
        # One call of torch for each context would take most of the time.
        pairs = iter(ordered([one.values for each in judged for one in each]))
        for context, judgements in zip(several, judged, strict=True):
            comparisons = list(_of_pairs(context, later))
            for one in judgements:
                for better, worse, gap in next(pairs):
                    margin = gap if one.scored else None
                    comparisons.append(Comparison(one.completions[better], one.completions[worse], margin))
            merged = _merged(comparisons, later)
            # Texts without a prompt have no common context: one context of them all would have too many pairs.
            parts = [merged] if context[0].prompt else _connected(*merged)
            yield from (Group.of(context[0], completions, wins=wins) for completions, wins in parts if wins)
    notes.merge(later)


def _alternated(records: Sequence[Record]) -> list[int]:
    """The places of each prompt's labels, accepted and rejected ones in turn, so that a full context has both; then
    those of the others."""
    labels: dict[bool, list[tuple[bytes, int]]] = {False: [], True: []}
    others: list[int] = []
    alone = True
    for place, record in enumerate(records):
        alone = alone and record.shape == "label"
        if record.shape == "label" and record.values[0]:
            labels[record.values[0] < 0].append((digest((record.prompt, record.split)), place))
        else:
            others.append(place)
    by_prompt: defaultdict[bytes, tuple[list[int], list[int]]] = defaultdict(lambda: ([], []))
    for rejected, found in labels.items():
        for prompt, place in found:
            by_prompt[prompt][rejected].append(place)
    if records and alone and not any(map(all, by_prompt.values())):
        raise UserError(
            "labels cannot become pairs here: no prompt has both an accepted and a rejected completion, and answers to"
            ' different prompts cannot be compared; use `method="pmpo"` or `method="kto"`, which take labels'
        )
    turns = chain.from_iterable(zip_longest(*sides) for sides in by_prompt.values())
    return [*(place for turn in turns for place in turn if place is not None), *others]


def _judged(context: Sequence[Record], notes: Notes) -> Iterator[Judged]:
    """The labels, the scores and the rankings of a context."""
    labels = [record for record in context if record.shape == "label" and record.values[0]]
    silent = sum(record.shape == "label" for record in context) - len(labels)
    notes.add("{n} unlabelled completions were dropped: they beat no other", silent)
    yield from _of_one_each(labels, notes, "labels", "opposite label")
    yield from _of_one_each([record for record in context if record.shape == "score"], notes, "scores", "other score")
    for record in context:
        if record.shape == "ranking" and len(set(record.values)) < 2:
            notes.add(RANKINGS_TIED)
        elif record.shape == "ranking":
            notes.add("{n} rankings became all pairs of completions of different rank")
            yield Judged(record.completions, record.values, record.scored)


def _of_one_each(records: Sequence[Record], notes: Notes, what: str, missing: str) -> Iterator[Judged]:
    """Records of one completion, labels or scores, as one judgement if they differ."""
    values = [record.values[0] for record in records]
    if len(set(values)) < 2:
        notes.add(f"{{n}} {what} were dropped: the identical prompt has no {missing} to compare with", len(records))
        return
    notes.add(f"{{n}} {what} became comparisons within their prompt", len(records))
    yield Judged([record.completions[0] for record in records], values, scored=what == "scores")


def _of_pairs(context: Sequence[Record], notes: Notes) -> Iterator[Comparison]:
    for record in context:
        if record.shape != "pair":
            continue
        better, worse = record.completions
        margin = record.values[0] - record.values[1] if record.scored else record.margin
        if record.scored and not margin:
            notes.add(PAIRS_TIED)
        else:
            yield Comparison(better, worse, margin, record.rate)


def _merged(comparisons: Sequence[Comparison], notes: Notes) -> tuple[tuple[Text, ...], tuple[Win, ...]]:
    """The distinct completions, and for each compared pair the share of judgements won and the mean margin."""
    index: dict[Text, int] = {}
    judged: defaultdict[tuple[int, int], list[tuple[float, float | None]]] = defaultdict(list)
    for better, worse, margin, rate in comparisons:
        if better == worse:
            notes.add("{n} comparisons of a completion with itself were dropped")
            continue
        i, j = (index.setdefault(text, len(index)) for text in (better, worse))
        if i < j:
            judged[i, j].append((rate, margin))
        else:
            judged[j, i].append((1 - rate, None if margin is None else -margin))
    wins = tuple(_win(i, j, judgements) for (i, j), judgements in judged.items())
    both_ways = sum(0 < p < 1 for _, _, p, _ in wins)
    notes.add("{n} pairs were judged both ways: their win probability is the share of judgements", both_ways)
    return tuple(index), wins


def _connected(completions: Sequence[Text], wins: Sequence[Win]) -> Iterator[tuple[tuple[Text, ...], tuple[Win, ...]]]:
    """The parts of the completions that chains of comparisons connect, in the order of their first completions."""
    owner = list(range(len(completions)))

    def root(place: int) -> int:
        while owner[place] != place:
            owner[place] = owner[owner[place]]
            place = owner[place]
        return place

    for i, j, _, _ in wins:
        one, two = sorted((root(i), root(j)))
        owner[two] = one
    members: defaultdict[int, list[int]] = defaultdict(list)
    for place in range(len(completions)):
        members[root(place)].append(place)
    own: defaultdict[int, list[Win]] = defaultdict(list)
    for win in wins:
        own[root(win[0])].append(win)
    for head, places in members.items():
        new = {place: index for index, place in enumerate(places)}
        kept = tuple((new[i], new[j], rate, margin) for i, j, rate, margin in own[head])
        yield tuple(completions[place] for place in places), kept


def _win(i: int, j: int, judgements: Sequence[tuple[float, float | None]]) -> Win:
    """All judgements of two completions as one, the likelier winner first."""
    rate = fmean(won for won, _ in judgements)
    margins = [margin for _, margin in judgements if margin is not None]
    margin = fmean(margins) if len(margins) == len(judgements) else None
    if rate < 0.5:
        return j, i, 1 - rate, None if margin is None else -margin
    return i, j, rate, margin
