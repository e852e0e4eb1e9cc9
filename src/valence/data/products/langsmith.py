"""LangSmith: feedback joined with the runs that it judges, and runs with a summary of their feedback.

Read from the SDK wheel langsmith 0.15.1 (`schemas.py`, `client.py`, `evaluation/_runner.py`, `wrappers/_openai.py`),
langchain-ai/docs `src/langsmith/{run-data-format,data-export,export-traces,annotation-queues}.mdx`, and
langchain-ai/langsmith-cli `internal/{cmd/trace.go,extract/extract.go}` (0314858).

Shapes: feedback objects (`list_feedback`, `/api/v1/feedback`) joined with runs (`list_runs`, the bulk export, or
`langsmith trace export`); and those runs alone, whose `feedback_stats` hold the mean of each key over all annotators.

A score is a number whose scale the row does not tell, 0, 1, true and false included: it becomes a score, and a
`value` without a score the label. A correction makes a pair. Scores with one `feedback_group_id` are a comparison,
made by `compare` from the rows with the same `comparison`.

Skipped: remarks alone, scores of judge models and evaluators, feedback on a whole project, failed runs.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence

from valence.data.formats.row import Refused, Skipped
from valence.data.formats.values import kind, message, number

NAME = "LangSmith"

MACHINES = ("model", "evaluator", "auto_eval")
ROLES = {"human": "user", "ai": "assistant", "AIMessageChunk": "assistant"}
QUESTIONS = ("input", "question", "query", "prompt", "text", "user_input")
ANSWERS = ("output", "answer", "response", "content", "text", "result", "completion")
PASSAGES = ("context", "documents", "docs", "passages", "chat_history", "history")
"""Fields that belong to the prompt and that no one text can hold."""


def matches(row: Mapping[str, object]) -> bool:
    """Whether a row is a feedback or a run of LangSmith."""
    return _is_feedback(row) or ("run_type" in row and "trace_id" in row and "inputs" in row)


def rows(row: Mapping[str, object]) -> Iterator[dict[str, object] | Skipped]:
    """The feedback in a row: one object's score and correction, or the summary of a run's feedback."""
    if _is_feedback(row):
        yield from _feedback(row)
        return
    stats = _parsed(row.get("feedback_stats"))
    found = {key: _object(values) for key, values in stats.items()} if isinstance(stats, Mapping) else {}
    found = {key: values for key, values in found.items() if values.get("avg") is not None}
    if not found:
        yield Skipped("no score")
        return
    if isinstance(base := _answered(row), Skipped):
        yield base
        return
    for key, values in found.items():
        yield {**base, "score": number(values["avg"], key), "feedback_name": key, "votes": values.get("n")}


def compare(found: Sequence[Mapping[str, object]]) -> dict[str, object] | Skipped:
    """The rows of one `comparison` as one: a pair, or completions with scores if there are more than two.

    Raises:
        Refused: an answer is missing, or they answer different prompts.
    """
    first = found[0]
    if len(found) < 2:
        raise Refused("a comparison of one answer alone: the other's feedback is missing")
    if any(other["prompt"] != first["prompt"] for other in found):
        raise Refused("a comparison of answers to different prompts")
    ordered = sorted(found, key=lambda each: -number(each["score"], "score"))
    base = {name: first[name] for name in ("prompt", "feedback_name", "annotator") if name in first}
    if ordered[0]["score"] == ordered[-1]["score"]:
        return Skipped("a tie")
    if len(found) > 2:
        completions = [each["completion"] for each in found]
        return {**base, "completions": completions, "scores": [each["score"] for each in found]}
    return {**base, "chosen": ordered[0]["completion"], "rejected": ordered[1]["completion"]}


def _feedback(row: Mapping[str, object]) -> Iterator[dict[str, object] | Skipped]:
    """The score, value and correction of one feedback object."""
    key, score, value = row.get("key"), row.get("score"), row.get("value")
    source, correction = _object(_parsed(row.get("feedback_source"))), _parsed(row.get("correction"))
    if not isinstance(key, str):
        raise Refused("feedback without a key")
    if score is None and value is None and not correction:
        yield Skipped("a remark")
    elif source.get("type") in MACHINES:
        yield Skipped("a score of a judge model or an evaluator")
    elif row.get("run_id") is None and row.get("trace_id") is None:
        yield Skipped("feedback on a whole project, not on an answer")
    elif not isinstance(run := row.get("JOINED"), Mapping):
        raise Refused("feedback without its run (`join` the file of runs: runs.jsonl on=run_id=id)")
    elif isinstance(base := _answered(run), Skipped):
        yield base
    else:
        known = {"annotator": source.get("user_name") or source.get("user_id"), "comment": row.get("comment")}
        base |= {name: each for name, each in known.items() if each}
        if score is None and isinstance(value, str):
            yield {**base, "label": value, "feedback_name": key}
        elif score is not None or value is not None:
            score = value if score is None else score
            score = float(score) if isinstance(score, bool) else number(score, f"the score {key}")
            group = row.get("feedback_group_id")
            compared = {"comparison": f"{key} {group}"} if isinstance(group, str) and group else {}
            yield {**base, "score": score, "feedback_name": key, **compared}
        if correction:
            rejected = base.pop("completion")
            yield {**base, "chosen": _answer(correction)[0], "rejected": rejected, "feedback_name": "correction"}


def _answered(run: Mapping[str, object]) -> dict[str, object] | Skipped:
    """The prompt and the answer of a run."""
    outputs = _parsed(run.get("outputs"))
    if run.get("error") or not outputs:
        return Skipped("the run failed or has no answer")
    completion, before = _answer(outputs)
    if not completion.strip():
        return Skipped("the run failed or has no answer")
    return {"prompt": before or _prompt(_parsed(run.get("inputs"))), "completion": completion}


def _prompt(inputs: object) -> object:
    """The messages or the one text of a run's inputs."""
    if isinstance(inputs, str) and inputs:
        return inputs
    fields = _object(inputs)
    turns = fields.get("messages")
    if isinstance(turns, list) and turns:
        return [_message(each) for each in (turns[0] if isinstance(turns[0], list) else turns)]
    if lost := next((name for name in PASSAGES if fields.get(name)), None):
        raise Refused(f"the run's inputs have a field {lost} beside the question: read them with `map`")
    return _one_text(fields, QUESTIONS, "inputs")


