"""Chainlit: thumbs on the steps of a thread, and the human scores of Literal AI.

Read from the wheel chainlit 2.12.0: `types.py`, `step.py`, `message.py`,
`data/{sql_alchemy,chainlit_data_layer,dynamodb, literalai}.py` and the compiled client; Chainlit/docs
`data-layers/sqlalchemy.mdx`; Literal AI's SDK `literalai/observability/{step,generation}.py` (04bf82d, 1e05730).
Chainlit has no export button: these are the JSON of a data layer and the tables of its database.

Shapes: threads with their `steps` (`get_thread`, DynamoDB, Literal AI); the tables `feedbacks` (SQLAlchemy) and
`Feedback` (the official data layer), joined with the table of steps through `gather`.

Value 1 is a thumb up, 0 a thumb down. The client of Chainlit 2 votes on the run: its answer is the last assistant
message below it. The prompt is that of the model call which wrote the answer, if it was kept (system prompt
included), else the messages of the thread before the run.

Skipped: threads without a vote, error messages, empty answers, votes on other steps, scores of judge models.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence

from valence.data.formats.row import Refused, Skipped
from valence.data.formats.values import brief, message, number

NAME = "Chainlit"

Step = Mapping[str, object]

THUMBS = ("user-feedback", "user_feedback")
"""The names of Chainlit's own thumb, in Literal AI and in the official data layer."""
THREAD = "THREAD"
"""The field for all steps of a step's thread, which `gather` adds."""
JOIN = "(`join` the table of steps: steps.csv on=forId=id, or Step.jsonl on=stepId=id)"
ROLES = {"user_message": "user", "assistant_message": "assistant"}


def matches(row: Mapping[str, object]) -> bool:
    """Whether a row is a thread or a feedback of Chainlit."""
    steps = row.get("steps")
    if isinstance(steps, list) and steps and isinstance(steps[0], Mapping):
        return "threadId" in steps[0] and "type" in steps[0]
    return "value" in row and "id" in row and ("forId" in row or row.get("name") == "user_feedback")


def joins(row: Mapping[str, object]) -> bool:
    """Whether a row is of the table of steps, which `gather` makes joinable."""
    return all(name in row for name in ("id", "threadId", "type", "name"))


def gather(steps: Iterable[Step]) -> Iterator[dict[str, object]]:
    """Every step with all steps of its thread."""
    threads: dict[str, list[Step]] = {}
    found = [step for step in steps if isinstance(step.get("threadId"), str)]
    for step in found:
        threads.setdefault(str(step["threadId"]), []).append(step)
    for step in found:
        yield {**step, THREAD: threads[str(step["threadId"])]}


def rows(row: Mapping[str, object]) -> Iterator[dict[str, object] | Skipped]:
    """Every vote in a thread, or the one vote of a feedback and its joined step.

    Raises:
        Refused: votes that cannot be used, after all others were given.
    """
    if "steps" in row:
        steps = _steps(row["steps"])
        votes = [(step, vote) for step in steps for vote in _votes(step)]
        who = row.get("userIdentifier") or row.get("userId") or row.get("participantId")
    else:
        joined = row.get("JOINED")
        if row.get("forId") is None and row.get("stepId") is None:
            raise Refused("a vote on a step that was deleted")
        if not isinstance(joined, Mapping) or THREAD not in joined:
            raise Refused(f"a vote without its thread {JOIN}")
        steps, who = _steps(joined[THREAD]), None
        votes = [(joined, {"value": row.get("value"), "comment": row.get("comment")})]
    if not votes:
        yield Skipped("a thread without a vote")
    refused = []
    for step, vote in votes:
        try:
            found = _voted(step, vote, steps)
        except Refused as reason:
            refused.append(str(reason))
        else:
            yield {**found, "annotator": who} if isinstance(found, dict) and who else found
    if refused:
        raise Refused(refused[0] if len(refused) == 1 else f"{len(refused)} votes, the first: {refused[0]}")


def _votes(step: Step) -> list[Mapping[str, object]]:
    """The votes that a step of a thread holds."""
    scores = step.get("scores")
    votes = [step.get("feedback"), *(scores if isinstance(scores, list) else ())]
    return [vote for vote in votes if isinstance(vote, Mapping) and "value" in vote]


