"""One row as it was read, the names of its fields, and the reason why it cannot be used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from valence.data.formats.outcomes import Refused as Refused
from valence.data.formats.outcomes import Skipped as Skipped
from valence.data.formats.verdicts import Verdicts

PROMPT = (
    *("prompt", "instruction", "input", "query", "question", "user_prompt", "user_message", "user_input"),
    *("context_messages", "context"),
)
COMPLETION = (
    *("completion", "response", "output", "model_output", "model_response", "assistant_response", "assistant_message"),
    *("ai_response", "bot_response", "generated_text"),
)
ANSWER = ("answer", "reply", "generation", "prediction")
"""Names of a completion where the row has a verdict; without one they may be the right answer of a problem."""
_SIDES = ("response", "completion", "answer", "output")
FIRST = ("a", "output_A", *(f"{name}_a" for name in _SIDES), *(f"{name}_1" for name in _SIDES))
SECOND = ("b", "output_B", *(f"{name}_b" for name in _SIDES), *(f"{name}_2" for name in _SIDES))
WINNER = ("winner", "better", "preferred_answer")
MODEL_FIRST = ("model_a",)
MODEL_SECOND = ("model_b",)
COMPLETIONS = ("completions", "responses")
LABEL = (
    *("label", "accept", "accepted", "kto_tag", "thumb", "sign", "thumbs", "thumbs_up", "vote", "verdict", "liked"),
    "approved",
)
SCORE = ("reward", "score", "rating", "overall_score")
SCORES = ("scores", "rewards", "ratings")
RANKS = ("ranks", "ranking")
CHOSEN = ("chosen", "chosen_response", "preferred")
REJECTED = ("rejected", "reject", "rejected_response", "dispreferred", "non_preferred")
SCORE_CHOSEN = ("score_chosen", "chosen_score", "chosen_rating", "chosen_reward", "reward_chosen", "rating_chosen")
SCORE_REJECTED = (
    *("score_rejected", "rejected_score", "rejected_rating", "rejected_reward", "reward_rejected", "rating_rejected"),
    "reject_reward",
)

ALIASES = (
    *(PROMPT, COMPLETION, COMPLETIONS, LABEL, SCORE, SCORES, RANKS, CHOSEN, REJECTED),
    *(SCORE_CHOSEN, SCORE_REJECTED, ("margin",), ("split",)),
    *(FIRST, SECOND, WINNER, MODEL_FIRST, MODEL_SECOND),
)
FEEDBACK = (*LABEL, *SCORE, *SCORES, *RANKS)


class Row:
    """The fields of a row, and which of them a layout has read; the others become the record's columns.

    A null field is absent: tables with rows of several shapes fill the columns of the other shapes with null. `aside`
    holds columns that no layout reads, such as those that a rename displaced. `verdicts` reads the values that judge.

    Attributes:
        looked: whether the value of a field was looked at, and not only its name.
    """

    def __init__(self, fields: Mapping[str, object], aside: Mapping[str, object], verdicts: Verdicts) -> None:
        self.fields = {name: value for name, value in fields.items() if value is not None}
        self.aside = dict(aside)
        self.verdicts = verdicts
        self.used: set[str] = set()
        self.looked = False

    def has(self, *names: str) -> bool:
        """Whether the row has every one of `names`."""
        for name in names:  # noqa: SIM110 - this and `first` are called for every row, and a generator takes longer
            if name not in self.fields:
                return False
        return True

    def first(self, names: Sequence[str]) -> str | None:
        """The first of `names` that the row has."""
        for name in names:
            if name in self.fields:
                return name
        return None

    def peek(self, name: str) -> object:
        """A field's value or None; it does not count as read."""
        if name not in self.fields:
            return None
        self.looked = True
        return self.fields[name]

    def take(self, name: str | None, default: object = None) -> object:
        """A field's value; it counts as read."""
        if name is None or name not in self.fields:
            return default
        self.used.add(name)
        self.looked = True
        return self.fields[name]

    def unread(self) -> dict[str, object]:
        """The fields that no layout has read."""
        return {name: value for name, value in self.fields.items() if name not in self.used}

    def verdict(self, name: str) -> int:
        """The label in a field: +1 accepted, -1 rejected, 0 unlabelled."""
        return self.verdicts.label(self.take(name, ""), name)

    def number(self, name: str) -> float:
        """The score in a field."""
        return self.verdicts.score(self.take(name), name)
