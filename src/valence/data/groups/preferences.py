"""Any feedback into comparisons within a context."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import chain, zip_longest
from statistics import fmean
from typing import NamedTuple

from valence.data.groups.group import Group, Notes, Win, contexts
from valence.data.groups.stacked import ordered
from valence.data.records import Record, Text
from valence.errors import UserError


class Comparison(NamedTuple):
    """One judgement: `better` beats `worse`, by `margin` where scores say so."""

    better: Text
    worse: Text
    margin: float | None


class Judged(NamedTuple):
    """Completions with numbers that order them, real scores or not; every two that differ are one comparison."""

    completions: Sequence[Text]
    values: Sequence[float]
    scored: bool


def to_preferences(records: Sequence[Record], notes: Notes, max_actions: int) -> list[Group]:
    """Comparisons of each context's completions; identical completions of a context are one action.

    Without a prompt only completions that comparisons lead from one to the other are of one context.

    pair: as it is. ranking: every pair of distinct values (`feedback.rewards_to_pairs`). Scores of one prompt: every
    pair of distinct scores. Labels: an accepted beats a rejected completion of the identical prompt.

    Raises:
        UserError: there are only labels and no prompt has both signs.
    """
    _refuse_labels_across_prompts(records)
    groups: list[Group] = []
    found = contexts(_alternated(records), max_actions, notes)
    judged = [list(_judged(context, notes)) for context in found]
    # The pairs of all contexts at once: one call of torch for each context would take most of the time.
    pairs = iter(ordered([one.values for several in judged for one in several]))
    for context, several in zip(found, judged, strict=True):
        comparisons = [*_of_pairs(context, notes), *chain.from_iterable(_compared(one, next(pairs)) for one in several)]
        first = context[0]
        whole = _merged(comparisons, notes)
        # Texts without a prompt answer no common question: a batch of contexts would be one of many more pairs.
        for completions, wins in [whole] if first.prompt else _apart(*whole):
            if wins:
                groups.append(
                    Group(first.prompt, completions, wins=wins, file=first.file, line=first.line, split=first.split)
                )
    return groups


def _refuse_labels_across_prompts(records: Sequence[Record]) -> None:
    """Labels become pairs only where one identical prompt has both signs."""
    if not records or any(record.shape != "label" for record in records):
        return
    accepted = {(record.prompt, record.split) for record in records if record.values[0] > 0}
    rejected = {(record.prompt, record.split) for record in records if record.values[0] < 0}
    if not accepted & rejected:
        raise UserError(
            "labels cannot become pairs here: no prompt has both an accepted and a rejected completion, and answers to"
            " different prompts cannot be compared; use pmpo or kto, which take labels as they are"
        )


def _alternated(records: Sequence[Record]) -> list[Record]:
    """Each prompt's labels by turns accepted and rejected, so that a context that is full has both."""
    accepted = [record for record in records if record.shape == "label" and record.values[0] > 0]
    rejected = [record for record in records if record.shape == "label" and record.values[0] < 0]
    others = [record for record in records if record.shape != "label" or not record.values[0]]
    by_prompt: defaultdict[tuple[Text, str | None], tuple[list[Record], list[Record]]] = defaultdict(lambda: ([], []))
    for side, found in enumerate((accepted, rejected)):
        for record in found:
            by_prompt[record.prompt, record.split][side].append(record)
    turns = chain.from_iterable(zip_longest(*sides) for sides in by_prompt.values())
    labels = [record for turn in turns for record in turn if record is not None]
    return [*labels, *others]


def _judged(context: Sequence[Record], notes: Notes) -> Iterator[Judged]:
    """What orders a context's completions, pairs apart."""
    yield from _of_labels([record for record in context if record.shape == "label"], notes)
    yield from _of_scores([record for record in context if record.shape == "score"], notes)
    for record in context:
        if record.shape == "ranking" and len(set(record.values)) < 2:
            notes.add("{n} rankings without any difference were dropped")
        elif record.shape == "ranking":
            notes.add("{n} rankings became every pair of completions that they tell apart")
            yield Judged(record.completions, record.values, record.scored)


def _of_labels(labels: Sequence[Record], notes: Notes) -> Iterator[Judged]:
    known = [record for record in labels if record.values[0]]
    notes.add("{n} unlabelled completions were dropped: nothing says what they beat", len(labels) - len(known))
    signs = [record.values[0] for record in known]
    if len(set(signs)) < 2:
        notes.add("{n} labels were dropped: no opposite label of the identical prompt to compare with", len(known))
        return
    notes.add("{n} labels became comparisons of accepted with rejected completions of their prompt", len(known))
    yield Judged([record.completions[0] for record in known], signs, scored=False)


def _of_scores(scores: Sequence[Record], notes: Notes) -> Iterator[Judged]:
    values = [record.values[0] for record in scores]
    if len(set(values)) < 2:
        notes.add("{n} scores were dropped: no different score of the identical prompt to compare with", len(scores))
        return
    notes.add("{n} scores became comparisons within their prompt", len(scores))
    yield Judged([record.completions[0] for record in scores], values, scored=True)


def _of_pairs(context: Sequence[Record], notes: Notes) -> Iterator[Comparison]:
    for record in context:
        if record.shape != "pair":
            continue
        better, worse = record.completions
        margin = record.values[0] - record.values[1] if record.scored else record.margin
        if record.scored and not margin:
            notes.add("{n} pairs with equal scores were dropped (neither is preferred)")
        else:
            yield Comparison(better, worse, margin)


def _compared(judged: Judged, pairs: Sequence[tuple[int, int, float]]) -> Iterator[Comparison]:
    for better, worse, gap in pairs:
        yield Comparison(judged.completions[better], judged.completions[worse], gap if judged.scored else None)


def _merged(comparisons: Sequence[Comparison], notes: Notes) -> tuple[tuple[Text, ...], tuple[Win, ...]]:
    """Completions by index and what is known of each two: the share of judgements won and the mean margin."""
    index: dict[Text, int] = {}
    judged: defaultdict[tuple[int, int], list[tuple[float, float | None]]] = defaultdict(list)
    for better, worse, margin in comparisons:
        if better == worse:
            notes.add("{n} comparisons of a completion with itself were dropped")
            continue
        i, j = (index.setdefault(text, len(index)) for text in (better, worse))
        if i < j:
            judged[i, j].append((1.0, margin))
        else:
            judged[j, i].append((0.0, None if margin is None else -margin))
    wins = tuple(_win(i, j, said) for (i, j), said in judged.items())
    notes.add(
        "{n} pairs were judged both ways: their win rate is the share of each", sum(0 < p < 1 for _, _, p, _ in wins)
    )
    return tuple(index), wins


def _apart(completions: Sequence[Text], wins: Sequence[Win]) -> Iterator[tuple[tuple[Text, ...], tuple[Win, ...]]]:
    """What no chain of comparisons joins, one by one; in the order met, nothing lost."""
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


def _win(i: int, j: int, said: Sequence[tuple[float, float | None]]) -> Win:
    """All judgements of two completions as one, the likelier winner first."""
    rate = fmean(won for won, _ in said)
    margins = [margin for _, margin in said if margin is not None]
    margin = fmean(margins) if len(margins) == len(said) else None
    if rate < 0.5:
        return j, i, 1 - rate, None if margin is None else -margin
    return i, j, rate, margin
