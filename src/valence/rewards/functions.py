"""Reward functions: `(prompts, completions, **columns) -> list[float | None]`, TRL's signature.

If a function raises, hangs, or returns NaN or None, the rows that it failed on have no score and are counted. The other
rows keep their scores, and the run goes on. A function that gives another number of values than there are completions
on its first call is wrong: that is an error, since it cannot be known whose values they are.
"""

from __future__ import annotations

import inspect
import math
import queue
import re
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from valence.data.records import Text
from valence.errors import UserError, one_line
from valence.rewards.ensemble import Judge, RewardFn

Chat = str | Sequence[Mapping[str, str]]
"""A text, or messages with "role" and "content"."""
LARGEST = 3e38
"""The largest reward: they are stored in single precision."""
WRONG_SHAPE = "gave"
"""Begins the reason where a function gave another number of values than it should."""
PATIENCE = 3
"""Successive rows that may hang before the rest of the batch is skipped."""


class RewardFunction:
    """A reward function that cannot break a run; a `Judge`.

    Args:
        judge: the function.
        name: what reports call it; its own name by default.
        timeout: seconds that a call may take. A slower call is abandoned in its thread.
        what: what it judges, for messages.
    """

    def __init__(self, judge: Any, *, name: str = "", timeout: float = 60.0, what: str = "completions") -> None:
        self.judge, self.timeout, self.what = judge, timeout, what
        self.name = name or name_of(judge)
        self.failures = Counter[str]()
        self.calls = self.repeated = 0

    def __call__(
        self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Sequence[Any]
    ) -> list[float | None]:
        """A finite number for each completion, or None where there is none.

        Raises:
            UserError: the first call scored none of its rows, so the function itself is wrong.
        """
        self.calls += 1
        taken = self._taken(columns)
        values, why = self._ask(prompts, completions, taken)
        if why is not None and self.calls == 1 and why.startswith(WRONG_SHAPE):
            raise UserError(f"the reward {self.name} {why}")
        if values is None:
            self.repeated += 1
            values = self._one_by_one(prompts, completions, taken)
        scores = [_finite(value) for value in values]
        empty = sum(score is None for score in scores)
        if why is None and empty:
            self.failures["no finite number"] += empty
        if self.calls == 1 and completions and empty == len(scores):
            reason = why or "none of its numbers is finite"
            raise UserError(f"the reward {self.name} judged none of the first {len(scores)} {self.what}: {reason}")
        return scores

    def _taken(self, columns: Mapping[str, Any]) -> dict[str, Any]:
        """Those of the columns that the function has parameters for."""
        try:
            parameters = inspect.signature(self.judge).parameters
        except (TypeError, ValueError):
            return dict(columns)
        if any(part.kind is part.VAR_KEYWORD for part in parameters.values()):
            return dict(columns)
        return {name: value for name, value in columns.items() if name in parameters}

    def _ask(
        self, prompts: Sequence[Any], completions: Sequence[Any], columns: Mapping[str, Any]
    ) -> tuple[list[Any] | None, str | None]:
        """(its values for all completions, None), or (None, the reason of the failure)."""
        answer: queue.Queue[tuple[list[Any] | None, str | None]] = queue.Queue()

        def work() -> None:
            try:
                values = self.judge(prompts=prompts, completions=completions, **columns)
                answer.put(_as_many(values, len(completions), self.what))
            except BaseException as error:  # a user's function may raise anything, SystemExit too
                answer.put((None, f"{type(error).__name__}: {one_line(error)}"))

        threading.Thread(target=work, daemon=True, name=f"reward {self.name}").start()
        try:
            return answer.get(timeout=None if self.timeout == math.inf else self.timeout)
        except queue.Empty:
            return None, f"no answer in {self.timeout:g} s"

    def _one_by_one(
        self, prompts: Sequence[Any], completions: Sequence[Any], columns: Mapping[str, Sequence[Any]]
    ) -> list[Any]:
        values: list[Any] = []
        hung = 0
        for row in range(len(completions)):
            if hung >= PATIENCE:
                self.failures["skipped after others gave no answer"] += len(completions) - row
                return values + [None] * (len(completions) - row)
            own = {name: value[row : row + 1] for name, value in columns.items()}
            one, why = self._ask(prompts[row : row + 1], completions[row : row + 1], own)
            values.append(None if one is None else one[0])
            if why is not None:
                self.failures[why.partition(":")[0] if why.startswith(WRONG_SHAPE) else why] += 1
            elif _finite(values[-1]) is None:
                self.failures["no finite number"] += 1
            hung = hung + 1 if why is not None and why.startswith("no answer") else 0
        return values


