"""The values of single fields: numbers, labels, text and messages."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from valence.data.formats.outcomes import Refused
from valence.data.records import Message, Text, contents

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
    """A finite number, also as text: 3.5, 3,5, "4 stars", ★★★★☆, 80% (0.8), 4/5 (0.8); or a list of one number.

    Raises:
        Refused: a boolean, another type, NaN or infinity.
    """
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
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
        result = _spelled(str(value), what)
    if not math.isfinite(result):
        raise Refused(f"{what} is {result}: not a finite number")
    return result


def _spelled(text: str, what: str) -> float:
    """The number of a text such as 3,5, "4 stars", ★★★★☆, 80% or 4/5."""
    plain = text.strip().lower().replace("\ufe0f", "")
    if re.fullmatch("[★⭐]+[☆✩]*|[☆✩]+", plain):
        return float(sum(letter in "★⭐" for letter in plain))
    found = re.fullmatch(r"([+-]?\d+(?:[.,]\d+)?)\s*(%|stars?|points?|(?:/|out of|von|of)\s*(\d+))?", plain)
    # 1,000 may be a thousand or one.
    if found is None or re.match(r"[+-]?\d{1,3},\d{3}$", found[1]):
        raise Refused(f"{what} is {brief(text)}, not a number")
    size = float(found[1].replace(",", "."))
    if found[2] == "%":
        return size / 100
    return size / float(found[3]) if found[3] and float(found[3]) else size


def unit(value: object) -> str:
    """The unit in which a text gives a number: %, /5, stars, or "" for a plain number."""
    found = re.search(r"(%)|(?:/|of)\s*(\d+)|star|[★⭐☆✩]", value.lower()) if isinstance(value, str) else None
    if found is None:
        return ""
    return found[1] or (f"/{found[2]}" if found[2] else "stars")


def text(value: object, what: str) -> Text:
    """Plain text, or messages as a tuple; of an object with `messages`, its messages.

    Raises:
        Refused: another type, a message without text, or text that is not valid Unicode.
    """
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], str):
        value = value[0]
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
    if isinstance(value, str):
        return not value or value.isspace()
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
