"""A context with its completions, and the notes on conversions."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from valence.data.records import Record, Text, text_of
from valence.data.stored import digest

Takes = Literal["labels", "rewards", "preferences"]
MAX_ACTIONS = 32
Win = tuple[int, int, float, float | None]
"""(i, j, P(i beats j), score of i minus score of j, or None if they have no scores)."""
PAIRS_TIED = "{n} pairs with equal scores were dropped (neither is preferred)"
RANKINGS_TIED = "{n} rankings without any difference were dropped"


@dataclass(frozen=True)
class Group:
    """One context with its completions and exactly one of `sign`, `reward` and `wins`.

    Args:
        prompt: the context.
        completions: the K actions.
        sign: +1 accepted, -1 rejected, 0 unlabelled, of each completion.
        reward: of each completion.
        wins: comparisons of completions by index; each unordered pair once, the likelier winner first.
        file, line, split: those of its first record.
    """

    prompt: Text
    completions: tuple[Text, ...]
    sign: tuple[int, ...] | None = None
    reward: tuple[float, ...] | None = None
    wins: tuple[Win, ...] | None = None
    file: str = ""
    line: int = 0
    split: str | None = None

    @classmethod
    def of(cls, record: Record, completions: tuple[Text, ...], **feedback: Any) -> Group:
        """A group with the prompt, file, line and split of a record."""
        return cls(record.prompt, completions, file=record.file, line=record.line, split=record.split, **feedback)

    @classmethod
    def restored(cls, values: list[Any]) -> Group:
        """The group with these values of its fields, as JSON gives them back."""
        prompt, completions, sign, reward, wins, *place = values
        sign, reward = (None if part is None else tuple(part) for part in (sign, reward))
        wins = None if wins is None else tuple(map(tuple, wins))
        return cls(text_of(prompt), tuple(map(text_of, completions)), sign, reward, wins, *place)

    def __post_init__(self) -> None:
        if sum(feedback is not None for feedback in (self.sign, self.reward, self.wins)) != 1:
            raise ValueError("a group has exactly one of sign, reward and wins")
        for values in (self.sign, self.reward):
            if values is not None and len(values) != len(self.completions):
                raise ValueError(f"{len(self.completions)} completions but {len(values)} values")


class Notes:
    """Counts of conversions and dropped rows, in the order of their first occurrence."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def add(self, what: str, count: int = 1) -> None:
        """Add to the count of `what`, a text with {n} in the place of the count."""
        if count:
            self.counts[what] += count

    def merge(self, others: Notes) -> None:
        """Add the counts of others behind these."""
        for what, count in others.counts.items():
            self.add(what, count)

    def lines(self) -> list[str]:
        """A line for each note."""
        return [what.replace("{n}", str(count)) for what, count in self.counts.items()]


def contexts(records: Iterable[tuple[int, Record]], notes: Notes) -> list[list[int]]:
    """The places of the records of each prompt and split, in lists of at most `MAX_ACTIONS` completions.

    A record is never split: a larger ranking forms a list of its own. Prompts are compared by their digests.
    """
    by_prompt: defaultdict[bytes, list[int]] = defaultdict(list)
    sizes: dict[int, int] = {}
    for place, record in records:
        by_prompt[digest((record.prompt, record.split))].append(place)
        if len(record.completions) != 1:
            sizes[place] = len(record.completions)
    exceeded = f"{{n}} contexts were added for prompts with more than {MAX_ACTIONS} completions"
    groups: list[list[int]] = []
    for same in by_prompt.values():
        groups.append([])
        size = 0
        for place in same:
            if groups[-1] and size + sizes.get(place, 1) > MAX_ACTIONS:
                notes.add(f"{exceeded} (contexts are not compared)")
                groups.append([])
                size = 0
            groups[-1].append(place)
            size += sizes.get(place, 1)
    return groups
