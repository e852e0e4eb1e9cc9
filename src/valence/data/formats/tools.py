"""The layouts of other tools, unchanged: one small function each.

Each returns a Record, or None where the row is not of its form, or raises Refused where it is but cannot be used.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from valence.data.formats import build
from valence.data.formats import row as names
from valence.data.formats.fields import both, pair_of, prompt_of, single_of, system_of
from valence.data.formats.row import Refused, Row
from valence.data.formats.values import number, sign, text
from valence.data.records import Record, Text


def hosted(row: Row) -> Record | None:
    """Hosted services' preference JSONL: input.messages, preferred_output, non_preferred_output."""
    if not row.has("preferred_output", "non_preferred_output"):
        return None
    source = row.take("input")
    if isinstance(source, dict) and source.get("tools"):
        row.aside["tools"] = source["tools"]
    return pair_of(row, source, row.take("preferred_output"), row.take("non_preferred_output"))


def halos(row: Row) -> Record | None:
    """HALOs' labelled samples: `type` says which kind."""
    match row.peek("type"):
        case "binary_feedback" | "scalar_feedback" as form:
            row.take("type")
            prompt, output = row.take(row.first(names.PROMPT)), row.take("output")
            if form == "binary_feedback":
                return build.label(prompt, output, sign(row.take("label", ""), "label"))
            return build.score(prompt, output, number(row.take("reward"), "reward"))
        case "pairwise_feedback":
            row.take("type")
            prompt, first_wins = row.take(row.first(names.PROMPT)), sign(row.take("label", ""), "label")
            if first_wins == 0:
                raise Refused("a pair without a label: which output is the better one?")
            better, worse = ("A", "B") if first_wins > 0 else ("B", "A")
            scores = both(row, f"reward_{better}", f"reward_{worse}")
            return build.pair(prompt or "", row.take(f"output_{better}"), row.take(f"output_{worse}"), scores)
    return None


def torchtune(row: Row) -> Record | None:
    """torchtune's preference rows: two whole conversations."""
    if not row.has("chosen_conversations", "rejected_conversations"):
        return None
    return pair_of(row, None, row.take("chosen_conversations"), row.take("rejected_conversations"))


def rebel(row: Row) -> Record | None:
    """REBEL's rows: response_0, response_0_reward, response_1, ..."""
    if not row.has("response_0", "response_0_reward"):
        return None
    completions: list[Any] = []
    rewards: list[Any] = []
    while row.has(f"response_{len(completions)}"):
        name = f"response_{len(completions)}"
        if not row.has(f"{name}_reward"):
            raise Refused(f"{name} has no {name}_reward")
        completions.append(row.take(name))
        rewards.append(row.take(f"{name}_reward"))
    return build.ranking(prompt_of(row), completions, rewards)


def ultrafeedback(row: Row) -> Record | None:
    """Lists of objects that hold a completion and its score or rank: UltraFeedback's raw rows, Nectar's answers."""
    key = row.first((*names.COMPLETIONS, "answers"))
    items = row.peek(key) if key else None
    if not isinstance(items, list) or not items or not all(isinstance(item, dict) for item in items):
        return None
    field = _in_all(items, (*names.COMPLETION, "text", "answer"))
    if field is None:
        return None
    row.take(key)
    scored, ranked = _in_all(items, (*names.SCORE, "fine-grained_score")), _in_all(items, ("rank",))
    scores = [item[scored] for item in items] if scored else row.take(row.first(names.SCORES))
    ranks = [item[ranked] for item in items] if ranked else row.take(row.first(names.RANKS))
    return build.ranking(prompt_of(row), [item[field] for item in items], scores, ranks)


def _in_all(items: list[Any], fields: Sequence[str]) -> str | None:
    """The first of `fields` that every object has."""
    return next((field for field in fields if all(item.get(field) is not None for item in items)), None)


def stepwise(row: Row) -> Record | None:
    """TRL's stepwise supervision, which judges steps and not answers."""
    if row.has("completions") and isinstance(row.peek("labels"), list):
        raise Refused("stepwise labels judge the steps of one answer: give one label or score to the whole answer")
    return None


def conversation(row: Row) -> Record | None:
    """ShareGPT's `conversations` and the hosted services' `messages`, with a thumb, a score, a pair or nothing."""
    key = row.first(("conversations", "messages"))
    chosen, rejected = row.first(names.CHOSEN), row.first(names.REJECTED)
    # ultrafeedback_binarized repeats the chosen conversation in `messages`: there the pair is the feedback.
    repeats = chosen is not None and isinstance(row.peek(chosen), list)
    if key is None or row.has("prompt") or repeats:
        return None
    turns = text(row.take(key), key)
    if isinstance(turns, str) or not turns:
        raise Refused(f"{key} is not a list of messages")
    opening = system_of(row) if turns[0].role != "system" else []
    prompt = [*opening, *(turn._asdict() for turn in turns)]
    if chosen and rejected:
        return pair_of(row, prompt, row.take(chosen), row.take(rejected))
    completion = row.first(names.COMPLETION)
    if completion:
        return single_of(row, prompt, row.take(completion))
    if turns[-1].role in build.ASKING and not row.first(names.FEEDBACK):
        return build.prompt_only(prompt)
    return single_of(row, None, prompt)


def alpaca(row: Row) -> Record | None:
    """LLaMA-Factory's alpaca rows: instruction, input, system and history make the prompt."""
    if not row.has("instruction") or row.has("prompt") or row.first(names.COMPLETIONS):
        return None
    if not row.first(("input", "system", "history", "output")):
        return None
    prompt = _alpaca_prompt(row)
    chosen, rejected = row.first(names.CHOSEN), row.first(names.REJECTED)
    if chosen and rejected:
        return pair_of(row, prompt, row.take(chosen), row.take(rejected))
    completion = row.first(names.COMPLETION)
    if completion:
        return single_of(row, prompt, row.take(completion))
    return None if row.first(names.FEEDBACK) else build.prompt_only(prompt)


def _alpaca_prompt(row: Row) -> Any:
    """Instruction and input as one text; with a system prompt or a history, as messages."""
    asked: Text = text(row.take("instruction"), "instruction")
    more = text(row.take("input", ""), "input")
    if not isinstance(asked, str) or not isinstance(more, str):
        raise Refused("instruction and input are not plain text")
    asked = f"{asked}\n{more}" if more else asked
    opening, history = system_of(row), row.take("history", [])
    if not opening and not history:
        return asked
    if not isinstance(history, list) or not all(isinstance(turn, list) and len(turn) == 2 for turn in history):
        raise Refused("history is not a list of [instruction, answer]")
    turns = [{"role": role, "content": said} for turn in history for role, said in zip(_TURN, turn, strict=True)]
    return [*opening, *turns, {"role": "user", "content": asked}]


_TURN = ("user", "assistant")
