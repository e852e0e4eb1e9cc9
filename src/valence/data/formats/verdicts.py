"""What the values of a column mean: accepted, rejected, or which of two won. No meaning is guessed.

A value is read by a closed list of spellings, or by the rule that the user gives as `labels`. A column is read as a
whole: if its values do not belong to one scheme of the list, the file is refused with the values that it holds.
"""

from __future__ import annotations

import math
import operator
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from valence.data.formats.outcomes import Refused, Skipped
from valence.data.formats.values import kind, number, unit
from valence.errors import UserError

SCHEMES = (
    ("true t", "false f"), ("1", "0"), ("1", "-1"), ("yes y", "no n"),
    ("up upvote upvoted :+1: 👍", "down downvote downvoted :-1: 👎"),
    ("good", "bad"), ("great", "terrible"), ("like liked", "dislike disliked"), ("accept accepted", "reject rejected"),
    ("approve approved", "reject rejected disapprove disapproved"), ("positive pos", "negative neg"),
    ("correct right", "incorrect wrong"), ("pass passed", "fail failed"), ("helpful", "unhelpful nothelpful"),
    ("desirable", "undesirable"), ("satisfied", "unsatisfied dissatisfied"), ("✓ ✔", "✗ ✘ ✕ ✖"), ("✅", "❌"),
    ("+", "-"),
)  # fmt: skip
"""(spellings of accept, spellings of reject) of each scheme. Case, blanks, underscores and skin tones do not matter."""
SILENT = frozenset(("", "none", "null", "nan", "n/a", "na", "unlabelled", "unlabeled", "unknown"))
"""Spellings of no verdict: the completion is unlabelled."""
WINNERS = (
    ("a modela responsea answera completiona outputa", "b modelb responseb answerb completionb outputb"),
    ("1 model1 response1 answer1 completion1 output1", "2 model2 response2 answer2 completion2 output2"),
    ("left", "right"), ("first", "second"),
)  # fmt: skip
"""(spellings of the first of two, spellings of the second) of each scheme."""
TIES = frozenset(("tie", "tied", "draw", "equal", "same", "both", "bothgood", "tie(bothgood)"))
BOTH_BAD = frozenset(("bothbad", "tie(bothbad)", "neither"))
NEGATIVE = frozenset((
    "bad", "toxic", "toxicity", "harm", "harmful", "unsafe", "reject", "dislike", "disliked", "downvote",
    "downvoted", "downvotes", "error", "errors", "wrong", "incorrect", "fail", "failed", "failure", "spam",
    "problem", "problems", "flag", "flagged", "complaint", "complaints", "issue", "issues", "hallucination",
    "hallucinated", "hallucinates", "refusal", "refused", "biased", "bias", "offensive", "unhelpful", "negative",
    "violation", "violations", "bug", "bugs", "loss", "cost", "distance", "rank", "penalty", "perplexity",
    "mistake", "mistakes", "defect", "defects", "rude",
))  # fmt: skip
"""Words of a column's name by which a high value, or a yes, speaks against an answer."""
OPERATORS = {">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt}
SIDES = {"accept": 1, "reject": -1, "ignore": 0, "a": 1, "b": -1, "tie": 0}
MOST_VALUES = 200
MOST_SHOWN = 8
LONGEST_KNOWN = 40
_INVISIBLE = re.compile("[\U0001f3fb-\U0001f3ff\ufe0f\u200d]")
_HOW = "accept=VALUES,reject=VALUES,ignore=VALUES"


def word(value: Any) -> str:
    """A value as it is compared: lower case, numbers in one spelling, without blanks, underscores and skin tones."""
    text = str(value)
    return _word(text) if len(text) <= LONGEST_KNOWN else _word.__wrapped__(text)


@lru_cache(maxsize=4096)
def _word(text: str) -> str:
    """The same, of a text; the words of a column are few."""
    text = _INVISIBLE.sub("", text).strip().lower()
    try:
        number = float(text) + 0.0
    except ValueError:
        letters = re.sub(r"[\s_]+|(?<=\w)-(?=\w)", "", text)
        return re.sub(r"^(:?)thumbs?(up|down):?$", r"\2", letters)
    return f"{number:g}" if math.isfinite(number) else text


def _by_word(schemes: Sequence[tuple[str, str]]) -> tuple[dict[str, int], list[frozenset[str]]]:
    """(+1 or -1 of each word, the words of each scheme)."""
    sides = {each: 1 for first, _ in schemes for each in first.split()}
    sides |= {each: -1 for _, second in schemes for each in second.split()}
    return sides, [frozenset(" ".join(pair).split()) for pair in schemes]


LABEL_SIDES, LABEL_SCHEMES = _by_word(SCHEMES)
WINNER_SIDES, WINNER_SCHEMES = _by_word(WINNERS)


@dataclass(frozen=True)
class LabelRule:
    """What the values of a column of verdicts mean, in the user's words.

    Args:
        sides: word -> +1 accepted (or the first of two), -1 rejected (or the second), 0 ignored (or a tie).
        bounds: (operator, number, +1 / -1 / 0): the first one that holds decides; a value that none fits is ignored.
        invert: the values mean the reverse of what they say.
        stated: the user says that the values mean what they say, whatever the column's name.
    """

    sides: dict[str, int] = field(default_factory=dict)
    bounds: tuple[tuple[str, float, int], ...] = ()
    invert: bool = False
    stated: bool = False

    @classmethod
    def parse(cls, text: str | None) -> LabelRule:
        """`accept=yes,reject=no,ignore=maybe`, `accept>=4,reject<=2`, `invert` or `as-is`; several values of a side are
        separated by commas or |. Of two answers: `a=…,b=…,tie=…`.

        Raises:
            UserError: the text is not of such a form, or gives one value two meanings.
        """
        if not text:
            return cls()
        if text.strip() in ("invert", "as-is"):
            return cls(invert=text.strip() == "invert", stated=True)
        sides: dict[str, int] = {}
        bounds: list[tuple[str, float, int]] = []
        side = ""
        wrong = (
            f"`labels` is {text!r}, and must look like accept=4|5,reject=1|2,ignore=3 or accept>=4,reject<=2, or be "
            "invert or as-is"
        )
        for part in text.split(","):
            found = re.fullmatch(r"\s*(\w+)\s*(>=|<=|=|>|<)\s*(.*)", part)
            if found and found[1] in SIDES:
                side, sign, rest = found[1], found[2], found[3]
            elif side and "=" not in part:
                sign, rest = "=", part
            else:
                raise UserError(wrong)
            if sign != "=":
                try:
                    bounds.append((sign, float(rest), SIDES[side]))
                except ValueError:
                    raise UserError(wrong) from None
                continue
            for value in rest.split("|"):
                if sides.setdefault(word(value), SIDES[side]) != SIDES[side]:
                    raise UserError(f"`labels` gives {value.strip()!r} two meanings")
        return cls(sides, tuple(bounds), stated=True)

    @property
    def given(self) -> bool:
        """Whether the rule itself says which values accept and reject, and not only which to ignore."""
        return any(self.sides.values()) or bool(self.bounds)

    def names(self, value: object) -> bool:
        """Whether the rule gives the value a meaning of its own."""
        return word(value) in self.sides or bool(self.bounds)

    def read(self, value: Any, column: str) -> int | None:
        """+1, -1, or 0 for a value to ignore; None if the rule does not name it.

        Raises:
            Refused: the rule compares numbers, and this is none.
        """
        if (side := self.sides.get(word(value))) is not None or not self.bounds:
            return side
        size = number(value, column)
        return next((side for sign, bound, side in self.bounds if OPERATORS[sign](size, bound)), 0)


class Verdicts:
    """Reads the verdicts of one file, and counts the values of each column for `check`."""

    def __init__(self, rule: LabelRule | None = None, names: Callable[[str], str] = str) -> None:
        self.rule = rule or LabelRule()
        self.name_of = names
        """Our name of a field -> the file's name of its column."""
        self.labels: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self.winners: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self.spelled: dict[str, str] = {}
        self.units: defaultdict[str, dict[str, object]] = defaultdict(dict)

    def label(self, value: Any, name: str) -> int:
        """+1 accepted, -1 rejected, 0 unlabelled. The value 0 is unlabelled in Valence's own field `sign`.

        Raises:
            Refused: the value has no meaning (`check` then stops the run).
            Skipped: the rule ignores the value.
        """
        column = self.name_of(name)
        if isinstance(value, list) and len(value) == 1:
            value = value[0]
        if not isinstance(value, (bool, int, float, str)):
            raise Refused(f"{column} is {kind(value)}, not a label")
        short = word(value)
        if self.rule.given:
            side = None if short in SILENT and short not in self.rule.sides else self.rule.read(value, column)
            if side == 0:
                raise Skipped(f"{column} has a value that `labels` ignores")
            if side is None and short not in SILENT:
                self._count(self.labels[column], short, value)
                raise Refused(f"{column} is {str(value)[:40]!r}, which `labels` does not name")
            return side or 0
        if self.rule.sides.get(short) == 0:
            raise Skipped(f"{column} has a value that `labels` ignores")
        if short in SILENT or (name == "sign" and short == "0"):
            return 0
        self._count(self.labels[column], short, value)
        if short not in LABEL_SIDES:
            raise Refused(f"{column} is {str(value)[:40]!r}, which is no known label")
        return LABEL_SIDES[short]

    def score(self, value: object, name: str) -> float:
        """A score, higher is better.

        Raises:
            Refused: the value is no number.
        """
        column = self.name_of(name)
        self.units[column].setdefault(unit(value), value)
        return number(value, column)

    def is_word(self, value: object, *, spelled: bool = False) -> bool:
        """Whether a value is one of the list's spellings of accept or reject; with `spelled`, in letters or signs."""
        short = word(value) if isinstance(value, (bool, int, float, str)) else ""
        return short in LABEL_SIDES and not (spelled and (not isinstance(value, str) or re.match(r"[+-]?\d", short)))

    def winner(self, value: Any, name: str, texts: Sequence[Any], models: Sequence[Any]) -> float:
        """P(the first of two answers wins), in [0, 1], of a word, a model's name, the better text, a probability, or a
        list of votes.

        Raises:
            Refused: the value has no meaning.
            Skipped: a tie, or both are bad.
        """
        column = self.name_of(name)
        votes = value if isinstance(value, list) else str(value).split("|") if "|" in str(value) else [value]
        shares = [self._vote(vote, column, texts, models) for vote in votes]
        known = [share for share in shares if share is not None]
        if not known:
            raise Skipped(f"{column}: both answers are bad")
        rate = math.fsum(known) / len(known)
        if rate == 0.5:
            raise Skipped(f"{column}: a tie")
        return rate

    def _vote(self, value: Any, column: str, texts: Sequence[Any], models: Sequence[Any]) -> float | None:
        """The share of one vote that the first answer gets; None if both are bad."""
        short = word(value)
        for pair in (models, texts):
            if value in pair and pair[0] != pair[1] and not self.rule.given:
                self._count(self.winners[column], "a", value)
                return float(value == pair[0])
        if self.rule.given:
            side = self.rule.read(value, column)
            if side is None:
                self._count(self.winners[column], short, value)
                raise Refused(f"{column} is {str(value)[:40]!r}, which `labels` does not name")
            return (side + 1) / 2
        self._count(self.winners[column], short, value)
        if short in TIES or self.rule.sides.get(short) == 0:
            return 0.5
        if short in BOTH_BAD:
            return None
        if short in WINNER_SIDES:
            return (WINNER_SIDES[short] + 1) / 2
        try:
            share = float(short)
        except ValueError:
            share = math.nan
        if 0 <= share <= 1:
            return share
        raise Refused(f"{column} is {str(value)[:40]!r}, which names neither of two answers")

    def _count(self, values: Counter[str], short: str, value: object) -> None:
        if short in values or len(values) < MOST_VALUES:
            values[short] += 1
            self.spelled.setdefault(short, " ".join(str(value).split())[:30])

    def check(self, path: str) -> None:
        """Stop unless the values of every column belong to one scheme, and its name does not speak against a yes.

        Raises:
            UserError: it names the column, its values with their counts, and the ways to say what they mean.
        """
        for column, values in self.labels.items():
            if self.rule.given or not _fits(values, LABEL_SCHEMES):
                reason = "which `labels` does not name" if self.rule.given else "which are no known pair of words"
                shown, ways = self._shown(values), _ways(column, values)
                raise UserError(f"{path}: {column} holds {shown}, {reason}. Say what they mean: {ways}")
        for column, values in self.winners.items():
            numbers = [float(value) for value in values if re.fullmatch(r"[\d.e-]+", value)]
            chances = bool(numbers) and any(0 < value < 1 for value in numbers) and max(numbers) <= 1
            words = set(values) - TIES - BOTH_BAD
            if self.rule.given or not (_fits(words, WINNER_SCHEMES) or (chances and len(numbers) == len(words))):
                raise UserError(
                    f"{path}: {column} holds {self._shown(values)}; it is not clear which of two answers they name. "
                    f"Say it with `labels`, such as a=VALUE,b=VALUE,tie=VALUE"
                )
        for column, units in self.units.items():
            if column in self.labels:
                shown = self._shown(self.labels[column])
                raise UserError(f"{path}: {column} holds numbers and {shown}: write one of the two")
            if len(units) > 1:
                shown = ", ".join(repr(value) for value in units.values())
                raise UserError(f"{path}: {column} gives numbers in several units ({shown}): write them in one")
        if not self.rule.stated:
            for column in (*self.labels, *self.units):
                if against := NEGATIVE & set(re.split(r"[^a-z]+", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", column).lower())):
                    raise UserError(
                        f"{path}: in the column {column} a high value or a yes may speak against an answer "
                        f"({', '.join(sorted(against))}). Say it with `labels`: invert, or as-is if it speaks for it"
                    )

    def _shown(self, values: Counter[str]) -> str:
        """The values as the file spells them, with their counts, most common first."""
        most = [f"{self.spelled[short]!r} in {count:,} rows" for short, count in values.most_common(MOST_SHOWN)]
        more = len(values) - MOST_SHOWN
        return ", ".join(most) + (f" and {more} or more other values" if more > 0 else "")


def _fits(words: Iterable[str], schemes: Sequence[frozenset[str]]) -> bool:
    return any(scheme.issuperset(words) for scheme in schemes)


def _ways(column: str, values: Counter[str]) -> str:
    """The ways to say what the values of a column of verdicts mean."""
    numbers: list[float] = []
    for value in values:
        try:
            numbers.append(float(value))
        except ValueError:
            return f"`labels` {_HOW}"
    low, high = min(numbers), max(numbers)
    middle = (low + high) / 2
    lists = f"`labels` accept={high:g},reject={low:g}" + (",ignore=VALUES" if len(numbers) > 2 else "")
    return f"`columns` score={column} if higher is better; `labels` accept>{middle:g},reject<{middle:g}; or {lists}"