def _as_many(values: Any, number: int, what: str) -> tuple[list[Any] | None, str | None]:
    """(the values as a list, None), or (None, what was given in place of one value for each of so many, an example)."""
    wanted = f"it must give a list with a number, or None, for each of them, such as {[0.5, 1.0, None][:number]}"
    wanted += " and so on" * (number > 3)
    try:
        found = None if isinstance(values, str | bytes | Mapping) else list(values)
    except TypeError:
        found = None
    if found is None:
        kind = type(values).__name__
        return None, f"{WRONG_SHAPE} a {kind} for {number} {what}: {one_line(repr(values), 60)}; {wanted}"
    if len(found) != number:
        shown = one_line(repr(found[:3]), 60) + " …" * (len(found) > 3)
        numbers = "1 number" if len(found) == 1 else f"{len(found)} numbers"
        return None, f"{WRONG_SHAPE} {numbers} for {number} {what}: {shown}; {wanted}"
    return found, None


def name_of(judge: Any) -> str:
    """A judge's `name`, or a function's `__name__`."""
    return judge.name if isinstance(judge, Judge) else str(getattr(judge, "__name__", type(judge).__name__))


def as_judge(judge: RewardFn, *, name: str = "", timeout: float = 60.0) -> Judge:
    """A judge as it is; any other function as a `RewardFunction`."""
    return judge if isinstance(judge, Judge) else RewardFunction(judge, name=name, timeout=timeout)


def _finite(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if abs(number) <= LARGEST else None


def as_given(text: Text) -> Chat:
    """A text of a record in the form that judges take: messages are dictionaries."""
    return text if isinstance(text, str) else [turn._asdict() for turn in text]


def text_of(completion: Chat) -> str:
    """A completion's text; of messages, their contents joined by blank lines."""
    return completion if isinstance(completion, str) else "\n\n".join(turn["content"] for turn in completion)


NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


def last_number(text: str) -> float | None:
    """The last number in a text, which may have commas between thousands."""
    numbers = NUMBER.findall(text)
    return float(numbers[-1].replace(",", "")) if numbers else None


def number_match(completions: Sequence[Chat], answer: Sequence[object], **_: object) -> list[float | None]:
    """1 if the last number of the completion and of the column `answer` (gsm8k's `#### 42`) are equal, else 0."""
    wanted = [last_number(str(right)) for right in answer]
    pairs = zip(completions, wanted, strict=True)
    return [None if number is None else float(last_number(text_of(text)) == number) for text, number in pairs]


def exact_match(completions: Sequence[Chat], answer: Sequence[object], **_: object) -> list[float | None]:
    """1 if the completion equals the column `answer`, else 0; case and outer spaces do not count."""
    pairs = zip(completions, answer, strict=True)
    return [float(text_of(text).strip().casefold() == str(right).strip().casefold()) for text, right in pairs]


def word_count(completions: Sequence[Chat], **_: object) -> list[float | None]:
    """Number of words, which spaces separate."""
    return [float(len(text_of(completion).split())) for completion in completions]


def _overlap(measure: str, /, completions: Sequence[Chat], answer: Sequence[object], **_: object) -> list[float | None]:
    """sacrebleu's sentence score against the column `answer`, 0 to 1."""
    import sacrebleu

    score = sacrebleu.sentence_chrf if measure == "chrf" else sacrebleu.sentence_bleu
    pairs = zip(completions, answer, strict=True)
    return [score(text_of(text), [str(right)]).score / 100 for text, right in pairs]


WORD = re.compile(r"\w+")


def rouge_l(text: str, reference: str) -> float | None:
    """F1 of the longest common subsequence of words, 0 to 1: twice its length over the words of both texts.

    Case and punctuation do not count, and words are not stemmed. None if the reference has no word.
    Source: Lin 2004, "ROUGE", with equal weights of precision and recall.
    """
    ours, theirs = (WORD.findall(part.casefold()) for part in (text, reference))
    if not theirs:
        return None
    longest = [0] * (len(theirs) + 1)
    for word in ours:
        before = longest
        longest = [0]
        for place, other in enumerate(theirs):
            longest.append(before[place] + 1 if word == other else max(before[place + 1], longest[place]))
    return 2 * longest[-1] / (len(ours) + len(theirs))


def rouge(completions: Sequence[Chat], answer: Sequence[object], **_: object) -> list[float | None]:
    """ROUGE-L against the column `answer`."""
    return [rouge_l(text_of(text), str(right)) for text, right in zip(completions, answer, strict=True)]


READY_REWARDS: dict[str, RewardFn] = {
    "number": number_match, "exact": exact_match, "length": word_count, "bleu": partial(_overlap, "bleu"),
    "chrf": partial(_overlap, "chrf"), "rouge": rouge,
}  # fmt: skip
"""The rewards that come with Valence, by name."""
