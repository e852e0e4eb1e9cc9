"""MLflow 3: traces with their assessments.

Looked up: mlflow-skinny 3.17.2 (entities/trace.py, trace_info.py, assessment.py, assessment_source.py, span.py,
tracing/utils/search.py), mlflow.org/docs/latest/genai/tracing/collect-user-feedback.

- `Trace.to_json()`, one a line: `info` with the assessments, `data` with the spans.
- The table of `mlflow.search_traces()`, saved as JSON lines or Parquet.
A person's feedback that is a number is a score; a boolean or a text is a label as it stands. The assessment's name is
the `feedback_name`. Prompt and answer are the inputs and outputs of the root span, or of the span that was judged;
previews, which may be cut, are not read.

Skipped: assessments by a judge or by code (the default of `log_feedback` where no source is given), expectations,
overridden ones, errors, traces without an answer or feedback.
Not covered: Databricks' labelling sessions, and a download of the user interface.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping

from valence.data.formats.row import Refused, Skipped
from valence.data.products.openai_logs import answer, messages

NAME = "MLflow"


def matches(row: Mapping[str, object]) -> bool:
    info, data = row.get("info"), row.get("data")
    if isinstance(info, Mapping) and isinstance(data, Mapping):
        return "trace_id" in info and "spans" in data
    return all(name in row for name in ("trace_id", "assessments", "trace_metadata"))


def rows(row: Mapping[str, object]) -> Iterator[dict[str, object] | Skipped]:
    trace, data = row.get("info", row), row.get("data", row)
    if not isinstance(trace, Mapping) or not isinstance(data, Mapping):
        raise Refused("a trace whose info or data is no object")
    assessments = trace.get("assessments") or []
    if not isinstance(assessments, list):
        raise Refused("assessments are no list")
    given = [each for each in assessments if not isinstance(each, Mapping) or "feedback" in each]
    if not given:
        yield Skipped("no feedback")
    problems: list[str] = []
    for each in given:
        try:
            yield _read(trace, data, each)
        except Skipped as skipped:
            yield skipped
        except Refused as reason:
            problems.append(str(reason))
    if problems:
        raise Refused("; ".join(dict.fromkeys(problems)))


def _read(trace: Mapping[str, object], data: Mapping[str, object], assessment: object) -> dict[str, object]:
    feedback = assessment.get("feedback") if isinstance(assessment, Mapping) else None
    source = assessment.get("source") if isinstance(assessment, Mapping) else None
    if not isinstance(assessment, Mapping) or not isinstance(feedback, Mapping) or not isinstance(source, Mapping):
        raise Refused("an assessment without feedback and a source")
    if source.get("source_type") != "HUMAN":
        raise Skipped("made by code" if source.get("source_type") == "CODE" else "made by a judge")
    if assessment.get("valid") is False:
        raise Skipped("overridden")
    if feedback.get("error"):
        raise Skipped("an error instead of feedback")
    value = feedback.get("value")
    if not isinstance(value, (bool, int, float, str)):
        raise Skipped("feedback that is no number, text or boolean")
    name = "score" if isinstance(value, (int, float)) and not isinstance(value, bool) else "label"
    request, response = _sides(data, assessment.get("span_id"))
    if trace.get("state") == "ERROR" or response in (None, "", {}, []):
        raise Skipped("no answer")
    extras = {"annotator": source.get("source_id"), "comment": assessment.get("rationale")}
    return {
        "prompt": _prompt(request), "completion": _completion(response), name: value,
        "feedback_name": str(assessment.get("assessment_name")),
        **{each: text for each, text in extras.items() if isinstance(text, str) and text},
    }  # fmt: skip


def _sides(data: Mapping[str, object], span_id: object) -> tuple[object, object]:
    """(inputs, outputs) of the judged span: the one with this id, else the root, else those of the table."""
    found = data.get("spans")
    spans = [each for each in found if isinstance(each, Mapping)] if isinstance(found, list) else []
    roots = [each for each in spans if not each.get("parent_span_id")]
    if span_id is not None and len(spans) > 1:
        roots = [each for each in spans if each.get("span_id") == span_id]
        if not roots:
            raise Refused("the judged span is not in the trace")
    if len(roots) == 1 and isinstance(attributes := roots[0].get("attributes"), Mapping):
        return _parsed(attributes.get("mlflow.spanInputs")), _parsed(attributes.get("mlflow.spanOutputs"))
    if "request" in data and "response" in data:
        return data["request"], data["response"]
    raise Refused("a trace without a root span")


def _parsed(value: object) -> object:
    """The value of a span's attribute, which is JSON text."""
    try:
        return json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError):
        raise Refused("a span's inputs or outputs are no JSON") from None


def _prompt(request: object) -> object:
    if not isinstance(request, Mapping):
        return messages(request, "the request")
    if request.get("messages") is not None:
        return messages(request["messages"], "the request's messages")
    texts = [value for name, value in request.items() if name != "model" and isinstance(value, str)]
    if len(texts) != 1:
        raise Refused(f"the request has {len(texts)} texts, and which one is the prompt is not clear: use `map`")
    return messages(texts[0], "the request")


def _completion(response: object) -> object:
    if isinstance(response, Mapping) and "choices" in response:
        return answer(response)
    if not isinstance(response, str):
        raise Refused("the response is neither text nor a chat completion")
    return messages(response, "the response")
