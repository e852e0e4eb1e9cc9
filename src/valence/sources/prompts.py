"""Prompts with the other fields of their rows, and how a judge is called on completions of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from valence.data.records import Text, contents
from valence.rewards.ensemble import RewardFn
from valence.rewards.functions import as_given
from valence.rewards.judge import SelfPlay


@dataclass(frozen=True)
class EncodedPrompt:
    """A prompt as token ids and as it was read.

    Args:
        columns: the other fields of its row, for reward functions.
        given_completions: completions of the data set as token ids, judged beside those that the policy draws.
    """

    ids: list[int]
    prompt: Text
    columns: dict[str, Any] = field(default_factory=dict)
    given_completions: tuple[list[int], ...] = ()


def ask(judge: RewardFn, rows: Sequence[EncodedPrompt], completions: Sequence[Any]) -> Sequence[float | None]:
    """The score of one completion for each row. The judge gets messages where the prompt is messages."""
    names = dict.fromkeys(name for row in rows for name in row.columns if name not in ("prompts", "completions"))
    columns = {name: [row.columns.get(name) for row in rows] for name in names}
    return judge([as_given(row.prompt) for row in rows], _answers(rows, completions), **columns)


def verdicts(
    judge: Any, rows: Sequence[EncodedPrompt], first: Sequence[Any], second: Sequence[Any]
) -> list[float | None]:
    """P(first is better) of each pair, by a pairwise judge or by which score is higher; None where unknown."""
    if isinstance(judge, SelfPlay):
        prompts = [as_given(row.prompt) for row in rows]
        return judge.judge(prompts, _answers(rows, first), _answers(rows, second))
    return higher_wins(ask(judge, rows, first), ask(judge, rows, second))


def higher_wins(first: Sequence[float | None], second: Sequence[float | None]) -> list[float | None]:
    """1 where the first is higher, 0 where the second is, 1/2 for a tie; None where either is None."""
    return [
        None if a is None or b is None else 0.5 + 0.5 * ((a > b) - (a < b)) for a, b in zip(first, second, strict=True)
    ]


def _answers(rows: Sequence[EncodedPrompt], completions: Sequence[Any]) -> list[Any]:
    """Completions in the form of their prompts."""
    return [
        text if isinstance(row.prompt, str) else [{"role": "assistant", "content": text}]
        for row, text in zip(rows, completions, strict=True)
    ]


def plain_prompt(row: EncodedPrompt) -> str:
    """The prompt as one text."""
    return "\n\n".join(contents(row.prompt))
