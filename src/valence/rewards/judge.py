"""Pairwise judges: which of two completions is better, by a model over the OpenAI-compatible HTTP interface or by a
Python function; and how either becomes a reward.

A model is asked twice about every pair, positions swapped, and its answers are averaged: one that prefers what stands
first then says a tie. Answers are kept on disk by content, so that a rerun, or a run that goes on, costs nothing. A
server that does not answer is waited for, with growing pauses, and then the run stops with a clear line; nothing is
lost.
"""

from __future__ import annotations

import hashlib
import os
import random
import re
import sqlite3
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from valence.errors import UserError
from valence.feedback import preferences_to_self_play
from valence.rewards.functions import RewardFunction, text_of
from valence.types import Preferences

TEMPLATES = {
    "helpful": (
        "Two assistants answered the same request. Decide which answer serves the person better: it should be right, "
        "to the point, clear, and leave nothing needed out. Length alone is no merit.\n\n"
        "Request:\n{prompt}\n\nAnswer A:\n{first}\n\nAnswer B:\n{second}\n\n"
        "Reply with one word: A, B, or TIE if neither is better."
    ),
    "summary": (
        "Two summaries of the same text are given. Decide which one tells a reader more truly and more briefly what "
        "matters in it, without adding anything that the text does not say.\n\n"
        "Text:\n{prompt}\n\nSummary A:\n{first}\n\nSummary B:\n{second}\n\n"
        "Reply with one word: A, B, or TIE if neither is better."
    ),
}
VERDICT = re.compile(r"\b(A|B|TIE)\b")
CLOSING = re.compile(r"(?:^|[:\n])[\s*\"']*(A|B|TIE)[\s*\"'.!]*$")
PATIENCE = 300.0
"""Seconds that a server may be silent before the run is stopped."""
PASSING = frozenset((408, 409, 425, 429, 500, 502, 503, 504))
"""HTTP statuses that are worth another try."""


def parse_verdict(answer: str) -> float | None:
    """P(A is better): 1, 0, or 1/2 for a tie. An answer that names one verdict has said it; of several only one that
    stands by itself at the end, after a colon or on a line of its own, counts. None where that leaves none."""
    found = VERDICT.findall(answer.upper() if len(answer) < 8 else answer)
    last = CLOSING.search(answer)
    named = last.group(1) if last and len(set(found)) > 1 else found[0] if len(set(found)) == 1 else None
    return None if named is None else {"A": 1.0, "B": 0.0, "TIE": 0.5}[named]


class PairJudge:
    """P(first is better than second) of each pair.

    Args:
        model: its name at the server.
        url: where `/chat/completions` is, such as http://localhost:8000/v1.
        template: "helpful", "summary", or a text with {prompt}, {first} and {second}.
        cache: a file for answers, or None.
        key: name of the environment variable that holds the key; none is sent where it is not set.
        concurrency: requests at a time.
        patience: seconds that a server may be silent before the run is stopped; None takes `PATIENCE`.
        timeout: seconds that one answer may take.
    """

    def __init__(
        self, model: str, url: str, *, template: str = "helpful", cache: Path | None = None,
        key: str = "OPENAI_API_KEY", concurrency: int = 4, patience: float | None = None, timeout: float = 60.0,
    ) -> None:  # fmt: skip
        self.model, self.url = model, url.rstrip("/")
        self.template = TEMPLATES.get(template, template)
        for part in ("{prompt}", "{first}", "{second}"):
            if part not in self.template:
                names = " or ".join(TEMPLATES)
                raise UserError(f"the judge's template is {names}, or a text with {{prompt}}, {{first}} and {{second}}")
        self.concurrency, self.timeout = concurrency, timeout
        self.patience = PATIENCE if patience is None else patience
        self._key = os.environ.get(key)
        self._store = None if cache is None else _Store(cache)
        self.asked = self.remembered = self.unclear = 0
        self._counting = threading.Lock()

    def __call__(self, prompts: Sequence[Any], first: Sequence[Any], second: Sequence[Any]) -> list[float | None]:
        """The mean of both orders, or of the one that was clear; None where neither was.

        Raises:
            UserError: the server does not answer, or refuses.
        """
        texts = [[text_of(part) if not isinstance(part, str) else part for part in row]
                 for row in zip(prompts, first, second, strict=True)]  # fmt: skip
        questions = [self._question(*row) for row in texts]
        questions += [self._question(prompt, two, one) for prompt, one, two in texts]
        different = list(dict.fromkeys(questions))
        with ThreadPoolExecutor(self.concurrency) as pool:
            answers = dict(zip(different, pool.map(self._answer, different), strict=True))
        verdicts = [parse_verdict(answers[question]) for question in questions]
        self.unclear += sum(verdict is None for verdict in verdicts)
        found: list[float | None] = []
        for straight, turned in zip(verdicts[: len(texts)], verdicts[len(texts) :], strict=True):
            both = [value for value in (straight, None if turned is None else 1 - turned) if value is not None]
            found.append(sum(both) / len(both) if both else None)
        return found

    def _question(self, prompt: str, first: str, second: str) -> str:
        # Not str.format: completions may hold braces.
        parts = {"{prompt}": prompt, "{first}": first, "{second}": second}
        return re.sub(r"\{(prompt|first|second)\}", lambda found: parts[found.group(0)], self.template)

    def _answer(self, question: str) -> str:
        name = hashlib.sha256(f"{self.model}\0{question}".encode()).hexdigest()
        known = None if self._store is None else self._store.get(name)
        if known is not None:
            with self._counting:
                self.remembered += 1
            return known
        answer = self._ask(question)
        with self._counting:
            self.asked += 1
        if self._store is not None:
            self._store.put(name, answer)
        return answer

    def _ask(self, question: str) -> str:
        import requests

        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        body = {
            "model": self.model, "messages": [{"role": "user", "content": question}], "temperature": 0.0,
            "max_tokens": 16,
        }  # fmt: skip
        pause, deadline = 0.5, time.monotonic() + self.patience
        while True:
            try:
                reply = requests.post(f"{self.url}/chat/completions", json=body, headers=headers, timeout=self.timeout)
                if reply.status_code == 200:
                    return str(reply.json()["choices"][0]["message"]["content"] or "")
                why = f"it answers {reply.status_code}: {' '.join(reply.text.split())[:200]}"
                if reply.status_code not in PASSING:
                    raise UserError(f"the judge {self.model} at {self.url} refuses: {why}")
            except (requests.RequestException, KeyError, IndexError, TypeError) as error:
                why = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            if time.monotonic() + pause > deadline:
                raise UserError(
                    f"the judge {self.model} at {self.url} gave no answer for {self.patience:g} s ({why}): start it "
                    "again and go on with --resume; what it said so far is kept"
                )
            time.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(2 * pause, 30.0)


