"""Argilla: records with the answers of annotators.

Looked up: argilla 2.8.0 (records/_io, responses.py, settings/_templates.py; PyPI and argilla-io/argilla).

- Nested records: `records.to_json()`, `Dataset.to_disk()`, `to_list()`, `to_dict(orient="index")`.
- Flat records: `to_list(flatten=True)`, `to_datasets()`, and so what `to_hub()` pushes; `to_dict(orient="names")`.
A rating is a score. A label is yielded as it is spelled, a ranking as an order (its values are names of fields). Each
question is a `feedback_name`. The prompt and the answer are the fields with the usual names (`PROMPTS`, `ANSWERS`);
text in `CONTEXTS` belongs to the prompt.
Suggestions come from a model and are never read. The nested form does not say which answers are drafts or discarded;
the flat one does.

Skipped: drafts, discarded answers, records without an answer, comments, several labels, marked spans, equal texts.
Not covered: the files of Argilla 1.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from valence.data.formats.row import Refused, Skipped
from valence.data.formats.values import is_blank, text

NAME = "Argilla"
PROMPTS = ("instruction", "prompt", "question", "chat", "messages", "conversation", "query")
CONTEXTS = ("input", "context")
ANSWERS = ("response", "completion", "answer", "generation", "output")
COMMENTS = ("comment", "comments", "reason", "explanation", "rationale", "note", "notes")
USERS = ".responses.users"

Answer = tuple[str, object, object, object]
"""(question, value, user, status)."""


def matches(row: Mapping[str, object]) -> bool:
    if "_server_id" in row:
        return ("fields" in row and "responses" in row) or any(str(name).endswith(USERS) for name in row)
    for each in row.values():
        if not isinstance(each, Mapping) or "_server_id" not in each or not matches(each):
            return False
    return bool(row)


def rows(row: Mapping[str, object]) -> Iterator[dict[str, object] | Skipped]:
    problems: list[str] = []
    for record in _records(row):
        try:
            fields, answers = _nested(record) if "responses" in record else _flat(record)
        except Refused as reason:
            problems.append(str(reason))
            continue
        if not answers:
            yield Skipped("no response")
        for answer in answers:
            try:
                yield _read(fields, answer)
            except Skipped as skipped:
                yield skipped
            except Refused as reason:
                problems.append(str(reason))
    if problems:
        raise Refused("; ".join(dict.fromkeys(problems)))


def _records(row: Mapping[str, object]) -> Iterator[Mapping[str, object]]:
    """The records of a row: itself, those that it holds by their id, or those of its columns."""
    if "_server_id" not in row:
        yield from (each for each in row.values() if isinstance(each, Mapping))
    elif isinstance(row["_server_id"], list):
        columns = {name: column for name, column in row.items() if isinstance(column, list)}
        if len({len(column) for column in columns.values()}) != 1:
            raise Refused("columns of different lengths")
        yield from (dict(zip(columns, cells, strict=True)) for cells in zip(*columns.values(), strict=True))
    else:
        yield row


def _nested(record: Mapping[str, object]) -> tuple[Mapping[str, object], list[Answer]]:
    fields, responses = record.get("fields"), record.get("responses")
    if not isinstance(fields, Mapping) or not isinstance(responses, Mapping):
        raise Refused("a record whose fields or responses are no object")
    answers: list[Answer] = []
    for question, given in responses.items():
        for each in given if isinstance(given, list) else [given]:
            if not isinstance(each, Mapping) or "value" not in each:
                raise Refused(f"a response to {question} without a value")
            answers.append((str(question), each["value"], each.get("user_id"), each.get("status")))
    return fields, answers


def _flat(record: Mapping[str, object]) -> tuple[Mapping[str, object], list[Answer]]:
    """Three parallel lists for every question: its values, their users and their states."""
    answers: list[Answer] = []
    for name in record:
        if not str(name).endswith(USERS):
            continue
        question = name[: -len(USERS)]
        parts = [record.get(f"{question}.responses{part}") for part in ("", ".users", ".status")]
        if parts[0] is None:
            continue
        values = parts[0]
        users, states = (
            part if part is not None or not isinstance(values, list) else [None] * len(values) for part in parts[1:]
        )
        if not isinstance(values, list) or not isinstance(users, list) or not isinstance(states, list):
            raise Refused(f"the responses to {question} are no list")
        if not len(values) == len(users) == len(states):
            raise Refused(f"{question} has {len(values)} responses, {len(users)} users and {len(states)} states")
        answers += [(question, *each) for each in zip(values, users, states, strict=True)]
    return record, answers


def _read(fields: Mapping[str, object], answer: Answer) -> dict[str, object]:
    question, value, user, status = answer
    if status not in (None, "submitted"):
        raise Skipped("a draft" if status == "draft" else "discarded" if status == "discarded" else "not submitted")
    if value is None:
        raise Skipped("no response")
    if question.lower() in COMMENTS:
        raise Skipped("a comment")
    who = {"annotator": user} if isinstance(user, str) and user != "None" else {}
    named = {"feedback_name": question, **who}
    if isinstance(value, list):
        if len(value) == 1 and isinstance(value[0], str) and value[0] not in fields:
            value = value[0]
        else:
            return {"prompt": _prompt(fields), **_order(fields, question, value), **named}
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise Refused(f"a response to {question} is neither a number, text nor a list")
    prompt, completion = _texts(fields)
    return {"prompt": prompt, "completion": completion, "label" if isinstance(value, str) else "score": value, **named}


def _order(fields: Mapping[str, object], question: str, value: list[object]) -> dict[str, object]:
    """The completions that a ranking puts in order. Ranks may be given; otherwise the best comes first."""
    names: list[object] = [each.get("value") if isinstance(each, Mapping) else each for each in value]
    ranks = [each.get("rank") if isinstance(each, Mapping) else place for place, each in enumerate(value, 1)]
    known = [isinstance(name, str) and name in fields for name in names]
    if not any(known):
        spans = any(isinstance(each, Mapping) for each in value)
        raise Skipped("marked spans" if spans else "several labels, or a ranking of no fields")
    if not all(known) or not all(isinstance(rank, int) for rank in ranks):
        raise Refused(f"{question} ranks something that is no field of the record")
    if len(names) < 2:
        raise Skipped("a ranking of one")
    completions = [_text(fields[str(name)], str(name)) for name in names]
    if len({str(each) for each in completions}) < len(completions):
        raise Skipped("ranked answers are the same")
    return {"completions": completions, "ranks": ranks}


def _texts(fields: Mapping[str, object]) -> tuple[object, object]:
    """(prompt, completion). Where no field is the answer, it is the last message of a chat."""
    prompt = _prompt(fields)
    if (name := next((name for name in ANSWERS if fields.get(name) is not None), None)) is not None:
        return prompt, _text(fields[name], name)
    if isinstance(prompt, list) and len(prompt) > 1 and prompt[-1]["role"] == "assistant":
        return prompt[:-1], prompt[-1]["content"]
    raise Refused(f"no field is named {' or '.join(ANSWERS)}: there are {_names(fields)}; rename one with `map`")


def _prompt(fields: Mapping[str, object]) -> str | list[dict[str, str]]:
    name = next((name for name in PROMPTS if fields.get(name) is not None), None)
    if name is None:
        raise Refused(f"no field is named {' or '.join(PROMPTS)}: there are {_names(fields)}; rename one with `map`")
    read = _text(fields[name], name)
    more = [value for each in CONTEXTS if isinstance(value := fields.get(each), str) and value.strip()]
    return "\n\n".join((read, *more)) if isinstance(read, str) else read


def _text(value: object, name: str) -> str | list[dict[str, str]]:
    read = text(value, name)
    if is_blank(read):
        raise Refused(f"{name} is empty")
    return read if isinstance(read, str) else [turn._asdict() for turn in read]


def _names(fields: Mapping[str, object]) -> str:
    return ", ".join(
        str(name) for name in fields if "." not in str(name) and name not in ("id", "status", "_server_id")
    )
