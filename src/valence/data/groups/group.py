"""A context with its completions, and the notes that conversions leave."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from valence.data.records import Record, Text

Win = tuple[int, int, float, float | None]
"""(i, j, P(i beats j), score of i minus score of j, or None where nobody gave scores)."""


@dataclass(frozen=True)
class Group:
    """One context with its completions and exactly one of `sign`, `reward` and `wins`.

    Args:
        prompt: the context.
        completions: the K actions.
        sign: +1 accepted, -1 rejected, 0 unlabelled, of each completion.
        reward: of each completion.
        wins: comparisons of completions by index; each unordered pair once, the likelier winner first.
        file, line, split: of the first record in it.
    """

    prompt: Text
    completions: tuple[Text, ...]
    sign: tuple[int, ...] | None = None
    reward: tuple[float, ...] | None = None
    wins: tuple[Win, ...] | None = None
    file: str = ""
    line: int = 0
    split: str | None = None

    def __post_init__(self) -> None:
        if sum(feedback is not None for feedback in (self.sign, self.reward, self.wins)) != 1:
            raise ValueError("a group has exactly one of sign, reward and wins")
        for values in (self.sign, self.reward):
            if values is not None and len(values) != len(self.completions):
                raise ValueError(f"{len(self.completions)} completions but {len(values)} values")


class Notes:
    """Counts of what was converted or dropped, in the order met."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def add(self, what: str, count: int = 1) -> None:
        """`what` holds {n} where its count is to stand."""
        if count:
            self.counts[what] += count

    def lines(self) -> list[str]:
        """One line each."""
        return [what.replace("{n}", str(count)) for what, count in self.counts.items()]


def contexts(records: Sequence[Record], max_actions: int, notes: Notes) -> list[list[Record]]:
    """Records of one identical prompt and split together, at most `max_actions` completions in each.

    A pair or a ranking is never torn: one that is itself larger stands alone.
    """
    by_prompt: defaultdict[tuple[Text, str | None], list[Record]] = defaultdict(list)
    for record in records:
        by_prompt[record.prompt, record.split].append(record)
    found: list[list[Record]] = []
    for same in by_prompt.values():
        found.append([])
        size = 0
        for record in same:
            if found[-1] and size + len(record.completions) > max_actions:
                notes.add(_EXCEEDED.replace("{max}", str(max_actions)))
                found.append([])
                size = 0
            found[-1].append(record)
            size += len(record.completions)
    return found


_EXCEEDED = "{n} more contexts hold what exceeded {max} completions of a prompt (nothing is compared across contexts)"
