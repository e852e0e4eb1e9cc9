"""Arize Phoenix: annotations of spans, joined with the spans.

Looked up: arize-phoenix-client 3.5.0 (client/resources/spans, client/__generated__/v1), arize.com/docs/phoenix
(exporting annotated spans).

- The table of `get_span_annotations_dataframe()`, saved with its index: `annotation_name`, `result.label`, ...
- The list of the REST interface: `name`, `result` with label, score and explanation.
Both hold no prompt: `join=spans.jsonl on=span_id=context.span_id`, with the table of `get_spans_dataframe()`.
A person's label is yielded as it is spelled, and wins over the score beside it; a score alone is a score. The
annotation's name is the `feedback_name`. The prompt and the answer are the span's LLM messages, else its input and
output.

Skipped: annotations by an LLM or by code, those without a label or score, spans without an output.
Not covered: annotations of sessions, traces and documents.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping

from valence.data.formats.row import Refused, Skipped
from valence.data.formats.values import number
from valence.data.products.openai_logs import answer, content, messages

NAME = "Arize Phoenix"
NO_SPAN = "an annotation without its span: give the spans with `join=spans.jsonl on=span_id=context.span_id`"


def matches(row: Mapping[str, object]) -> bool:
    named = "annotation_name" in row or ("name" in row and isinstance(row.get("result"), Mapping))
    return "annotator_kind" in row and "span_id" in row and named


def rows(row: Mapping[str, object]) -> Iterator[dict[str, object] | Skipped]:
    try:
        yield _read(row)
    except Skipped as skipped:
        yield skipped


def _read(row: Mapping[str, object]) -> dict[str, object]:
    span = row.get("JOINED")
    if not isinstance(span, Mapping):
        raise Refused(NO_SPAN)
    if row.get("annotator_kind") != "HUMAN":
        raise Skipped("made by code" if row.get("annotator_kind") == "CODE" else "made by a judge")
    inner = row.get("result")
    result = inner if isinstance(inner, Mapping) else {name: row.get(f"result.{name}") for name in ("label", "score")}
    label, score = result.get("label"), result.get("score")
    if label in (None, "") and score in (None, ""):
        raise Skipped("no label and no score")
    if label not in (None, ""):
        if not isinstance(label, str):
            raise Refused("result.label is no text")
        verdict: dict[str, object] = {"label": label}
    else:
        verdict = {"score": number(score, "result.score")}
    comment = result.get("explanation", row.get("result.explanation"))
    extras = {"annotator": row.get("user_id") or row.get("identifier"), "comment": comment}
    return {
        "completion": _completion(span), "prompt": _prompt(span), **verdict,
        "feedback_name": str(row.get("annotation_name", row.get("name"))),
        **{name: each for name, each in extras.items() if isinstance(each, str) and each},
    }  # fmt: skip


def _prompt(span: Mapping[str, object]) -> object:
    turns = _turns(span.get("attributes.llm.input_messages"))
    if turns:
        return messages(turns, "the span's input messages")
    value = _value(span, "input")
    if isinstance(value, Mapping) and "messages" not in value:
        raise Refused("the span's input is an object without messages")
    return messages(value, "the span's input")


def _completion(span: Mapping[str, object]) -> object:
    turns = _turns(span.get("attributes.llm.output_messages"))
    if len(turns) > 1:
        raise Skipped("several answers, and one verdict")
    if turns:
        return content(turns[0], "the span's output message")
    value = _value(span, "output")
    if value in (None, "", {}, []):
        raise Skipped("no answer")
    if isinstance(value, Mapping):
        return answer(value)
    if not isinstance(value, str):
        raise Refused("the span's output is neither text nor a chat completion")
    return messages(value, "the span's output")


def _turns(value: object) -> list[dict[str, object]]:
    """Messages whose keys are message.role and message.content."""
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(each, Mapping) for each in value):
        raise Refused("the span's messages are no list of messages")
    return [{key: each.get(f"message.{key}") for key in ("role", "content", "tool_calls")} for each in value]


def _value(span: Mapping[str, object], side: str) -> object:
    """The span's input or output: text, or the value of JSON text where its type says so."""
    value = span.get(f"attributes.{side}.value")
    if isinstance(value, str) and span.get(f"attributes.{side}.mime_type") == "application/json":
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            raise Refused(f"the span's {side} is no JSON") from None
    return value
