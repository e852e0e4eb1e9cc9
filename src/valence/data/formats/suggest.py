"""What the columns of a file could be: for a file that no layout reads, and for verdicts that were not read."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from valence.data.formats.row import COMPLETION, FIRST, LABEL, PROMPT, SCORE, SECOND, WINNER
from valence.data.formats.values import brief
from valence.data.formats.verdicts import BOTH_BAD, LABEL_SIDES, TIES, WINNER_SIDES, word
from valence.errors import UserError

ROLES = ("prompt", "completion", "label", "reward", "chosen", "rejected", "a", "b", "winner", "completions", "ranks")
HINTS = {
    "winner": re.compile(r"winner|preferred|preference|better|wins?\b"),
    "label": re.compile(r"label|thumb|vote|feedback|verdict|accept|approv|like|value|good|correct|helpful"),
    "reward": re.compile(r"score|rating|stars?|reward|points|grade|rank"),
    "chosen": re.compile(r"chosen|best"),
    "rejected": re.compile(r"reject|worst"),
    "completion": re.compile(r"complet|answer|response|output|repl|generat|assistant|bot|model_text|prediction"),
    "prompt": re.compile(r"prompt|question|query|input|instruct|user|request|ask|context"),
}
MOST_DEPTH = 4
FEW_VALUES = 12


class UnknownColumns(UserError):
    """No row of a file can be used. A note lists its columns, with an example and a possible role of each.

    Args:
        reason: what was wrong with the rows.
        sample: some rows of the file.
    Attributes:
        columns: the nearest `columns` that could work, or "".
    """

    def __init__(self, reason: str, sample: Sequence[Mapping[str, object]]) -> None:
        values = _by_path(sample)
        roles = {path: role_of(path, found) for path, found in values.items()}
        self.columns = _nearest(roles)
        lines = ["its columns, and what they may be:"]
        for path, found in values.items():
            example = next((value for value in found if value not in (None, "")), None)
            role = "prompt or completion" if roles[path] == "text" else roles[path]
            lines.append(f"  {path} = {brief(example)}" + (f"   ({role}?)" if role else ""))
        lines.append(f"the fields of `columns` are {', '.join(ROLES)}")
        super().__init__(reason)
        self.add_note("\n".join(lines))


def role_of(path: str, values: Sequence[object]) -> str:
    """The role that a column may have, by its values and its name: "text" is prompt or completion, "" is none."""
    there = [value for value in values if value not in (None, "")]
    if not there:
        return ""
    name = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", path).lower()
    words = {word(value) for value in there if isinstance(value, (str, int, float))}
    judged = bool(words) and len(words) <= FEW_VALUES and all(isinstance(v, (str, int, float)) for v in there)
    if judged and words <= LABEL_SIDES.keys() and (len(words) <= 2 or HINTS["label"].search(name)):
        return "label"
    if judged and words <= {*WINNER_SIDES, *TIES, *BOTH_BAD} and HINTS["winner"].search(name):
        return "winner"
    numbers = all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in there)
    numbers = numbers or (judged and all(re.fullmatch(r"-?\d+([.,]\d+)?", each) for each in words))
    if numbers and HINTS["reward"].search(name):
        return "reward"
    if not all(isinstance(v, (str, list)) for v in there) or re.search(
        r"(^|[._])(id|uuid|time|date|at)$|_id$|Id$", path
    ):
        return ""
    last = re.split(r"[.\[]", name)[-1]
    for role in ("chosen", "rejected", "completion", "prompt"):
        if HINTS[role].search(last) and not judged_name(last, role):
            return role
    named = next((role for role in ("completion", "prompt") if HINTS[role].search(name)), "")
    plain = all(isinstance(v, str) and not re.fullmatch(r"[\d.,:T-]*", v) for v in there)
    return named or ("text" if plain and len({*map(str, there)}) > len(there) / 2 else "")


def judged_name(name: str, role: str) -> bool:
    """Whether a column's name speaks of a verdict and not of a text."""
    return role in ("completion", "prompt") and bool(HINTS["reward"].search(name) or re.search(r"feedback|vote", name))


def looks_like_verdicts(sample: Sequence[Mapping[str, object]], unread: Mapping[str, int]) -> dict[str, str]:
    """Columns that no layout read and whose values look like verdicts -> some of their values."""
    values = _by_path([{name: row[name] for name in unread if name in row} for row in sample])
    found: dict[str, str] = {}
    for path, several in values.items():
        if role_of(path, several) in ("label", "reward", "winner"):
            distinct = list(dict.fromkeys(brief(value) for value in several if value not in (None, "")))
            found[path] = ", ".join(distinct[:5])
    return found


def _nearest(roles: Mapping[str, str]) -> str:
    """The `columns` that use the first column of each role."""
    first: dict[str, str] = {}
    for path, role in roles.items():
        if role:
            first.setdefault(role, path)
    texts = [path for path, role in roles.items() if role == "text"]
    for role in ("prompt", "completion"):
        if role not in first and "chosen" not in first and texts:
            first[role] = texts.pop(0)
    wanted = ("prompt", "chosen", "rejected") if {"chosen", "rejected"} <= first.keys() else ("prompt", "completion")
    verdict = next((role for role in ("label", "reward") if role in first), None)
    if wanted[-1] == "completion" and verdict:
        wanted = (*wanted, verdict)
    known = {**dict.fromkeys(PROMPT, "prompt"), **dict.fromkeys(COMPLETION, "completion")}
    known |= {**dict.fromkeys(LABEL, "label"), **dict.fromkeys(SCORE, "reward"), **dict.fromkeys(WINNER, "winner")}
    known |= {**dict.fromkeys(FIRST, "a"), **dict.fromkeys(SECOND, "b")}
    return ",".join(f"{role}={first[role]}" for role in wanted if role in first and known.get(first[role]) != role)


def _by_path(sample: Sequence[Mapping[str, object]]) -> dict[str, list[object]]:
    """Path of each value that is no object -> its values in the sample."""
    found: dict[str, list[object]] = {}
    for row in sample:
        for path, value in _leaves(row, "", 0):
            found.setdefault(path, []).append(value)
    return found


def _leaves(value: object, path: str, depth: int) -> Iterator[tuple[str, object]]:
    """(path, value) of everything within a value; of a list of objects, its last one."""
    if isinstance(value, Mapping) and value and depth < MOST_DEPTH:
        for name, part in value.items():
            yield from _leaves(part, f"{path}.{name}" if path else str(name), depth + 1)
    elif isinstance(value, list) and value and isinstance(value[-1], Mapping) and depth < MOST_DEPTH:
        yield path, value
        yield from _leaves(value[-1], f"{path}[-1]", depth + 1)
    else:
        yield path, value
