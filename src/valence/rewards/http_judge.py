"""A model behind an OpenAI-compatible HTTP interface as a pairwise judge.

The model is asked about every pair twice, with the positions swapped, and the two answers are averaged, so that a
preference for the first position becomes a tie. Answers are stored on disk by content, so that a rerun or a resumed run
does not ask again. If the server does not answer, requests are repeated with growing pauses; then a UserError follows.
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

from valence.errors import UserError, one_line
from valence.rewards.ensemble import NO_FAILURES
from valence.rewards.functions import Chat, text_of

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
KEY = "OPENAI_API_KEY"
CONCURRENCY = 4
"""Number of simultaneous requests."""
PATIENCE = 300.0
"""Seconds without an answer after which the run stops."""
PASSING = frozenset((408, 409, 425, 429, 500, 502, 503, 504))
"""HTTP statuses after which a request is repeated."""


def parse_verdict(answer: str) -> float | None:
    """P(A is better): 1, 0, or 1/2 for a tie; None if the answer is unclear.

    If an answer names several verdicts, only one at its end counts, after a colon or on a line of its own.
    """
    verdicts = VERDICT.findall(answer.upper() if len(answer) < 8 else answer)
    last = CLOSING.search(answer)
    named = last.group(1) if last and len(set(verdicts)) > 1 else verdicts[0] if len(set(verdicts)) == 1 else None
    return None if named is None else {"A": 1.0, "B": 0.0, "TIE": 0.5}[named]


class PairJudge:
    """P(first is better than second) of each pair, by a model that is asked over HTTP.

    The API key is that of the environment variable `KEY`. No key is sent if it is not set.

    Args:
        model: its name at the server.
        url: the address that `/chat/completions` is appended to, such as http://localhost:8000/v1.
        template: "helpful", "summary", or a text with {prompt}, {first} and {second}.
        cache: a file that stores the answers, or None.
        timeout: seconds that one answer may take.
    Raises:
        UserError: a template without one of its three parts, or a file that cannot be written.
    """

    failures, repeated = NO_FAILURES, 0

    def __init__(
        self, model: str, url: str, *, template: str = "helpful", cache: Path | None = None, timeout: float = 60.0
    ) -> None:
        self.model, self.url, self.name = model, url.rstrip("/"), model
        self.template = TEMPLATES.get(template, template)
        if not all(part in self.template for part in ("{prompt}", "{first}", "{second}")):
            names = " or ".join(TEMPLATES)
            raise UserError(
                f"the judge's template must be {names}, or a text with {{prompt}}, {{first}} and {{second}}"
            )
        self.timeout, self._key = timeout, os.environ.get(KEY)
        self._store = None if cache is None else _Store(cache)

    def __call__(self, prompts: Sequence[Chat], first: Sequence[Chat], second: Sequence[Chat]) -> list[float | None]:
        """The mean verdict of both orders, or of the one that is clear; None if neither is.

        Raises:
            UserError: the server does not answer, or rejects the request.
        """
        texts = [[text_of(part) for part in row] for row in zip(prompts, first, second, strict=True)]
        questions = [self._question(*row) for row in texts]
        questions += [self._question(prompt, two, one) for prompt, one, two in texts]
        different = list(dict.fromkeys(questions))
        with ThreadPoolExecutor(CONCURRENCY) as pool:
            answers = dict(zip(different, pool.map(self._answer, different), strict=True))
        verdicts = [parse_verdict(answers[question]) for question in questions]
        means: list[float | None] = []
        for straight, swapped in zip(verdicts[: len(texts)], verdicts[len(texts) :], strict=True):
            both = [value for value in (straight, None if swapped is None else 1 - swapped) if value is not None]
            means.append(sum(both) / len(both) if both else None)
        return means

    def _question(self, prompt: str, first: str, second: str) -> str:
        # str.format would fail on braces in a completion.
        parts = {"{prompt}": prompt, "{first}": first, "{second}": second}
        return re.sub(r"\{(prompt|first|second)\}", lambda match: parts[match.group(0)], self.template)

    def _answer(self, question: str) -> str:
        if self._store is None:
            return self._ask(question)
        name = hashlib.sha256(f"{self.model}\0{question}".encode()).hexdigest()
        answer = self._store.get(name)
        if answer is None:
            answer = self._ask(question)
            self._store.put(name, answer)
        return answer

    def _ask(self, question: str) -> str:
        import requests

        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        body = {
            "model": self.model, "messages": [{"role": "user", "content": question}], "temperature": 0.0,
            "max_tokens": 16,
        }  # fmt: skip
        pause, deadline = 0.5, time.monotonic() + PATIENCE
        while True:
            try:
                reply = requests.post(f"{self.url}/chat/completions", json=body, headers=headers, timeout=self.timeout)
                if reply.status_code == 200:
                    return str(reply.json()["choices"][0]["message"]["content"] or "")
                why = f"it answers {reply.status_code}: {one_line(reply.text)}"
                if reply.status_code not in PASSING:
                    raise UserError(f"the judge {self.model} at {self.url} rejects the request: {why}")
            except (requests.RequestException, KeyError, IndexError, TypeError) as error:
                why = f"{type(error).__name__}: {one_line(error)}"
            if time.monotonic() + pause > deadline:
                raise UserError(
                    f"the judge {self.model} at {self.url} gave no answer for {PATIENCE:g} s ({why}): start it "
                    "again and continue with `resume=True`; its answers so far are stored"
                )
            time.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(2 * pause, 30.0)


class _Store:
    """Answers on disk, which several threads and runs may use at once."""

    def __init__(self, path: Path) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._base = sqlite3.connect(path, timeout=60, isolation_level=None, check_same_thread=False)
            self._base.execute("CREATE TABLE IF NOT EXISTS answer (question TEXT PRIMARY KEY, text TEXT)")
        except (OSError, sqlite3.Error) as error:
            raise UserError(f"the judge's answers cannot be stored in {path} ({error}): give another `out`") from error
        self._lock = threading.Lock()

    def get(self, name: str) -> str | None:
        with self._lock:
            row = self._base.execute("SELECT text FROM answer WHERE question = ?", (name,)).fetchone()
        return None if row is None else row[0]

    def put(self, name: str, text: str) -> None:
        with self._lock:
            self._base.execute("INSERT OR REPLACE INTO answer VALUES (?, ?)", (name, text))
