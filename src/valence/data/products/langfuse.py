"""Langfuse: scores, and the traces or observations that they judge.

Read from langfuse/langfuse `worker/src/features/{database-read-stream,batchExport}` (00385c56, 03347058, 0248e054),
the Python SDK wheel langfuse 5.0.4, and langfuse.com/docs: blob storage export, export from the UI, scores API (v2
and v3).

Shapes: scores of the blob storage export (snake_case), of the UI's CSV and JSON, of the API v2 (camelCase) and v3
(`subject`), each joined with traces or observations; and the UI's tables of traces or observations, which hold text
and one column a score name. A score of a trace without text of its own judges the trace's last generation.

BOOLEAN is a label, NUMERIC a score, CATEGORICAL its word as the label, CORRECTION a pair of the corrected and the
given answer (its value 0 is no verdict). The tables of the UI tell neither types nor sources: their numbers are
scores (averages over annotators, judge models included), their words labels.

Skipped: scores of a judge model (EVAL), of a session or an experiment, TEXT, empty corrections, empty answers.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence

from valence.data.formats.row import Refused, Skipped
from valence.data.formats.values import brief, message, number

NAME = "Langfuse"

TYPES = ("NUMERIC", "BOOLEAN", "CATEGORICAL", "TEXT", "CORRECTION")
SOURCES = ("API", "ANNOTATION", "EVAL")
KINDS = ("SPAN", "GENERATION", "EVENT", "AGENT", "TOOL", "CHAIN", "RETRIEVER", "EVALUATOR", "EMBEDDING", "GUARDRAIL")
TRUE, FALSE = (True, 1, "1", "1.0", "true", "True"), (False, 0, "0", "0.0", "false", "False")
LISTS = frozenset(("tags", "comments", "input", "output", "metadata", "traceTags", "trace_tags", "modelParameters"))
"""Columns of the tables that may hold lists and are no scores."""
MORE_LISTS = frozenset(("toolDefinitions", "toolCalls", "toolCallNames", "tool_definitions", "tool_calls", "scores"))
OBSERVATIONS = "OBSERVATIONS"
"""The field for all observations of a trace, which `gather` adds."""
JOIN = "(`join` the file of observations on the trace's id: observations.jsonl on=trace_id)"


def matches(row: Mapping[str, object]) -> bool:
    """Whether a row is a score, a trace or an observation of Langfuse."""
    return _is_score(row) or _is_trace(row) or joins(row)


def joins(row: Mapping[str, object]) -> bool:
    """Whether a row is an observation, which `gather` makes joinable."""
    kind, trace = row.get("type"), _field(row, "traceId", "trace_id")
    details = any(name in row for name in ("level", "input", "output"))
    return (
        isinstance(kind, str)
        and kind in KINDS
        and isinstance(trace, str)
        and details
        and ("startTime" in row or "start_time" in row)
    )


def gather(observations: Iterable[Mapping[str, object]]) -> Iterator[dict[str, object]]:
    """One row a trace, with its id under both spellings and all its observations."""
    traces: dict[str, list[Mapping[str, object]]] = {}
    for row in observations:
        trace = _field(row, "traceId", "trace_id")
        if isinstance(trace, str):
            traces.setdefault(trace, []).append(row)
    for trace, found in traces.items():
        yield {"id": trace, "trace_id": trace, "traceId": trace, OBSERVATIONS: found}


def rows(row: Mapping[str, object]) -> Iterator[dict[str, object] | Skipped]:
    """The feedback of a score, or every score in a row of the UI's tables."""
    if _is_score(row):
        yield _scored(row)
        return
    found = [
        (name, value)
        for name, values in row.items()
        if name not in LISTS | MORE_LISTS and isinstance(values, list)
        for value in values
        if isinstance(value, (bool, int, float, str))
    ]
    if not found:
        yield Skipped("no score")
    elif (answer := _answer(row.get("output"))) is None:
        yield Skipped("no answer")
    else:
        base = {"prompt": _prompt(row.get("input")), "completion": answer}
        for name, value in found:
            yield {**base, "label" if isinstance(value, (bool, str)) else "score": value, "feedback_name": name}