def _voted(step: Step, vote: Mapping[str, object], steps: Sequence[Step]) -> dict[str, object] | Skipped:
    """The judged answer, its prompt and the verdict."""
    if vote.get("type") in ("AI", "CODE"):
        return Skipped("a score of a judge model")
    answer, below = step, [each for each in steps if each.get("parentId") == step.get("id")]
    if step.get("type") == "run":
        written = [each for each in _inside(step, steps) if each.get("type") == "assistant_message"]
        if not written:
            raise Refused("no answer below the run that was voted on")
        answer, below = written[-1], _inside(step, steps)
    elif step.get("type") == "assistant_message":
        below = [each for each in steps if each.get("parentId") == step.get("parentId") is not None]
    elif step.get("type") == "llm":
        below = [step]
    else:
        return Skipped("a vote on a step that is no answer")
    if answer.get("isError") in (True, "t", "true", "True"):
        return Skipped("an error message")
    completion = _text(answer)
    if not completion.strip():
        return Skipped("an empty answer")
    found: dict[str, object] = {"prompt": _asked(completion, below) or _before(answer, below, steps)}
    found |= {"completion": completion, **_verdict(vote)}
    return {**found, "comment": vote["comment"]} if vote.get("comment") else found


def _verdict(vote: Mapping[str, object]) -> dict[str, object]:
    """A thumb as a label, any other score of Literal AI as a score."""
    name, value = vote.get("name"), vote.get("value")
    if isinstance(name, str) and name not in THUMBS and "type" in vote:
        return {"score": number(value, f"the score {name}"), "feedback_name": name}
    thumb = float(value) if isinstance(value, bool) else number(value, "value")
    if thumb not in (0, 1):
        raise Refused(f"value is {brief(value)}, not 1 or 0")
    return {"label": thumb == 1, **({"feedback_name": name} if isinstance(name, str) else {})}


def _asked(completion: str, below: Sequence[Step]) -> object:
    """The prompt of the model call that wrote the answer, or None."""
    for step in below:
        made = step.get("generation")
        made = _loaded(made) if isinstance(made, str) else made
        if not isinstance(made, Mapping):
            continue
        written, turns = made.get("messageCompletion"), made.get("messages")
        if isinstance(written, Mapping) and isinstance(turns, list) and turns:
            content = written.get("content")
            if isinstance(content, str) and content.strip() == completion.strip():
                return [message(each, "messages")._asdict() for each in turns]
        prompt, content = made.get("prompt"), made.get("completion")
        if isinstance(prompt, str) and isinstance(content, str) and content.strip() == completion.strip():
            return prompt
    return None


def _before(answer: Step, below: Sequence[Step], steps: Sequence[Step]) -> list[dict[str, str]]:
    """The messages of the thread before the answer, without others of the same run."""
    same = [each.get("id") for each in below]
    prompt: list[dict[str, str]] = []
    for step in steps:
        if step.get("id") == answer.get("id"):
            break
        role = ROLES.get(str(step.get("type")))
        failed = step.get("isError") in (True, "t", "true", "True")
        if role and not failed and (role == "user" or step.get("id") not in same) and _text(step).strip():
            prompt.append({"role": role, "content": _text(step)})
    if not any(each["role"] == "user" for each in prompt):
        raise Refused("no message of the user before the answer")
    return prompt


def _inside(step: Step, steps: Sequence[Step]) -> list[Step]:
    """The steps below a step, at any depth, in their order."""
    names = {str(step.get("id"))}
    for _ in steps:
        more = names | {str(each.get("id")) for each in steps if str(each.get("parentId")) in names}
        if more == names:
            break
        names = more
    return [each for each in steps if str(each.get("id")) in names and each.get("id") != step.get("id")]


def _steps(value: object) -> list[Step]:
    """The steps of a thread in their order in time."""
    steps = [step for step in value if isinstance(step, Mapping)] if isinstance(value, list) else []
    return sorted(steps, key=lambda step: str(step.get("createdAt") or step.get("startTime") or step.get("start")))


def _text(step: Step) -> str:
    """What a message says."""
    output = step.get("output")
    output = output.get("content") if isinstance(output, Mapping) else output
    if output is not None and not isinstance(output, str):
        raise Refused(f"a message's output is {brief(output)}, not text")
    return output or ""


def _loaded(text: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
