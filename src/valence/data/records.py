"""One schema for feedback rows of every layout."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

Shape = Literal["label", "score", "pair", "ranking", "prompt"]


class Message(NamedTuple):
    """One turn of a conversation."""

    role: str
    content: str


Text = str | tuple[Message, ...]
"""Plain text, or messages to be rendered with the model's chat template; a record's texts are all of one kind."""


def contents(text: Text) -> list[str]:
    """A plain text alone, or the content of each message."""
    return [text] if isinstance(text, str) else [turn.content for turn in text]


@dataclass(frozen=True)
class Record:
    """One unit of feedback.

    Args:
        shape: the kind of feedback.
        prompt: the context; "" if the row has none.
        completions: one for a label or score, (chosen, rejected) for a pair, all for a ranking, none for a prompt.
        values: label: (+1 or -1,) (0 unlabelled) · score: (reward,) · ranking: a score each, higher is better (ranks
            become their negatives, with `scored` False) · pair: (score_chosen, score_rejected), or () without scores.
        scored: whether `values` are scores (True) or only an order or a label (False).
        margin: how much better chosen is, of a pair without scores.
        rate: P(chosen beats rejected) of a pair, in (0.5, 1].
        split: the row's own "train" / "heldout" mark, if any.
        file, line: its place (lines from 1).
        columns: the row's other fields, for reward functions.
    """

    shape: Shape
    prompt: Text
    completions: tuple[Text, ...] = ()
    values: tuple[float, ...] = ()
    scored: bool = False
    margin: float | None = None
    rate: float = 1.0
    split: str | None = None
    file: str = ""
    line: int = 0
    columns: dict[str, Any] = field(default_factory=dict)

    def placed(self, file: str, line: int, split: str | None, columns: dict[str, Any]) -> Record:
        """The record with its place, its split mark and its other fields. (`dataclasses.replace` takes much longer.)"""
        return Record(
            self.shape, self.prompt, self.completions, self.values, self.scored, self.margin, self.rate,
            split, file, line, columns,
        )  # fmt: skip

    @classmethod
    def restored(cls, values: list[Any]) -> Record:
        """The record with these values of its fields, as JSON gives them back."""
        shape, prompt, completions, numbers, *rest = values
        return cls(shape, text_of(prompt), tuple(map(text_of, completions)), tuple(numbers), *rest)


def text_of(value: Any) -> Text:
    """A text as JSON gives it back: a string, or messages as lists of role and content."""
    return value if isinstance(value, str) else tuple(Message(*turn) for turn in value)


@dataclass(frozen=True)
class Problem:
    """A row that was dropped or truncated: its place and the reason."""

    file: str
    line: int
    reason: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.reason}"
