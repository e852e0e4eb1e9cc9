"""Label Studio: tasks with annotations.

Looked up: label-studio-sdk 2.1.2 (converter/converter.py, converter/exports/csv2.py, converter/utils.py) and
HumanSignal/label-studio (Pairwise.js, Ranker.jsx, docs/source/guide/export.md, docs/source/templates).

- JSON: tasks with `data` and `annotations` (formerly `completions`).
- JSON_MIN, CSV, TSV: one row an annotation, with `annotation_id`, `annotator` and `lead_time`.
A rating or a number is a score, a choice a label as it is spelled, a pairwise comparison a pair, a ranker an order. The
tag's name is the `feedback_name`; in a ranker with buckets it is tag.bucket, since an order holds inside a bucket only.
The export does not say which fields of the data a tag shows. The prompt and the answer are the fields with the usual
names (`PROMPTS`, `ANSWERS`, or the field that the tag names). Left and right are two fields that are numbered: answer1
and answer2, response_a and response_b. In CSV, choices cannot be told from other text, nor in JSON_MIN from written
text: every short one is yielded under its name.

Skipped: cancelled annotations, empty ones, tasks without one, several choices, items left unplaced, comments alone.
Predictions (a model's) and drafts are not read. Not covered: the Chat tag, dialogues
whose turns have an author instead of a role, `reviews` of the Enterprise edition.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from valence.data.formats.row import Refused, Skipped
from valence.data.formats.values import is_blank, number, text

NAME = "Label Studio"
PROMPTS = ("prompt", "instruction", "question", "messages", "chat", "conversation", "dialogue", "document", "query")
ANSWERS = ("response", "completion", "answer", "output", "generation", "summary")
META = ("id", "annotator", "annotation_id", "created_at", "updated_at", "lead_time", "agreement", "JOINED", "split")
COMMENTS = ("comment", "comments", "reason", "explanation", "rationale", "note", "notes")
SECOND = {"1": "2", "a": "b", "left": "right", "one": "two"}
LONGEST_CHOICE = 60

Result = tuple[str, str, Mapping[str, object]]
"""(the tag's name, the name of the object that it judges, its value)."""


def matches(row: Mapping[str, object]) -> bool:
    if isinstance(row.get("data"), Mapping):
        given = row.get("annotations", row.get("completions"))
        tasks = ("predictions", "drafts", "inner_id", "file_upload", "project")
        return isinstance(given, list) and (
            any(isinstance(each, Mapping) and "result" in each for each in given) or any(name in row for name in tasks)
        )
    return all(name in row for name in ("annotation_id", "annotator", "lead_time"))


def rows(row: Mapping[str, object]) -> Iterator[dict[str, object] | Skipped]:
    if not isinstance(row.get("data"), Mapping):
        if row.get("annotation_id") is None:
            yield Skipped("no annotation")
        else:
            yield from _annotation(_data(row), _flat(row), row.get("annotator"))
        return
    annotations = row.get("annotations", row.get("completions"))
    if not isinstance(annotations, list):
        raise Refused("annotations are no list")
    if not annotations:
        yield Skipped("no annotation")
    problems: list[str] = []
    for annotation in annotations:
        try:
            if not isinstance(annotation, Mapping):
                raise Refused("an annotation that is no object")
            if annotation.get("was_cancelled") or annotation.get("skipped"):
                yield Skipped("cancelled")
            else:
                yield from _annotation(_data(row["data"]), _results(annotation.get("result")), _who(annotation))
        except Refused as reason:
            problems.append(str(reason))
    if problems:
        raise Refused("; ".join(dict.fromkeys(problems)))


def _annotation(
    data: Mapping[str, object], results: list[Result], who: object
) -> Iterator[dict[str, object] | Skipped]:
    """The verdicts of one annotation; a written comment goes along with each."""
    if not results:
        yield Skipped("an empty annotation")
        return
    comments = [value["text"] for _, _, value in results if "text" in value]
    extras = {**({"comment": comments[0]} if comments else {}), **({} if who is None else {"annotator": str(who)})}
    judged = 0
    problems: list[str] = []
    for name, target, value in results:
        try:
            for found in _verdicts(data, name, target, value):
                judged += 1
                yield found if isinstance(found, Skipped) else found | extras
        except Refused as reason:
            problems.append(str(reason))
    if problems:
        raise Refused("; ".join(dict.fromkeys(problems)))
    if not judged:
        yield Skipped("an annotation without a verdict")


def _verdicts(
    data: Mapping[str, object], name: str, target: str, value: Mapping[str, object]
) -> Iterator[dict[str, object] | Skipped]:
    named = {"feedback_name": name}
    if "rating" in value or "number" in value:
        score = number(value.get("rating", value.get("number")), name)
        yield {**_texts(data, target), "score": score, **named}
    elif "choices" in value:
        choices = value["choices"]
        if not isinstance(choices, list) or len(choices) != 1:
            yield Skipped("several choices")
        elif not isinstance(choices[0], str):
            raise Refused(f"{name} has a choice that is no text")
        else:
            yield {**_texts(data, target), "label": choices[0], **named}
    elif "selected" in value:
        first, second = (_text(data[side], side) for side in _sides(data, target))
        if first == second:
            yield Skipped("both answers are the same")
            return
        if value["selected"] not in ("left", "right"):
            raise Refused(f"{name} has selected neither left nor right")
        chosen, rejected = (first, second) if value["selected"] == "left" else (second, first)
        yield {"prompt": _prompt(data), "chosen": chosen, "rejected": rejected, **named}
    elif "ranker" in value:
        yield from _ranked(data, name, value["ranker"])


def _ranked(data: Mapping[str, object], name: str, ranker: object) -> Iterator[dict[str, object] | Skipped]:
    """An order, best first; with buckets one in each of them. Items that nobody placed are in the bucket "_"."""
    if not isinstance(ranker, Mapping) or not all(isinstance(ids, list) for ids in ranker.values()):
        raise Refused(f"{name} is no ranking")
    texts = _items(data)
    placed = {bucket: ids for bucket, ids in ranker.items() if bucket != "_" and len(ids) > 1}
    for bucket, ids in placed.items():
        if any(str(each) not in texts for each in ids):
            raise Refused(f"{name} ranks an item that the task does not have")
        completions = [texts[str(each)] for each in ids]
        tag = name if len(ranker) == 1 else f"{name}.{bucket}"
        order = {"completions": completions, "ranks": [*range(1, len(ids) + 1)]}
        yield {"prompt": _prompt(data), **order, "feedback_name": tag}
    if not placed:
        yield Skipped("nothing is ranked")
    elif ranker.get("_"):
        yield Skipped("items left unplaced")


def _items(data: Mapping[str, object]) -> dict[str, str]:
    """The texts of the items that a ranker shows, by their ids."""
    for value in data.values():
        items = (
            [each for each in value if isinstance(each, Mapping) and "id" in each] if isinstance(value, list) else []
        )
        if items:
            shown = [
                next((each[key] for key in ("body", "text", "html", "title") if each.get(key)), None) for each in items
            ]
            return {str(each["id"]): str(_text(body, "an item")) for each, body in zip(items, shown, strict=True)}
    raise Refused("a ranker without a list of items")


def _results(results: object) -> list[Result]:
    if not isinstance(results, list) or not all(isinstance(each, Mapping) for each in results):
        raise Refused("an annotation whose result is no list")
    return [
        (str(each.get("from_name")), str(each.get("to_name")), each["value"])
        for each in results
        if isinstance(each.get("value"), Mapping)
    ]


def _flat(row: Mapping[str, object]) -> list[Result]:
    """The results in a row of JSON_MIN, where they follow `id`, or of a table, whose columns are sorted by name."""
    names = [name for name in row if name != "JOINED"]
    is_table = names == sorted(names) or "id" not in row
    results: list[Result] = []
    texts: list[Result] = []
    for name in names if is_table else names[names.index("id") :]:
        value = row[name]
        if name in (*META, *PROMPTS, *ANSWERS) or name.startswith("_data_"):
            continue
        listed = value if isinstance(value, list) else [value]
        results += [(name, "", each) for each in listed if isinstance(each, Mapping) and not {"id", "role"} & set(each)]
        if isinstance(value, str) and name in COMMENTS:
            results.append((name, "", {"text": value}))
        elif isinstance(value, str) and len(value) <= LONGEST_CHOICE and not (is_table and _numbered(name)):
            texts.append((name, "", {"choices": [value]}))
    compares = any("selected" in value or "ranker" in value for _, _, value in results)
    return results if compares and is_table else [*results, *texts]


def _data(row: object) -> Mapping[str, object]:
    """The task's data. A table calls a field _data_NAME where a tag has its name."""
    fields = row if isinstance(row, Mapping) else {}
    own = {name.removeprefix("_data_"): value for name, value in fields.items() if str(name).startswith("_data_")}
    return {**fields, **own}


def _who(annotation: Mapping[str, object]) -> object:
    who = annotation.get("completed_by")
    return who.get("email", who.get("id")) if isinstance(who, Mapping) else who


def _sides(data: Mapping[str, object], target: str) -> tuple[str, str]:
    """The two compared fields: those that the tag names, else the only two answers whose names are numbered."""
    if len(named := target.split(",")) == 2 and all(name in data for name in named):
        return named[0], named[1]
    numbered = {key: name for name in data if (key := _numbered(name)) is not None}
    pairs = {
        stem: (name, numbered[stem, SECOND[end]])
        for (stem, end), name in numbered.items()
        if (stem, SECOND.get(end)) in numbered
    }
    answers = [pair for stem, pair in pairs.items() if stem in ANSWERS]
    found = answers or [*pairs.values()]
    if len(found) != 1:
        raise Refused(f"which fields are left and right is not clear: there are {', '.join(map(str, data))}")
    return found[0]


def _numbered(name: object) -> tuple[str, str] | None:
    """(stem, number or letter) of a name such as answer1, response_b or ResponseA."""
    spelled = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", str(name)).lower()
    found = re.fullmatch(r"(.*?)[\s_-]*(1|2|left|right|one|two|(?<![a-z])[ab])", spelled)
    return (found[1], found[2]) if found else None


def _texts(data: Mapping[str, object], target: str) -> dict[str, object]:
    """Prompt and completion. Where no field is the answer, it is the last message of a chat."""
    prompt = _prompt(data)
    names = ANSWERS if target in PROMPTS else (target, *ANSWERS)
    if (name := next((name for name in names if data.get(name) is not None), None)) is not None:
        return {"prompt": prompt, "completion": _text(data[name], name)}
    if isinstance(prompt, list) and len(prompt) > 1 and prompt[-1]["role"] == "assistant":
        return {"prompt": prompt[:-1], "completion": prompt[-1]["content"]}
    raise Refused(f"no field is named {' or '.join(ANSWERS)}: there are {', '.join(map(str, data))}")


def _prompt(data: Mapping[str, object]) -> str | list[dict[str, str]]:
    name = next((name for name in PROMPTS if data.get(name) is not None), None)
    if name is None:
        raise Refused(f"no field is named {' or '.join(PROMPTS)}: there are {', '.join(map(str, data))}")
    return _text(data[name], name)


def _text(value: object, name: str) -> str | list[dict[str, str]]:
    read = text(value, name)
    if is_blank(read):
        raise Refused(f"{name} is empty")
    return read if isinstance(read, str) else [turn._asdict() for turn in read]
