"""Parts that layouts share: a row's prompt, its verdict on one completion, its pair with scores or a margin."""

from __future__ import annotations

from typing import Any

from valence.data.formats import build
from valence.data.formats import row as names
from valence.data.formats.row import Refused, Row
from valence.data.formats.values import number, sign
from valence.data.records import Record


def prompt_of(row: Row) -> Any:
    """The row's prompt, behind its system prompt if it has one; None if it has no prompt."""
    prompt = row.take(row.first(names.PROMPT))
    turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    opening = system_of(row) if isinstance(turns, list) else []
    return [*opening, *turns] if opening else prompt


def system_of(row: Row) -> list[dict[str, str]]:
    """The row's system prompt as a list of one message; empty if the row has none or a blank one."""
    if not isinstance(row.peek("system"), str):
        return []
    system = row.take("system")
    return [{"role": "system", "content": system}] if system.strip() else []


def answer_of(row: Row, prompt: Any) -> Record | None:
    """The row's pair, or else its completion, as answers to `prompt`; None if it has neither."""
    chosen, rejected = row.first(names.CHOSEN), row.first(names.REJECTED)
    if chosen and rejected:
        return pair_of(row, prompt, row.take(chosen), row.take(rejected))
    completion = row.first(names.COMPLETION)
    return single_of(row, prompt, row.take(completion)) if completion else None


def single_of(row: Row, prompt: Any, completion: Any) -> Record:
    """One completion with its label if the row has one, else with its score, else unlabelled."""
    verdicts = {name: sign(row.take(name), name) for name in names.LABEL if row.has(name)}
    signs = {verdict for verdict in verdicts.values() if verdict}
    if len(signs) > 1:
        raise Refused(f"{' and '.join(verdicts)} contradict each other")
    key = row.first(names.SCORE)
    if signs or not key or row.peek(key) == "":
        return build.label(prompt, completion, signs.pop() if signs else 0)
    return build.score(prompt, completion, number(row.take(key), key))


def pair_of(row: Row, prompt: Any, chosen: Any, rejected: Any) -> Record:
    """Two completions with the row's scores of them or its margin."""
    scores = both(row, row.first(names.SCORE_CHOSEN), row.first(names.SCORE_REJECTED))
    margin = number(row.take("margin"), "margin") if scores is None and row.has("margin") else None
    return build.pair(prompt, chosen, rejected, scores, margin)


def both(row: Row, first: str | None, second: str | None) -> tuple[float, float] | None:
    """Two scores, or None if the row has neither."""
    there = [name for name in (first, second) if name and row.has(name)]
    if len(there) == 1:
        raise Refused(f"{there[0]} without a score of the other completion")
    return (number(row.take(first), there[0]), number(row.take(second), there[1])) if there else None
