"""Logs in OpenAI's formats: preference files, stored completions, batches, proxies' logs and one's own request log.

Looked up: openai 3.57.0 (types/chat), OpenAI's guide to preference fine-tuning, BatchRequestOutput of its OpenAPI file,
litellm 1.110.2 (StandardLoggingPayload), Helicone's HeliconeRequest (docs.helicone.ai).

- Chat completions that are stored, with their input under `messages`.
- A batch's output. Its prompts are in the input file: `join=batch_input.jsonl on=custom_id`.
- Helicone's export: `feedback_rating` is true or false. Its `scores` are mostly a machine's and are not read.
- LiteLLM's log, and rows of one's own with `request` (or `body`) and `response`.
No format but Helicone's has a place for a verdict. It is read where it has one of the names in `VERDICTS` or `SCORES`,
in the row or its metadata; for another name give all `columns`, such as prompt=request.messages.

Skipped: no verdict, an error, a refusal, a tool call, several answers, redacted text, an image, two equal answers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from valence.data.formats.row import Refused, Skipped
from valence.data.formats.values import is_blank, number, text

NAME = "OpenAI log"
VERDICTS = ("verdict", "label", "feedback", "user_feedback", "thumb", "thumbs", "vote")
SCORES = ("rating", "score", "stars")
REDACTED = "redacted-by-litellm"


def matches(row: Mapping[str, object]) -> bool:
    own = isinstance(row.get("response"), Mapping) and "assessments" not in row
    return (
        (row.get("object") == "chat.completion" and "choices" in row)
        or ("custom_id" in row and "response" in row and ("error" in row or _has(row, "response", "body")))
        or ("request_body" in row and "response_body" in row and "request_id" in row)
        or ("call_type" in row and "messages" in row and "response" in row and "status" in row)
        or (own and (_has(row, "request", "messages") or _has(row, "body", "messages")))
    )


def rows(row: Mapping[str, object]) -> Iterator[dict[str, object] | Skipped]:
    try:
        yield from _judged(row)
    except Skipped as skipped:
        yield skipped


def _judged(row: Mapping[str, object]) -> Iterator[dict[str, object]]:
    request, response = _request(row), _response(row)
    if row.get("feedback_rating") is None and "feedback_rating" in row:
        raise Skipped("no verdict")
    prompt = messages(request, "the request")
    if REDACTED in (prompt, prompt[-1]["content"] if isinstance(prompt, list) else None):
        raise Skipped("redacted")
    found = dict(_verdicts(row))
    if not found:
        raise Skipped("no verdict")
    completion = answer(response)
    for name, value in found.items():
        yield {"prompt": prompt, "completion": completion, "feedback_name": name, **_read(name, value)} | _extras(row)


def _response(row: Mapping[str, object]) -> object:
    """The chat completion of a row.

    Raises:
        Skipped: the request failed.
    """
    if row.get("object") == "chat.completion":
        return row
    response = row.get("response_body", row.get("response"))
    status = row.get("response_status", row.get("status"))
    if "custom_id" in row and isinstance(response, Mapping):
        status, response = response.get("status_code"), response.get("body")
    failed = row.get("error") or row.get("error_str") or (isinstance(response, Mapping) and response.get("error"))
    if failed or str(status) not in ("None", "200", "200.0", "success"):
        raise Skipped("the request failed")
    return response


def _request(row: Mapping[str, object]) -> object:
    """The messages of a row, or the object that holds them."""
    joined = row.get("JOINED")
    for request in (row.get("request_body"), row.get("request"), joined, row.get("body"), row):
        inner = request.get("body", request) if isinstance(request, Mapping) else None
        if isinstance(inner, Mapping) and "messages" in inner:
            return inner["messages"]
    if "custom_id" in row:
        raise Refused("a batch's output without its input: give the input with `join=batch_input.jsonl on=custom_id`")
    raise Refused("a completion without its prompt: add the input of each completion as `messages`")


def _verdicts(row: Mapping[str, object]) -> Iterator[tuple[str, object]]:
    """(name, value) of every verdict: in the row, else in its metadata."""
    if "feedback_rating" in row:
        yield "feedback_rating", row["feedback_rating"]
        return
    metadata = row.get("metadata")
    inner = metadata.get("requester_metadata") if isinstance(metadata, Mapping) else None
    for place in (row, metadata, inner):
        found = place if isinstance(place, Mapping) else {}
        named = [(name, found[name]) for name in (*VERDICTS, *SCORES) if found.get(name) not in (None, "")]
        if named:
            yield from named
            return


def _read(name: str, value: object) -> dict[str, object]:
    if isinstance(value, (list, Mapping)):
        raise Refused(f"{name} is neither text, a number nor a boolean")
    if name in SCORES and not isinstance(value, bool):
        return {"score": number(value, name)}
    return {"label": value}


def _extras(row: Mapping[str, object]) -> dict[str, object]:
    who = next((row[name] for name in ("user", "rater", "annotator") if isinstance(row.get(name), str)), None)
    return {} if who is None else {"annotator": who}


def answer(response: object) -> str:
    """The text of a chat completion's one answer.

    Raises:
        Skipped: it has none, or several.
        Refused: this is no chat completion.
    """
    choices = response.get("choices") if isinstance(response, Mapping) else None
    if isinstance(response, Mapping) and response.get("text") == REDACTED:
        raise Skipped("redacted")
    if isinstance(choices, list) and len(choices) > 1:
        raise Skipped("several answers, and one verdict")
    choice = _only(choices, "choices")
    return content(choice.get("message"), "the answer")


def content(message: object, what: str) -> str:
    """The text of an assistant's message.

    Raises:
        Skipped: it is a refusal, a tool call or empty.
        Refused: this is no message.
    """
    if not isinstance(message, Mapping):
        raise Refused(f"{what} is no message")
    if message.get("content") in (None, "", []):
        refusal, tools = message.get("refusal"), message.get("tool_calls")
        raise Skipped("a refusal" if refusal else "a tool call" if tools else "an empty answer")
    read = messages([{**message, "role": "assistant"}], what)
    return read if isinstance(read, str) else read[0]["content"]


def messages(value: object, what: str) -> list[dict[str, str]] | str:
    """Messages as our layouts have them, or plain text.

    Raises:
        Skipped: there is an image.
        Refused: another type, or empty.
    """
    parts = [part for turn in _listed(value) if isinstance(turn, Mapping) for part in _listed(turn.get("content"))]
    if any(isinstance(part, Mapping) and "image" in str(part.get("type")) for part in parts):
        raise Skipped("an image")
    read = text(value, what)
    if is_blank(read):
        raise Refused(f"{what} is empty")
    return read if isinstance(read, str) else [turn._asdict() for turn in read]


def _listed(value: object) -> list[object]:
    return value if isinstance(value, list) else []


def _only(value: object, what: str) -> Mapping[str, object]:
    if not isinstance(value, list) or len(value) != 1 or not isinstance(value[0], Mapping):
        raise Refused(f"{what} is not a list of one object")
    return value[0]


def _has(row: Mapping[str, object], name: str, key: str) -> bool:
    value = row.get(name)
    return isinstance(value, Mapping) and key in value