class _Store:
    """Answers on disk; several threads and runs may use it."""

    def __init__(self, path: Path) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._base = sqlite3.connect(path, timeout=60, isolation_level=None, check_same_thread=False)
            self._base.execute("CREATE TABLE IF NOT EXISTS answer (question TEXT PRIMARY KEY, text TEXT)")
        except (OSError, sqlite3.Error) as error:
            raise UserError(f"the judge's answers cannot be kept in {path} ({error}): give another folder") from error
        self._lock = threading.Lock()

    def get(self, name: str) -> str | None:
        with self._lock:
            row = self._base.execute("SELECT text FROM answer WHERE question = ?", (name,)).fetchone()
        return None if row is None else row[0]

    def put(self, name: str, text: str) -> None:
        with self._lock:
            self._base.execute("INSERT OR REPLACE INTO answer VALUES (?, ?)", (name, text))


class PairFunction:
    """A Python function `(prompts, first, second) -> list of P(first is better), or None` that cannot break a run.

    What fails, hangs or is no probability costs the pairs that it failed on, counted in `failures`, as for a
    `RewardFunction`.
    """

    def __init__(self, function: Any, *, name: str = "", timeout: float = 60.0, what: str = "completions") -> None:
        def judge(prompts: Sequence[Any], completions: Sequence[Any], second: Sequence[Any]) -> list[Any]:
            found = list(function(prompts, completions, second))
            for value in found:
                if value is not None and not 0 <= value <= 1:
                    raise ValueError(f"{value} is no probability that the first is better")
            return found

        name = name or getattr(function, "__name__", "pairwise")
        self._safe = RewardFunction(judge, name=name, timeout=timeout, what=what)

    @property
    def failures(self) -> dict[str, int]:
        """Pairs without a verdict, by why."""
        return self._safe.failures

    def __call__(self, prompts: Sequence[Any], first: Sequence[Any], second: Sequence[Any]) -> list[float | None]:
        """Raises UserError where the first call gave a verdict on none of its pairs."""
        return self._safe(prompts, first, second=second) if prompts else []


class SelfPlay:
    """A pairwise judge as a reward: how each completion fares against the others of its prompt, in [-1, 1].

    Completions of one prompt stand one after another, as `valence.sources.online` gives them.
    """

    def __init__(self, judge: Any, *, name: str = "judge") -> None:
        self.judge, self.name, self.missing = judge, name, 0

    @property
    def failures(self) -> dict[str, int]:
        """Completions without a verdict, with what the judge itself says of pairs."""
        if not self.missing:
            return {}
        pairs = [f"{count} pairs: {why}" for why, count in getattr(self.judge, "failures", {}).items()]
        return {"; ".join(["no clear verdict", *pairs]): self.missing}

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **_: Any) -> list[float | None]:
        groups: list[list[int]] = []
        for place, prompt in enumerate(prompts):
            if groups and prompts[groups[-1][0]] == prompt:
                groups[-1].append(place)
            else:
                groups.append([place])
        pairs = [(i, j) for group in groups for at, i in enumerate(group) for j in group[at + 1 :]]
        verdicts = self.judge(
            [prompts[i] for i, _ in pairs], [completions[i] for i, _ in pairs], [completions[j] for _, j in pairs]
        )
        known = {pair: verdict for pair, verdict in zip(pairs, verdicts, strict=True) if verdict is not None}
        found: list[float | None] = [None] * len(prompts)
        for group in groups:
            for place, value in zip(group, _fares(group, known), strict=True):
                found[place] = value
        self.missing += sum(value is None for value in found)
        return found


def _fares(group: Sequence[int], known: dict[tuple[int, int], float]) -> list[float | None]:
    size = len(group)
    win, observed = torch.zeros(1, size, size), torch.zeros(1, size, size, dtype=torch.bool)
    for a, i in enumerate(group):
        for b, j in enumerate(group):
            if (i, j) in known:
                win[0, a, b], observed[0, a, b] = known[i, j], True
    told = preferences_to_self_play(Preferences(win, observed, torch.ones(1, size, dtype=torch.bool)))
    return [value if there else None
            for value, there in zip(told.value[0].tolist(), told.present[0].tolist(), strict=True)]  # fmt: skip
