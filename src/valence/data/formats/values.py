"""The values of single fields: numbers, labels, text and messages."""

from __future__ import annotations

import math
from collections.abc import Mapping

from valence.data.formats.row import Refused
from valence.data.records import Message, Text, contents

UP = frozenset(("1", "+1", "true", "t", "yes", "y", "up", "accept", "accepted", "good", "like", "desirable", "👍"))
DOWN = frozenset(
    ("0", "-1", "false", "f", "no", "n", "down", "reject", "rejected", "bad", "dislike", "undesirable", "👎")
)
NEITHER = frozenset(("", "none", "null", "unlabelled", "unlabeled", "unknown"))

ROLES = {
    **dict.fromkeys(("human", "prompter"), "user"),
    **dict.fromkeys(("gpt", "bot", "chatgpt", "model", "function_call"), "assistant"),
    **dict.fromkeys(("observation", "function_response"), "tool"),
}
KINDS = {bool: "a boolean", int: "a number", float: "a number", str: "text", list: "a list", dict: "an object"}


def kind(value: object) -> str:
    """The kind of a value, in words for a message."""
    return KINDS.get(type(value), type(value).__name__)


def brief(value: object) -> str:
    """A value, shortened for a one-line message."""
    shown = ascii(value) if isinstance(value, (str, int, float)) else kind(value)
    return shown if len(shown) <= 40 else shown[:37] + "..."


def number(value: object, what: str) -> float:
    """A finite number, also if it is spelled as text, as in CSV.

    Raises:
        Refused: a boolean, another type, NaN or infinity.
    """
    if value is None:
        raise Refused(f"{what} is missing")
    if isinstance(value, bool):
        raise Refused(f"{what} is {brief(value)}: a boolean is a label, not a score")
    if not isinstance(value, (int, float, str)):
        raise Refused(f"{what} is {kind(value)}, not a number")
    try:
        result = float(value)
    except OverflowError:
        raise Refused(f"{what} is too large a number") from None
    except ValueError:
        raise Refused(f"{what} is {brief(value)}, not a number") from None
    if not math.isfinite(result):
        raise Refused(f"{what} is {result}: not a finite number")
    return result


def sign(value: object, what: str) -> int:
    """+1 accepted, -1 rejected, 0 unlabelled. The value 0 is unlabelled in a field `sign`, and a rejection elsewhere.

    Raises:
        Refused: another value.
    """
    if not isinstance(value, (bool, int, float, str)):
        raise Refused(f"{what} is {kind(value)}, not a label")
    word = str(value).strip().lower().removesuffix(".0")
    if word.startswith("thumb"):
        word = word.removeprefix("thumb").removeprefix("s").strip(" _-")
    if word in NEITHER or (what == "sign" and word == "0"):
        return 0
    if word in UP:
        return 1
    if word in DOWN:
        return -1
    raise Refused(f"{what} is {brief(value)}: not true/false, 1/0, up/down or accepted/rejected")


def text(value: object, what: str) -> Text:
    """Plain text, or messages as a tuple; of an object with `messages`, its messages.

    Raises:
        Refused: another type, a message without text, or text that is not valid Unicode.
    """
    if isinstance(value, str):
        return _unicode(value, what)
    if isinstance(value, Mapping):
        if "messages" in value:
            return text(value["messages"], what)
        return (message(value, what),)
    if isinstance(value, list):
        return tuple(message(item, what) for item in value)
    if value is None:
        raise Refused(f"{what} is missing")
    raise Refused(f"{what} is {kind(value)}, not text or messages")


def message(value: object, what: str) -> Message:
    """One turn, with the keys role and content or from and value."""
    if not isinstance(value, Mapping):
        raise Refused(f"{what} is a list with {kind(value)} in it, not a list of messages")
    role = value.get("role") or value.get("from")
    content = value.get("content") if value.get("content") is not None else value.get("value")
    if not isinstance(role, str) or not role:
        raise Refused(f"{what} has a message without a role")
    if isinstance(content, list):
        content = "".join(_part(part, what) for part in content)
    if not isinstance(content, str):
        tools = " (tool calls are not supported)" if value.get("tool_calls") else ""
        raise Refused(f"{what} has a message without text{tools}")
    return Message(_unicode(ROLES.get(role, role), what), _unicode(content, what))


def is_blank(value: Text) -> bool:
    """Whether a text is empty or blank."""
    return not "".join(contents(value)).strip()


def _part(part: object, what: str) -> str:
    """The text of one part of a message's content."""
    if isinstance(part, str):
        return part
    if isinstance(part, Mapping) and isinstance(part.get("text"), str):
        return part["text"]
    described = brief(part["type"]) if isinstance(part, Mapping) and "type" in part else kind(part)
    raise Refused(f"{what} has a message part that is not text ({described})")


def _unicode(value: str, what: str) -> str:
    """The text, if it has no half of a surrogate pair, which a tokenizer could not encode."""
    try:
        value.encode()
    except UnicodeEncodeError:
        raise Refused(f"{what} is not valid Unicode") from None
    return value
