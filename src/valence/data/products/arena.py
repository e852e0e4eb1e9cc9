"""Chatbot Arena, MT-bench and the logs of FastChat's servers.

Looked up: fschat 0.2.36 (serve/gradio_web_server.py, serve/monitor/clean_battle_data.py, llm_judge), the cards of
lmsys/chatbot_arena_conversations, lmsys/mt_bench_human_judgments and lmarena-ai/arena-human-preference-55k, -100k
and -140k.

- Battles: `winner` is model_a, model_b, tie, "tie (bothbad)" or both_bad; conversations are lists or JSON text.
- The 55k CSV: `winner_model_a`, `winner_model_b`, `winner_tie`; its texts are lists with one entry a turn.
- A server's log (DATE-conv.json, JSON lines in spite of its name): upvote and downvote are labels of the last answer;
  leftvote and rightvote are pairs. Messages before `offset` are the template's example and are dropped.
The prompt of a pair is what precedes the judged answer. `turn` says which answer was judged.

Skipped: ties, both bad, no winner, other events of the log, different earlier turns, two equal answers, an empty
answer, images, judgements by a model.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping

from valence.data.formats.row import Refused, Skipped
from valence.data.formats.values import text

NAME = "Arena"
VOTES = {"upvote": True, "downvote": False, "leftvote": 0, "rightvote": 1}
EVENTS = (*VOTES, "tievote", "bothbad_vote", "chat", "flag", "share")
WINNERS = {"model_a": 0, "model_b": 1}
ROLES = ("user", "assistant")
NO_WINNER = {"tie": "a tie", "tie (bothbad)": "both are bad", "both_bad": "both are bad", "bothbad": "both are bad"}

Turns = list[dict[str, str]]


def matches(row: Mapping[str, object]) -> bool:
    return (
        all(name in row for name in ("winner", "conversation_a", "conversation_b"))
        or all(name in row for name in ("winner_model_a", "winner_model_b", "winner_tie", "response_a", "response_b"))
        or (row.get("type") in EVENTS and ("state" in row or "states" in row) and ("model" in row or "models" in row))
    )


def rows(row: Mapping[str, object]) -> Iterator[dict[str, object] | Skipped]:
    try:
        if "conversation_a" in row:
            yield _battle(row)
        elif "winner_tie" in row:
            yield _table(row)
        else:
            yield _event(row)
    except Skipped as skipped:
        yield skipped


def _battle(row: Mapping[str, object]) -> dict[str, object]:
    judge, winner = row.get("judge"), row.get("winner")
    if isinstance(judge, list) or str(judge).startswith("gpt"):
        raise Skipped("judged by a model")
    if winner is None or str(winner) in NO_WINNER:
        raise Skipped(NO_WINNER.get(str(winner), "no winner"))
    if str(winner) not in WINNERS:
        raise Refused("winner is none of model_a, model_b, tie and both_bad")
    sides = [_judged(_turns(row.get(f"conversation_{side}")), row.get("turn")) for side in "ab"]
    who = judge if isinstance(judge, str) else row.get("judge_hash")
    return _pair(sides, WINNERS[str(winner)], [row.get("model_a"), row.get("model_b")], who)


def _table(row: Mapping[str, object]) -> dict[str, object]:
    won = [str(row.get(f"winner_{side}")) in ("1", "1.0", "True") for side in ("model_a", "model_b", "tie")]
    if sum(won) != 1 or won[2]:
        raise Skipped("a tie" if won[2] and sum(won) == 1 else "no winner")
    asked = _texts(row.get("prompt"), "prompt")
    sides = []
    for name in ("response_a", "response_b"):
        said = _texts(row.get(name), name)
        if len(said) != len(asked):
            raise Refused(f"{name} has {len(said)} turns where prompt has {len(asked)}")
        turns = [(role, each) for pair in zip(asked, said, strict=True) for role, each in zip(ROLES, pair, strict=True)]
        sides.append(_judged([_turn(role, each) for role, each in turns], None))
    return _pair(sides, won.index(True), [row.get("model_a"), row.get("model_b")], None)


def _event(row: Mapping[str, object]) -> dict[str, object]:
    kind = str(row.get("type"))
    if kind not in VOTES:
        raise Skipped({"tievote": "a tie", "bothbad_vote": "both are bad"}.get(kind, "an event that is no vote"))
    if kind in ("upvote", "downvote"):
        prompt, completion = _judged(_state(row.get("state")), None)
        return {"prompt": prompt, "completion": completion, "label": VOTES[kind], **_named(model=row.get("model"))}
    states = row.get("states")
    if not isinstance(states, list) or len(states) != 2:
        raise Refused("states is not a list of two conversations")
    names: list[object] = [state.get("model_name") if isinstance(state, Mapping) else None for state in states]
    return _pair([_judged(_state(state), None) for state in states], int(VOTES[kind]), names, None)


def _pair(sides: list[tuple[Turns, str]], best: int, models: list[object], who: object) -> dict[str, object]:
    if sides[0][0] != sides[1][0]:
        raise Skipped("the two answers follow different earlier turns")
    if sides[0][1] == sides[1][1]:
        raise Skipped("both answers are the same")
    named = _named(chosen_model=models[best], rejected_model=models[1 - best], annotator=who)
    return {"prompt": sides[0][0], "chosen": sides[best][1], "rejected": sides[1 - best][1], **named}


def _judged(turns: Turns, turn: object) -> tuple[Turns, str]:
    """(what precedes the judged answer, that answer): the answer number `turn`, or the last message."""
    answers = [place for place, each in enumerate(turns) if each["role"] == "assistant"]
    if isinstance(turn, (int, float)) and not isinstance(turn, bool):
        if turn not in range(1, len(answers) + 1):
            raise Refused(f"turn is {turn}, and the conversation has {len(answers)} answers")
        place = answers[int(turn) - 1]
    elif not answers or answers[-1] != len(turns) - 1:
        raise Refused("the conversation does not end with an answer")
    else:
        place = answers[-1]
    if not turns[place]["content"].strip():
        raise Skipped("an empty answer")
    return turns[:place], turns[place]["content"]


def _turns(value: object) -> Turns:
    """The messages of a conversation, which may be JSON text."""
    if isinstance(value, str):
        value = _parsed(value)
    if not isinstance(value, list):
        raise Refused("a conversation is not a list of messages")
    turns = []
    for each in value:
        if not isinstance(each, Mapping):
            raise Refused("a conversation has a message that is no object")
        parts = each.get("content")
        if isinstance(parts, list):
            if any(isinstance(part, Mapping) and part.get("image") for part in parts):
                raise Skipped("an image")
            parts = "".join(str(part.get("text") or "") if isinstance(part, Mapping) else "" for part in parts)
        turns.append(_turn(each.get("role"), parts))
    return turns


def _state(state: object) -> Turns:
    """The messages of a logged conversation, after the template's example. Roles follow from the position."""
    messages = state.get("messages") if isinstance(state, Mapping) else None
    offset = state.get("offset", 0) if isinstance(state, Mapping) else None
    if not isinstance(state, Mapping) or not isinstance(messages, list) or not isinstance(offset, int) or offset < 0:
        raise Refused("a state without messages and an offset")
    system = state.get("system_message", state.get("system"))
    turns = [_turn("system", system)] if isinstance(system, str) and system.strip() else []
    for place, each in enumerate(messages[offset:]):
        if not isinstance(each, list) or len(each) != 2:
            raise Refused("a message of a state is not a role and a text")
        if isinstance(each[1], list):
            raise Skipped("an image")
        turns.append(_turn(ROLES[place % 2], each[1]))
    return turns


def _turn(role: object, content: object) -> dict[str, str]:
    """One message. An answer that never came is null: it is read as empty."""
    if role not in ("system", *ROLES):
        raise Refused("a message's role is none of system, user and assistant")
    read = text("" if content is None else content, "a message")
    if not isinstance(read, str):
        raise Refused("a message's content is not text")
    return {"role": str(role), "content": read}


def _texts(value: object, what: str) -> list[object]:
    parsed = _parsed(value) if isinstance(value, str) and value.startswith("[") else value
    if not isinstance(parsed, (list, str)) or not parsed:
        raise Refused(f"{what} is not a list of texts")
    return parsed if isinstance(parsed, list) else [parsed]


def _parsed(value: str) -> object:
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        raise Refused("a conversation is text that is not JSON") from None


def _named(**columns: object) -> dict[str, object]:
    return {name: value for name, value in columns.items() if isinstance(value, str) and value}
