"""Reward functions: `(prompts, completions, **columns) -> list[float | None]`, TRL's signature.

A function that raises, hangs, or gives NaN, None or too few numbers costs the rows that it failed on, with a count, and
not the run: what it says of the others is kept.
"""

from __future__ import annotations

import inspect
import math
import queue
import re
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from valence.errors import UserError
from valence.rewards.ensemble import Judge

LARGEST = 3e38
"""Rewards are single precision."""
PATIENCE = 3
"""Rows in a row that may hang before the rest of a batch is given up."""


class RewardFunction:
    """A judge that cannot break a run.

    Args:
        judge: the function.
        name: to say what failed.
        timeout: seconds that a call may take; a call that takes longer is left behind in its thread.
        what: what it judges, for messages.

    `failures` counts rows without a number by why; `repeated` counts the batches that failed as a whole and were asked
    for again row by row.
    """

    def __init__(self, judge: Any, *, name: str = "", timeout: float = 60.0, what: str = "completions") -> None:
        self.judge, self.timeout, self.what = judge, timeout, what
        self.name = name or getattr(judge, "__name__", type(judge).__name__)
        self.failures: dict[str, int] = {}
        self.calls = self.repeated = 0

    def __call__(
        self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Sequence[Any]
    ) -> list[float | None]:
        """A finite number for each completion, or None where there is none.

        Raises:
            UserError: the first call gave a number for none of its rows: the function is wrong, not a row.
        """
        self.calls += 1
        taken = self._taken(columns)
        given, why = self._ask(prompts, completions, taken)
        if given is None:
            self.repeated += 1
            given = self._one_by_one(prompts, completions, taken)
        found = [_finite(value) for value in given]
        empty = sum(value is None for value in found)
        if why is None and empty:
            self._count("no finite number", empty)
        if self.calls == 1 and completions and empty == len(found):
            reason = why or "none of its numbers is finite"
            raise UserError(f"the reward {self.name} judged none of the first {len(found)} {self.what}: {reason}")
        return found

    def _taken(self, columns: Mapping[str, Any]) -> dict[str, Any]:
        """The columns that the function takes."""
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
        """(what it says of all of them, None), or (None, why not)."""
        answer: queue.Queue[tuple[Any, str | None]] = queue.Queue()

        def work() -> None:
            try:
                answer.put((list(self.judge(prompts=prompts, completions=completions, **columns)), None))
            except BaseException as error:  # a user's function may fail in any way, or leave
                answer.put((None, f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"))

        threading.Thread(target=work, daemon=True, name=f"reward {self.name}").start()
        try:
            given, why = answer.get(timeout=None if self.timeout == math.inf else self.timeout)
        except queue.Empty:
            return None, f"no answer in {self.timeout:g} s"
        if given is not None and len(given) != len(completions):
            return None, f"{len(given)} numbers for {len(completions)} {self.what}"
        return given, why

    def _one_by_one(
        self, prompts: Sequence[Any], completions: Sequence[Any], columns: Mapping[str, Sequence[Any]]
    ) -> list[Any]:
        found: list[Any] = []
        hung = 0
        for row in range(len(completions)):
            if hung >= PATIENCE:
                self._count("not asked after others gave no answer", len(completions) - row)
                return found + [None] * (len(completions) - row)
            own = {name: value[row : row + 1] for name, value in columns.items()}
            given, why = self._ask(prompts[row : row + 1], completions[row : row + 1], own)
            found.append(None if given is None else given[0])
            if why is not None:
                self._count(why, 1)
            elif _finite(found[-1]) is None:
                self._count("no finite number", 1)
            hung = hung + 1 if why is not None and why.startswith("no answer") else 0
        return found

    def _count(self, why: str, rows: int) -> None:
        self.failures[why] = self.failures.get(why, 0) + rows


def _finite(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if abs(number) <= LARGEST else None


def text_of(completion: Any) -> str:
    """A completion's text, whether it is plain or messages."""
    return completion if isinstance(completion, str) else "\n\n".join(turn["content"] for turn in completion)


NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


def last_number(text: str) -> float | None:
    """The last number in a text, commas in thousands allowed."""
    found = NUMBER.findall(text)
    return float(found[-1].replace(",", "")) if found else None


def number_match(completions: Sequence[Any], answer: Sequence[Any], **_: Any) -> list[float | None]:
    """1 where the completion's last number is the answer's last number (gsm8k's `#### 42`), else 0; column `answer`."""
    found: list[float | None] = []
    for completion, right in zip(completions, answer, strict=True):
        wanted = last_number(str(right))
        found.append(None if wanted is None else float(last_number(text_of(completion)) == wanted))
    return found


def exact_match(completions: Sequence[Any], answer: Sequence[Any], **_: Any) -> list[float | None]:
    """1 where the completion is the answer, spaces at the ends and letters' case apart, else 0; column `answer`."""
    pairs = zip(completions, answer, strict=True)
    return [float(text_of(given).strip().casefold() == str(right).strip().casefold()) for given, right in pairs]


def word_count(completions: Sequence[Any], **_: Any) -> list[float | None]:
    """Words, parted by spaces."""
    return [float(len(text_of(completion).split())) for completion in completions]


def _overlap(measure: str) -> Judge:
    """sacrebleu's sentence score against the column `answer`, 0 to 1."""

    def judge(completions: Sequence[Any], answer: Sequence[Any], **_: Any) -> list[float | None]:
        import sacrebleu

        score = sacrebleu.sentence_chrf if measure == "chrf" else sacrebleu.sentence_bleu
        pairs = zip(completions, answer, strict=True)
        return [score(text_of(given), [str(right)]).score / 100 for given, right in pairs]

    return judge


WORD = re.compile(r"\w+")


def rouge_l(text: str, reference: str) -> float | None:
    """F1 of the longest common subsequence of words: twice its length over both texts' words, 0 to 1; case and
    punctuation apart, words not stemmed. None where the reference has no word.

    Source: Lin 2004, "ROUGE", with precision and recall weighed alike.
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


def rouge(completions: Sequence[Any], answer: Sequence[Any], **_: Any) -> list[float | None]:
    """ROUGE-L against the column `answer`."""
    return [rouge_l(text_of(given), str(right)) for given, right in zip(completions, answer, strict=True)]


def ready_rewards() -> dict[str, Judge]:
    """Name -> function."""
    return {
        "number": number_match, "exact": exact_match, "length": word_count, "bleu": _overlap("bleu"),
        "chrf": _overlap("chrf"), "rouge": rouge,
    }  # fmt: skip