def _answer(outputs: object) -> tuple[str, list[dict[str, str]]]:
    """The answer in a run's outputs; and the messages before it, where they hold the whole conversation."""
    if isinstance(outputs, str):
        return outputs, []
    fields = _object(outputs)
    for name in ("choices", "generations"):
        inner = fields.get(name)
        while isinstance(inner, list) and inner:
            inner = inner[0]
        if isinstance(inner, Mapping):
            written = inner.get("message")
            return (_message(written)["content"] if written else _one_text(inner, ("text",), "outputs")), []
    if isinstance(turns := fields.get("messages"), list) and turns:
        messages = [_message(each) for each in turns]
        last = max((index for index, each in enumerate(messages) if each["role"] == "assistant"), default=-1)
        if last < 0:
            raise Refused("the run's messages hold no answer")
        return messages[last]["content"], messages[:last]
    if "content" in fields and ("role" in fields or "type" in fields or "kwargs" in fields):
        return _message(fields)["content"], []
    inner = fields.get("output")
    if isinstance(inner, Mapping) and "output" not in inner:
        return _answer(inner)
    return _one_text(fields, ANSWERS, "outputs"), []


def _message(value: object) -> dict[str, str]:
    """One message: OpenAI's role and content, LangChain's type and content, or LangChain's constructor."""
    fields = _object(value)
    fields = _object(fields["kwargs"]) if "kwargs" in fields else fields
    role = fields.get("role") or fields.get("type")
    role = ROLES.get(role, role) if isinstance(role, str) else role
    if fields.get("tool_calls"):
        raise Refused("a message of the run calls tools, which is not supported")
    return message({"role": role, "content": fields.get("content")}, "the run")._asdict()


def _one_text(fields: Mapping[str, object], names: Sequence[str], what: str) -> str:
    """The text of the first of `names`, or of the only field."""
    found = [fields[name] for name in names if name in fields] or (list(fields.values()) if len(fields) == 1 else [])
    if found and isinstance(found[0], str):
        return found[0]
    columns = ", ".join(map(str, fields)) or kind(fields)
    raise Refused(f"the run's {what} hold no text or messages that can be read ({columns})")


def _is_feedback(row: Mapping[str, object]) -> bool:
    runs = ("run_id", "trace_id", "session_id", "start_time")
    return "key" in row and "feedback_source" in row and any(name in row for name in runs)


def _parsed(value: object) -> object:
    """The JSON that a text holds, or the text."""
    if isinstance(value, str) and value.startswith(("{", "[")):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def _object(value: object) -> Mapping[str, object]:
    """The value if it is an object, else an empty one."""
    return value if isinstance(value, Mapping) else {}
