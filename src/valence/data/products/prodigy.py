"""Prodigy: what `db-out` writes.

Looked up: prodi.gy/docs (api-interfaces, review), explosion/prodigy-openai-recipes (openai_ab.py),
explosion/prodigy-recipes (compare.py, ner_eval_ab.py). Prodigy's own source is closed.

Each line is a task with `answer`: accept, reject or ignore.
- A prompt with a response: `answer` is the label.
- choice with a response: one option was chosen. Its text is a score if all options are numbers, else a label.
- choice without a response: the chosen option is better than the others.
- compare: the objects under `accept` and `reject` are only the two sides; `answer` says which one won.
- review: the outer answer is final; `versions` are copies of earlier answers and are not read.
Prompt and response have the usual names (`PROMPTS`, `ANSWERS`), since a task's keys are the user's.

Skipped: ignore, rejected choice tasks, none or several chosen, equal texts. Refused: a task with a `label`, whose
answer says whether the label fits, and not whether the response is good.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from valence.data.formats.row import Refused, Skipped
from valence.data.formats.values import is_blank, number, text

NAME = "Prodigy"
PROMPTS = ("prompt", "instruction", "question", "input", "messages", "text")
ANSWERS = ("response", "completion", "output", "generation")


def matches(row: Mapping[str, object]) -> bool:
    return row.get("answer") in ("accept", "reject", "ignore") and ("_task_hash" in row or "_input_hash" in row)


def rows(row: Mapping[str, object]) -> Iterator[dict[str, object] | Skipped]:
    try:
        yield _read(row) | _who(row)
    except Skipped as skipped:
        yield skipped


def _read(row: Mapping[str, object]) -> dict[str, object]:
    if row.get("answer") == "ignore":
        raise Skipped("ignored")
    if row.get("answer") not in ("accept", "reject"):
        raise Refused("answer is none of accept, reject and ignore")
    accepted = row["answer"] == "accept"
    if isinstance(row.get("accept"), Mapping) or isinstance(row.get("reject"), Mapping):
        first, second = _inner(row.get("accept"), "accept"), _inner(row.get("reject"), "reject")
        chosen, rejected = (first, second) if accepted else (second, first)
        if chosen == rejected:
            raise Skipped("both answers are the same")
        return {"prompt": _prompt(row), "chosen": chosen, "rejected": rejected}
    if "options" in row:
        return _choice(row, accepted)
    if row.get("label") is not None:
        raise Refused("the answer says whether a label fits, not whether the response is good: read it with `map`")
    return {"prompt": _prompt(row), "completion": _answer(row), "label": accepted}


def _choice(row: Mapping[str, object], accepted: bool) -> dict[str, object]:
    options, ids = row.get("options"), row.get("accept")
    if not accepted:
        raise Skipped("a rejected task")
    if not isinstance(options, list) or not isinstance(ids, list):
        raise Refused("a choice without lists of options and of accepted ids")
    if len(ids) != 1:
        raise Skipped("nothing is chosen" if not ids else "several are chosen")
    texts: dict[str, str] = {}
    for option in options:
        if not isinstance(option, Mapping) or "id" not in option:
            raise Refused("an option without an id")
        texts[str(option["id"])] = _plain(option.get("text"), "an option")
    if (best := str(ids[0])) not in texts:
        raise Refused("the accepted id is none of the options'")
    if any(row.get(name) is not None for name in ANSWERS):
        judged = {"prompt": _prompt(row), "completion": _answer(row)}
        if all(each.strip().lstrip("-+").isdecimal() for each in texts.values()):
            return {**judged, "score": number(texts[best], "the chosen option")}
        return {**judged, "label": texts[best]}
    others = [each for name, each in texts.items() if name != best]
    if not others or texts[best] in others:
        raise Skipped("both answers are the same" if others else "one option alone")
    if len(others) == 1:
        return {"prompt": _prompt(row), "chosen": texts[best], "rejected": others[0]}
    return {"prompt": _prompt(row), "completions": [texts[best], *others], "ranks": [1, *(2 for _ in others)]}


def _prompt(row: Mapping[str, object]) -> object:
    name = next((name for name in PROMPTS if row.get(name) is not None), None)
    if name is None:
        raise Refused(f"a task without {' or '.join(PROMPTS)}: rename the prompt with `map`")
    return _inner(row[name], name)


def _answer(row: Mapping[str, object]) -> object:
    name = next((name for name in ANSWERS if row.get(name) is not None), None)
    if name is None:
        raise Refused(f"a task without {' or '.join(ANSWERS)}: rename the response with `map`")
    return _inner(row[name], name)


def _inner(value: object, what: str) -> object:
    """A text, the text of an object, or messages."""
    if isinstance(value, Mapping) and "text" in value:
        value = value["text"]
    read = text(value, what)
    if is_blank(read):
        raise Refused(f"{what} is empty")
    return read if isinstance(read, str) else [turn._asdict() for turn in read]


def _plain(value: object, what: str) -> str:
    read = text(value, what)
    if not isinstance(read, str) or is_blank(read):
        raise Refused(f"{what} has no text")
    return read


def _who(row: Mapping[str, object]) -> dict[str, object]:
    who = row.get("_annotator_id") or row.get("_session_id")
    return {"annotator": who} if isinstance(who, str) else {}
