"""The layouts of other tools: one small function each, with the contract of `valence.data.formats.layouts`."""

from __future__ import annotations

from collections.abc import Sequence

from valence.data.formats import build
from valence.data.formats import row as names
from valence.data.formats.row import Refused, Row
from valence.data.formats.values import number, text
from valence.data.records import Record, Text


def hosted(row: Row) -> Record | None:
    """Hosted services' preference JSONL: input.messages, preferred_output, non_preferred_output."""
    if not row.has("preferred_output", "non_preferred_output"):
        return None
    source = row.take("input")
    if isinstance(source, dict) and source.get("tools"):
        row.aside["tools"] = source["tools"]
    return build.pair_of(row, source, row.take("preferred_output"), row.take("non_preferred_output"))


def halos(row: Row) -> Record | None:
    """HALOs' labelled samples, whose kind stands in `type`."""
    form = row.peek("type")
    if form not in ("binary_feedback", "scalar_feedback", "pairwise_feedback"):
        return None
    row.take("type")
    prompt = row.take(row.first(names.PROMPT))
    if form == "scalar_feedback":
        return build.score(prompt, row.take("output"), number(row.take("reward"), "reward"))
    verdict = row.verdict("label")
    if form == "binary_feedback":
        return build.label(prompt, row.take("output"), verdict)
    if verdict == 0:
        raise Refused("a pair without a label: give the better output in `label`")
    better, worse = ("A", "B") if verdict > 0 else ("B", "A")
    scores = build.both(row, f"reward_{better}", f"reward_{worse}")
    return build.pair(prompt or "", row.take(f"output_{better}"), row.take(f"output_{worse}"), scores)


def torchtune(row: Row) -> Record | None:
    """torchtune's preference rows: two whole conversations."""
    if not row.has("chosen_conversations", "rejected_conversations"):
        return None
    return build.pair_of(row, None, row.take("chosen_conversations"), row.take("rejected_conversations"))


def rebel(row: Row) -> Record | None:
    """REBEL's rows: response_0, response_0_reward, response_1, ..."""
    if not row.has("response_0", "response_0_reward"):
        return None
    completions: list[object] = []
    rewards: list[object] = []
    while row.has(f"response_{len(completions)}"):
        name = f"response_{len(completions)}"
        if not row.has(f"{name}_reward"):
            raise Refused(f"{name} has no {name}_reward")
        completions.append(row.take(name))
        rewards.append(row.take(f"{name}_reward"))
    return build.ranking(build.prompt_of(row), completions, rewards)


def ultrafeedback(row: Row) -> Record | None:
    """Lists of objects with a completion and its score or rank, as in UltraFeedback's raw rows and in Nectar."""
    key = row.first((*names.COMPLETIONS, "answers"))
    items = row.peek(key) if key else None
    if not isinstance(items, list) or not items or not all(isinstance(item, dict) for item in items):
        return None

    def in_all(fields: Sequence[str]) -> str | None:
        """The first of `fields` that every object has."""
        return next((field for field in fields if all(item.get(field) is not None for item in items)), None)

    field = in_all((*names.COMPLETION, "text", "answer"))
    if field is None:
        return None
    row.take(key)
    scored, ranked = in_all((*names.SCORE, "fine-grained_score")), in_all(("rank",))
    scores = [item[scored] for item in items] if scored else row.take(row.first(names.SCORES))
    ranks = [item[ranked] for item in items] if ranked else row.take(row.first(names.RANKS))
    return build.ranking(build.prompt_of(row), [item[field] for item in items], scores, ranks)


def stepwise(row: Row) -> Record | None:
    """TRL's stepwise supervision, which labels the steps of an answer; always refused."""
    if row.has("completions") and isinstance(row.peek("labels"), list):
        raise Refused("the labels are of single steps: give one label or score for the whole answer")
    return None


def conversation(row: Row) -> Record | None:
    """ShareGPT's `conversations` and the hosted services' `messages`, with a label, a score, a pair or nothing."""
    key, chosen = row.first(("conversations", "messages")), row.first(names.CHOSEN)
    # ultrafeedback_binarized repeats the chosen conversation in `messages`: its pair is the feedback.
    repeats = chosen is not None and isinstance(row.peek(chosen), list)
    if key is None or row.has("prompt") or repeats:
        return None
    turns = text(row.take(key), key)
    if isinstance(turns, str) or not turns:
        raise Refused(f"{key} is not a list of messages")
    opening = build.system_of(row) if turns[0].role != "system" else []
    prompt = [*opening, *(turn._asdict() for turn in turns)]
    answer = build.answer_of(row, prompt)
    if answer is not None:
        return answer
    if turns[-1].role in build.ASKING and not row.first(names.FEEDBACK):
        return build.prompt_only(prompt)
    return build.single_of(row, None, prompt)


def alpaca(row: Row) -> Record | None:
    """LLaMA-Factory's alpaca rows, whose prompt is made of instruction, input, system and history."""
    if not row.has("instruction") or row.has("prompt") or row.first(names.COMPLETIONS):
        return None
    if not row.first(("input", "system", "history", "output")):
        return None
    prompt = _alpaca_prompt(row)
    answer = build.answer_of(row, prompt)
    return answer if answer is not None or row.first(names.FEEDBACK) else build.prompt_only(prompt)


def _alpaca_prompt(row: Row) -> object:
    """Instruction and input as one text, or as messages if there is a system prompt or a history."""
    asked: Text = text(row.take("instruction"), "instruction")
    more = text(row.take("input", ""), "input")
    if not isinstance(asked, str) or not isinstance(more, str):
        raise Refused("instruction and input are not plain text")
    asked = f"{asked}\n{more}" if more else asked
    opening, history = build.system_of(row), row.take("history", [])
    if not opening and not history:
        return asked
    if not isinstance(history, list) or not all(isinstance(turn, list) and len(turn) == 2 for turn in history):
        raise Refused("history is not a list of [instruction, answer]")
    roles = ("user", "assistant")
    turns = [{"role": role, "content": text} for turn in history for role, text in zip(roles, turn, strict=True)]
    return [*opening, *turns, {"role": "user", "content": asked}]
