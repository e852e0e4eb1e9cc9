"""Gradio: the logs that `ChatInterface` and `Interface` write when an answer is flagged.

Read from the wheel gradio 6.31.0: `flagging.py` (ChatCSVLogger, CSVLogger, ClassicCSVLogger), `chat_interface.py`,
`components/chatbot.py`, `utils.py`; gradio-app/gradio `js/chatbot/shared/utils.ts`; PR 9166 (5.0).

Shapes: `.gradio/flagged/log.csv` of a ChatInterface, whose header names five columns (conversation, index, value,
flag, timestamp) and whose rows hold four cells, the vote in the third: `repair` names the cells by position.
Conversations of Gradio 6 (parts), 5 (text) and before (pairs of user and bot). And `dataset1.csv` or `log.csv` of an
Interface: its columns are the author's, so prompt and completion must be named; `flag` becomes the label.

The vote's word is the label as written: Like, Dislike or a word of the app's author. Messages with a title are
thoughts and tool steps: they are left out. The apostrophe that guards a cell against spreadsheets is taken off.

Skipped: a withdrawn vote, and with `group` also the vote that it, or a later vote on the same answer, replaces;
files.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

from valence.data.formats.row import Refused, Skipped
from valence.data.formats.values import brief

NAME = "Gradio"

HEADER = ("conversation", "index", "value", "flag", "timestamp")
CELLS = ("conversation", "index", "flag", "timestamp")
WITHDRAWN = "a vote that was withdrawn"
REPLACED = "a vote that a later one on the same answer replaces"
TIME = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{1,6}")
GUARDED = re.compile(r"'(?=[=+\-@\t\n]|.*,[=+\-@\t\n])", re.DOTALL)


def repair(header: Sequence[str], cells: Sequence[str]) -> dict[str, object] | None:
    """The cells of a chat log's row by their names, or None if this is not the header with one name too many."""
    named = tuple(header) == HEADER and len(cells) == len(CELLS)
    return dict(zip(CELLS, cells, strict=True)) if named else None


def matches(row: Mapping[str, object]) -> bool:
    """Whether a row is of a log of Gradio."""
    if _is_chat(row) and "timestamp" in row:
        return row.keys() <= {*HEADER}
    names, time = list(row), row.get("timestamp")
    ends = names[-2:] == ["flag", "timestamp"] or names[-3:] == ["flag", "username", "timestamp"]
    return ends and isinstance(time, str) and TIME.fullmatch(time) is not None


def rows(row: Mapping[str, object]) -> Iterator[dict[str, object] | Skipped]:
    """The vote in a row of a chat log, or the columns of an Interface with the flag as label."""
    if not _is_chat(row):
        yield _interface(row)
        return
    flag = row.get("flag")
    if flag is not None and not isinstance(flag, str):
        raise Refused(f"flag is {brief(flag)}, not a word")
    found = _voted(row)
    if isinstance(found, dict) and flag:
        found["label"] = flag
    yield found if flag else Skipped(WITHDRAWN)


def group(numbered: Iterable[tuple[int, Mapping[str, object]]]) -> Iterator[tuple[int, dict[str, object] | Exception]]:
    """The votes of a whole chat log, (line, row) in the file's order: of the votes on one answer the last counts.

    Every row gives one outcome, which may be Skipped or Refused.
    """
    last: dict[str, int] = {}
    outcomes: list[tuple[int, str, dict[str, object] | Exception]] = []
    for line, row in numbered:
        key = ""
        try:
            voted = _voted(row) if _is_chat(row) else None
            key = json.dumps([voted["prompt"], voted["completion"]]) if isinstance(voted, dict) else ""
            outcome: dict[str, object] | Exception = next(rows(row))
        except Refused as reason:
            outcome = reason
        if key:
            last[key] = len(outcomes)
        outcomes.append((line, key, outcome))
    for place, (line, key, outcome) in enumerate(outcomes):
        if key and last[key] > place:
            withdrawn = isinstance(outcomes[last[key]][2], Skipped)
            outcome = Skipped(WITHDRAWN if withdrawn else REPLACED)
        yield line, outcome


def _is_chat(row: Mapping[str, object]) -> bool:
    return "conversation" in row and "index" in row


def _voted(row: Mapping[str, object]) -> dict[str, object] | Skipped:
    """The voted answer of a chat and the messages before it."""
    chat, index = _parsed(row["conversation"]), _parsed(row["index"])
    if not isinstance(chat, list):
        raise Refused("the conversation is not JSON")
    if isinstance(index, list):
        chat, place = _flat(chat), _pair_place(index)
    else:
        place = index
    if isinstance(place, bool) or not isinstance(place, int) or not 0 <= place < len(chat):
        raise Refused(f"no message at the index {brief(index)}")
    turns = [each for each in chat if isinstance(each, Mapping)]
    if len(turns) < len(chat):
        raise Refused("the conversation holds something else than messages")
    if turns[place].get("role") != "assistant":
        raise Refused("the voted message is not an answer")
    end = next((after for after in range(place, len(turns)) if turns[after].get("role") != "assistant"), len(turns))
    texts = [_text(turn) for turn in turns[:end]]
    if any(text is None for text in texts):
        return Skipped("a file or component, not text")
    completion = "\n\n".join(text for text in texts[place:] if text)
    if not completion.strip():
        raise Refused("no answer at the index of the vote")
    before = [
        {"role": turn.get("role"), "content": text} for turn, text in zip(turns, texts[:place], strict=False) if text
    ]
    return {"prompt": before, "completion": completion}


def _text(turn: Mapping[str, object]) -> str | None:
    """The text of a message, empty for thoughts and tool steps, which have a title; None if it is no text."""
    content, metadata = turn.get("content"), turn.get("metadata")
    if turn.get("role") not in ("system", "user", "assistant"):
        raise Refused(f"a message of the role {brief(turn.get('role'))}")
    if content is None or (isinstance(metadata, Mapping) and metadata.get("title")):
        return ""
    if isinstance(content, list):
        parts = [part.get("text") for part in content if isinstance(part, Mapping)]
        texts = [part for part in parts if isinstance(part, str)]
        return "".join(texts) if len(texts) == len(content) else None
    return content if isinstance(content, str) else None


def _flat(chat: Sequence[object]) -> list[object]:
    """Pairs of user and bot as messages, two a pair."""
    pairs = [pair if isinstance(pair, list) and len(pair) == 2 else [None, None] for pair in chat]
    turns = [[("user", pair[0]), ("assistant", pair[1])] for pair in pairs]
    return [{"role": role, "content": content} for pair in turns for role, content in pair]


def _pair_place(index: Sequence[object]) -> object:
    """The place in `_flat` of a turn and its side."""
    if len(index) == 2 and all(isinstance(part, int) and not isinstance(part, bool) and part >= 0 for part in index):
        turn, side = index
        return 2 * turn + side if isinstance(turn, int) and side in (0, 1) and isinstance(side, int) else None
    return None


def _interface(row: Mapping[str, object]) -> dict[str, object]:
    """An Interface's columns, without the guard against spreadsheets."""
    found = {name: GUARDED.sub("", value, count=1) if isinstance(value, str) else value for name, value in row.items()}
    flag, who = found.pop("flag", None), found.pop("username", None)
    found.pop("timestamp", None)
    if flag is not None:
        found["flag" if "label" in found else "label"] = flag
    return found if who is None else {**found, "annotator": who}


def _parsed(value: object) -> object:
    """The JSON in a cell, or the value itself if it is none."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value.removeprefix("'"))
    except (ValueError, RecursionError):
        return value
