"""Open WebUI: the feedback export of Admin > Evaluations.

Read from the release wheel open-webui 0.12.4: `models/feedbacks.py`, `routers/evaluations.py`, `models/chats.py`, and
the web client in the same wheel.

Shapes: the JSON export, one feedback with the whole chat in `snapshot`. The CSV export and the API's list of
feedbacks hold neither prompt nor answer: they are recognised and refused.

`data.rating` 1 is a thumb up and -1 a thumb down; the number from 1 to 10 of the dialog, `data.details.rating`,
becomes the column `details_rating`. The prompt is the branch of the chat that leads to the voted message, after the
system prompt of the chat or else of the user. Reasoning and tool blocks, which the client hides, are cut from every
answer.

Skipped: no rating (a remark alone), 0 (a draw), an unfinished answer, an answer that the user or a filter has edited,
and a chat with attached files, whose content is not exported. An arena vote is a vote on one answer: the product
counts it as a win against each sibling, but nobody judged the sibling.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from valence.data.formats.row import Refused, Skipped
from valence.data.formats.values import brief

NAME = "Open WebUI"

VOTES = {"1": True, "-1": False}
ALWAYS = frozenset(("id", "user_id", "model_id", "created_at", "updated_at"))
"""The columns of the CSV export that are never empty."""
TABLE = ALWAYS | {"chat_id", "sibling_model_ids", "rating", "reason", "comment"}
HIDDEN = re.compile(r'<details type="(?:reasoning|tool_calls|code_interpreter)".*?</details>\s*', re.DOTALL)
UNFINISHED = "the answer is unfinished"


def matches(row: Mapping[str, object]) -> bool:
    """Whether a row is a feedback of Open WebUI."""
    if row.get("type") == "rating" and "data" in row and "meta" in row:
        return "snapshot" in row or "user_id" in row
    return ALWAYS <= row.keys() <= TABLE


def rows(row: Mapping[str, object]) -> Iterator[dict[str, object] | Skipped]:
    """The vote of one feedback."""
    if "data" not in row:
        raise Refused("Open WebUI's CSV has neither prompt nor answer: export the feedback as JSON")
    data, meta = _object(row["data"]), _object(row.get("meta"))
    rating = data.get("rating")
    if rating is None or rating == "":
        yield Skipped("no rating")
    elif isinstance(rating, bool) or not isinstance(rating, (int, float, str)):
        raise Refused(f"data.rating is {brief(rating)}, not 1 or -1")
    elif (vote := str(rating).strip().removesuffix(".0")) == "0":
        yield Skipped("a tie")
    elif vote not in VOTES:
        raise Refused(f"data.rating is {brief(rating)}, not 1 or -1")
    else:
        found = _conversation(row, meta)
        yield found if isinstance(found, Skipped) else {**found, "label": VOTES[vote], **_columns(row, data, meta)}


def _conversation(row: Mapping[str, object], meta: Mapping[str, object]) -> dict[str, object] | Skipped:
    """The voted answer and the messages before it, or why there is none."""
    chat = _object(_object(_object(row.get("snapshot")).get("chat")).get("chat"))
    messages = _object(_object(chat.get("history")).get("messages"))
    if not messages:
        raise Refused("no conversation in `snapshot`")
    answer = _message(messages, meta.get("message_id"))
    if answer.get("role") != "assistant":
        raise Refused("the voted message is not an answer")
    completion = _text(answer)
    if answer.get("done") is False or answer.get("error") or not completion or completion.startswith("<details type="):
        return Skipped(UNFINISHED)
    if "originalContent" in answer:
        return Skipped("the answer was edited")
    prompt: list[dict[str, str]] = []
    seen: set[object] = set()
    parent = answer.get("parentId")
    while parent is not None:
        message = _message(messages, parent)
        role = message.get("role")
        if parent in seen or not isinstance(role, str):
            raise Refused("the messages before the answer are damaged")
        if message.get("files"):
            return Skipped("the conversation has attached files, which are not exported")
        seen.add(parent)
        prompt.append({"role": role, "content": _text(message)})
        parent = message.get("parentId")
    if not prompt:
        raise Refused("no message before the voted answer")
    systems = (_object(chat.get("params")).get("system"), chat.get("system"))
    system = next((text for text in systems if isinstance(text, str) and text.strip()), None)
    if system is not None:
        prompt.append({"role": "system", "content": system})
    return {"prompt": prompt[::-1], "completion": completion}


def _columns(row: Mapping[str, object], data: Mapping[str, object], meta: Mapping[str, object]) -> dict[str, object]:
    """What else is known of the vote."""
    known = {
        "annotator": row.get("user_id"),
        "model": data.get("model_id"),
        "sibling_models": data.get("sibling_model_ids"),
        "reason": data.get("reason"),
        "comment": data.get("comment"),
        "details_rating": _object(data.get("details")).get("rating"),
        "arena": True if meta.get("arena") is True else None,
    }
    return {name: value for name, value in known.items() if value is not None and value != ""}


def _message(messages: Mapping[str, object], name: object) -> Mapping[str, object]:
    """The message with this id."""
    found = messages.get(name) if isinstance(name, str) else None
    if not isinstance(found, Mapping):
        raise Refused("the voted message, or one before it, is not in its conversation")
    return found


def _text(message: Mapping[str, object]) -> str:
    """What the user saw of a message."""
    content = message.get("content")
    if not isinstance(content, str):
        raise Refused("a message without text in the conversation")
    return HIDDEN.sub("", content).strip() if message.get("role") == "assistant" else content


def _object(value: object) -> Mapping[str, object]:
    """The value if it is an object, else an empty one."""
    return value if isinstance(value, Mapping) else {}
