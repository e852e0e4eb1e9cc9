"""Records from raw fields, with the checks that all layouts share."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from valence.data.formats.row import Refused
from valence.data.formats.values import is_blank, number, text
from valence.data.records import Message, Record, Text

ASKING = ("user", "system", "developer")
HH_TURN = "\n\nAssistant:"


def label(prompt: Any, completion: Any, sign: int) -> Record:
    """One completion, accepted (+1), rejected (-1) or unlabelled (0)."""
    context, completions = _parts(prompt, (completion,), ("completion",))
    return Record("label", context, completions, (float(sign),))


def score(prompt: Any, completion: Any, reward: float) -> Record:
    """One completion with its reward."""
    context, completions = _parts(prompt, (completion,), ("completion",))
    return Record("score", context, completions, (reward,), scored=True)


def pair(
    prompt: Any, chosen: Any, rejected: Any, scores: tuple[float, float] | None = None, margin: float | None = None
) -> Record:
    """Two completions, the better one first. If `prompt` is None, the prompt is the beginning that they share.

    Raises:
        Refused: the two are equal, or the scores or the margin say that the second is better.
    """
    if prompt is None and isinstance(chosen, str) and isinstance(rejected, str) and chosen != rejected:
        prompt, chosen, rejected = shared_text(chosen, rejected)
    context, completions = _parts(prompt, (chosen, rejected), ("chosen", "rejected"))
    if completions[0] == completions[1]:
        raise Refused("chosen and rejected are the same")
    if scores is not None and scores[0] < scores[1]:
        raise Refused(f"chosen scores {scores[0]:g}, less than rejected with {scores[1]:g}")
    if margin is not None and margin < 0:
        raise Refused(f"margin is {margin:g}, which makes rejected the better one")
    return Record("pair", context, completions, scores or (), scored=scores is not None, margin=margin)


def ranking(prompt: Any, completions: Any, scores: Any = None, ranks: Any = None) -> Record:
    """Several completions of one prompt, with scores (higher is better) or ranks (1 is best).

    Raises:
        Refused: lengths that differ, fewer than two completions, neither scores nor ranks, or both in contradiction.
    """
    if not isinstance(completions, list):
        raise Refused("completions is not a list")
    if len(completions) < 2:
        raise Refused(f"completions has {len(completions)} items: a ranking needs two or more")
    if scores is None and ranks is None:
        raise Refused("completions without scores or ranks")
    points = None if scores is None else _numbers(scores, "scores", len(completions))
    places = None if ranks is None else _numbers(ranks, "ranks", len(completions))
    if points is not None and places is not None and _disagree(points, places):
        raise Refused("scores and ranks contradict each other")
    values = points if points is not None else tuple(-place for place in places or ())
    names = tuple(f"completions[{index}]" for index in range(len(completions)))
    context, texts = _parts(prompt, tuple(completions), names)
    return Record("ranking", context, texts, values, scored=points is not None)


def prompt_only(prompt: Any) -> Record:
    """A prompt without a completion."""
    context = text(prompt, "prompt")
    if is_blank(context):
        raise Refused("prompt is empty, and the row has no completion")
    return Record("prompt", context)


def shared_text(chosen: str, rejected: str) -> tuple[str, str, str]:
    """(prompt, chosen, rejected) of two texts with the same beginning, split before a space and not within a word.

    Transcripts in the Anthropic HH form are split after the last "Assistant:" that both have.
    """
    letters = zip(chosen, rejected, strict=False)
    apart = next(
        (index for index, (left, right) in enumerate(letters) if left != right), min(len(chosen), len(rejected))
    )
    common = chosen[:apart]
    turn = common.rfind(HH_TURN)
    if turn >= 0:
        cut = turn + len(HH_TURN)
    else:
        last = min(apart, len(chosen) - 1, len(rejected) - 1)
        cut = next((index for index in range(last, 0, -1) if chosen[index].isspace() and rejected[index].isspace()), 0)
    return chosen[:cut], chosen[cut:], rejected[cut:]


def _parts(prompt: Any, completions: Sequence[Any], names: Sequence[str]) -> tuple[Text, tuple[Text, ...]]:
    """(prompt, completions), all plain text or all messages. The turns that conversations share are the prompt."""
    context: Text = "" if prompt is None or prompt == [] else text(prompt, "prompt")
    texts = tuple(text(value, name) for value, name in zip(completions, names, strict=True))
    for value, name in zip(texts, names, strict=True):
        if is_blank(value):
            raise Refused(f"{name} is empty")
    if isinstance(context, str) and all(isinstance(value, str) for value in texts):
        return context, texts
    turns = [(Message("assistant", value),) if isinstance(value, str) else value for value in texts]
    shared, answers = _separate(turns)
    if len(answers) > 1 and any(answer[0].role in ASKING for answer in answers):
        raise Refused(f"{' and '.join(names)} answer different prompts")
    for answer, name in zip(answers, names, strict=True):
        if answer[-1].role != "assistant" or is_blank(answer[-1:]):
            raise Refused(f"{name} does not end with an answer of the assistant")
    if turns[0][0].role in ASKING:
        if context and shared[: len(context)] != context and all(turn.content != context for turn in shared):
            raise Refused(f"{' and '.join(names)} begin with another prompt than the row's")
        return shared, answers
    if isinstance(context, str):
        context = (Message("user", context),) if context else ()
    return (*context, *shared) or "", answers


def _separate(
    conversations: Sequence[tuple[Message, ...]],
) -> tuple[tuple[Message, ...], tuple[tuple[Message, ...], ...]]:
    """(the leading turns that all conversations share, the other turns of each, at least its last)."""
    most = min(len(conversation) for conversation in conversations) - 1
    alike = (len({conversation[index] for conversation in conversations}) == 1 for index in range(most))
    cut = next((index for index, same in enumerate(alike) if not same), most)
    return conversations[0][:cut], tuple(conversation[cut:] for conversation in conversations)


def _numbers(values: Any, what: str, length: int) -> tuple[float, ...]:
    """A list of `length` finite numbers."""
    if not isinstance(values, list):
        raise Refused(f"{what} is not a list")
    if len(values) != length:
        raise Refused(f"{length} completions but {len(values)} {what}")
    return tuple(number(value, f"{what}[{index}]") for index, value in enumerate(values))


def _disagree(scores: Sequence[float], ranks: Sequence[float]) -> bool:
    """Whether a completion with a better rank has a lower score."""
    both = sorted(zip(ranks, (-score for score in scores), strict=True))
    return any(later[0] > earlier[0] and later[1] < earlier[1] for earlier, later in pairwise(both))