def _scored(row: Mapping[str, object]) -> dict[str, object] | Skipped:
    """The feedback of one score."""
    kind, name = _field(row, "dataType", "data_type"), row.get("name")
    subject = _object(row.get("subject"))
    trace = _field(row, "traceId", "trace_id") or subject.get("traceId")
    trace = trace or (subject.get("id") if subject.get("kind") == "trace" else None)
    if not isinstance(name, str):
        raise Refused("a score without a name")
    if row.get("source") == "EVAL":
        return Skipped("a score of a judge model")
    if not trace:
        return Skipped("a score of a session or an experiment, not of an answer")
    if kind == "TEXT":
        return Skipped("a remark")
    observation = _field(row, "observationId", "observation_id")
    observation = observation or (subject.get("id") if subject.get("kind") == "observation" else None)
    judged = _judged(row, observation)
    value, word = row.get("value"), _field(row, "stringValue", "string_value")
    word = value if word in (None, "") and isinstance(value, str) else word
    if kind == "CORRECTION" and (not isinstance(word, str) or not word.strip()):
        return Skipped("an empty correction")
    if (answer := _answer(judged.get("output"))) is None:
        return Skipped("no answer")
    base = {"prompt": _prompt(judged.get("input")), "feedback_name": name}
    who = _field(row, "authorUserId", "author_user_id") or row.get("authorUserName")
    base |= {name: known for name, known in (("annotator", who), ("comment", row.get("comment"))) if known}
    if kind == "CORRECTION":
        return {**base, "chosen": word, "rejected": answer}
    base["completion"] = answer
    if kind == "NUMERIC":
        return {**base, "score": number(value, f"the score {name}")}
    if kind == "BOOLEAN" and (value in TRUE or value in FALSE):
        return {**base, "label": value in TRUE}
    if kind == "CATEGORICAL" and isinstance(word, str):
        return {**base, "label": word}
    raise Refused(f"the score {name} is {brief(value)}: no value of the type {brief(kind)}")


def _judged(row: Mapping[str, object], observation: object) -> Mapping[str, object]:
    """The observation or trace that a score judges."""
    joined = row.get("JOINED")
    if not isinstance(joined, Mapping):
        raise Refused(f"a score without the answer that it judges {JOIN}")
    if OBSERVATIONS not in joined and not (observation or joins(joined)):
        return joined
    inside = joined.get(OBSERVATIONS, [joined])
    found = [each for each in inside if isinstance(each, Mapping)] if isinstance(inside, list) else []
    if observation:
        found = [each for each in found if each.get("id") == observation]
    else:
        answered = [each for each in found if each.get("type") == "GENERATION" and each.get("output")]
        roots = [each for each in found if not _field(each, "parentObservationId", "parent_observation_id")]
        found = sorted(answered, key=lambda each: str(_field(each, "startTime", "start_time")))[-1:] or roots
    if not found:
        raise Refused(f"the observation that the score judges is not there {JOIN}")
    return found[0]


def _prompt(value: object) -> object:
    """The messages or the text of an input: messages, `messages`, the arguments of a decorated function, one text."""
    value = _parsed(value)
    if isinstance(value, str) and value:
        return value
    if isinstance(value, list) and value:
        return [message(each, "input")._asdict() for each in value]
    if isinstance(value, Mapping) and "messages" in value:
        return _prompt(value["messages"])
    if isinstance(value, Mapping) and isinstance(arguments := value.get("args"), list):
        return _only([*arguments, *_object(value.get("kwargs")).values()], "input")
    return _only(list(_object(value).values()), "input")


def _answer(value: object) -> str | None:
    """The text of an output: a message, `choices`, messages, one text; None if it is empty."""
    value = _parsed(value)
    if isinstance(value, Mapping) and isinstance(choices := value.get("choices"), list):
        value = _object(choices[0]).get("message") if choices else None
    if isinstance(value, list) and value:
        value = value[-1]
    if isinstance(value, Mapping) and "role" in value:
        value = message(value, "output").content
    if isinstance(value, Mapping) and value:
        value = _only(list(value.values()), "output")
    if value is None or value == [] or value == {}:
        return None
    if not isinstance(value, str):
        raise Refused(f"output is {brief(value)}, not an answer")
    return value if value.strip() else None


def _only(values: Sequence[object], what: str) -> str:
    """The value, if it is one text."""
    if len(values) != 1 or not isinstance(values[0], str):
        raise Refused(f"{what} is neither text nor messages: read it with `map`")
    return values[0]


def _parsed(value: object) -> object:
    """The JSON that a text holds, or the text."""
    if isinstance(value, str) and value.startswith(("{", "[", '"')):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def _is_score(row: Mapping[str, object]) -> bool:
    kind, source = _field(row, "dataType", "data_type"), row.get("source")
    return isinstance(kind, str) and kind in TYPES and isinstance(source, str) and source in SOURCES and "name" in row


def _is_trace(row: Mapping[str, object]) -> bool:
    return all(name in row for name in ("id", "timestamp", "bookmarked", "public", "environment"))


def _field(row: Mapping[str, object], camel: str, snake: str) -> object:
    """A field, as the UI and the API spell it or as the blob storage export does."""
    return row.get(camel) if row.get(camel) is not None else row.get(snake)


def _object(value: object) -> Mapping[str, object]:
    """The value if it is an object, else an empty one."""
    return value if isinstance(value, Mapping) else {}
