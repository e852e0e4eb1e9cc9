"""W&B Weave: calls with their feedback.

Looked up: weave 0.54.0 (trace/feedback.py, trace/feedback_types.py, trace/call.py), wandb/weave
(trace_server/interface/feedback_types.py), docs.wandb.ai/weave/guides/tracking/feedback.

- Calls that were fetched with `include_feedback=True`: the feedback is under `summary.weave.feedback`.
- A feedback query (rows with `feedback_type` and `weave_ref`) has no prompt: its rows are refused, unless joined with
  their calls by a column that holds the call's id.
A thumb is a label (`feedback_name` reaction; skin tones do not matter). An annotation has the name of its field: a
number is a score; a boolean or a text is a label as it stands. The prompt is `inputs.messages`, or the one input that
is text; the answer is `output`: a chat completion, or text.

Skipped: notes, other emojis, scorers' feedback, types of one's own, calls without output or feedback.
Not verified: the columns of the user interface's own export, which is not public.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from valence.data.formats.row import Refused, Skipped
from valence.data.products.openai_logs import answer, messages

NAME = "W&B Weave"
THUMBS = {"👍": True, "👎": False}
REACTIONS = ("wandb.reaction.1", "wandb.agent_user_feedback")
ANNOTATION = "wandb.annotation."
TONES = "🏻🏼🏽🏾🏿\ufe0f"
NO_CALL = "feedback without its call: fetch the calls with `include_feedback=True`, or join them by the call's id"


def matches(row: Mapping[str, object]) -> bool:
    if ("feedback_type" in row and "weave_ref" in row) or all(name in row for name in ("op_name", "inputs", "summary")):
        return True
    result = row.get("result")
    return isinstance(result, list) and any(isinstance(each, Mapping) and "weave_ref" in each for each in result)


def rows(row: Mapping[str, object]) -> Iterator[dict[str, object] | Skipped]:
    if "feedback_type" in row:
        call, given = row.get("JOINED"), [row]
    else:
        call, given = row, _feedback(row)
    if not isinstance(call, Mapping) or "inputs" not in call:
        raise Refused(NO_CALL)
    if not given:
        yield Skipped("no feedback")
        return
    problems: list[str] = []
    for each in given:
        try:
            yield _read(call, each)
        except Skipped as skipped:
            yield skipped
        except Refused as reason:
            problems.append(str(reason))
    if problems:
        raise Refused("; ".join(dict.fromkeys(problems)))


def _feedback(call: Mapping[str, object]) -> list[object]:
    summary = call.get("summary")
    inner = summary.get("weave") if isinstance(summary, Mapping) else None
    given = inner.get("feedback") if isinstance(inner, Mapping) else None
    if given is not None and not isinstance(given, list):
        raise Refused("summary.weave.feedback is no list")
    return given or []


def _read(call: Mapping[str, object], feedback: object) -> dict[str, object]:
    if not isinstance(feedback, Mapping) or not isinstance(feedback.get("payload"), Mapping):
        raise Refused("feedback without a payload")
    if call.get("exception") or call.get("output") is None:
        raise Skipped("no output")
    verdict = _verdict(str(feedback.get("feedback_type")), feedback["payload"])
    who = feedback.get("creator") or feedback.get("wb_user_id")
    named = {"annotator": who} if isinstance(who, str) else {}
    return {"prompt": _prompt(call.get("inputs")), "completion": _output(call["output"]), **verdict, **named}


def _verdict(kind: str, payload: Mapping[str, object]) -> dict[str, object]:
    if kind in REACTIONS:
        emoji = str(payload.get("detoned") or payload.get("emoji")).translate(dict.fromkeys(map(ord, TONES)))
        if emoji not in THUMBS:
            raise Skipped("a reaction that is no thumb")
        return {"label": THUMBS[emoji], "feedback_name": "reaction"}
    if kind.startswith("wandb.note"):
        raise Skipped("a note")
    if kind.startswith("wandb.runnable."):
        raise Skipped("made by a scorer")
    if not kind.startswith(ANNOTATION):
        raise Skipped("feedback of a type of one's own")
    value = payload.get("value")
    if not isinstance(value, (bool, int, float, str)):
        raise Skipped("an annotation that is no number, text or boolean")
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return {"score" if is_number else "label": value, "feedback_name": kind.removeprefix(ANNOTATION)}


def _prompt(inputs: object) -> object:
    """The messages of a call, or its only text."""
    if not isinstance(inputs, Mapping):
        raise Refused("a call whose inputs are no object")
    if inputs.get("messages") is not None:
        return messages(inputs["messages"], "inputs.messages")
    texts = {name: value for name, value in inputs.items() if name not in ("self", "model") and isinstance(value, str)}
    texts = {name: value for name, value in texts.items() if not value.startswith("weave:///")}
    if len(texts) != 1:
        raise Refused(f"inputs have {len(texts)} texts, and which one is the prompt is not clear: use `map`")
    return messages(next(iter(texts.values())), "the input")


def _output(output: object) -> object:
    if isinstance(output, Mapping) and "choices" in output:
        return answer(output)
    if not isinstance(output, str):
        raise Refused("output is neither text nor a chat completion")
    return messages(output, "output")
