"""Records from raw fields, with the checks that all layouts share, and the fields that layouts read alike."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise, takewhile

from valence.data.formats import row as names
from valence.data.formats.row import Refused, Row
from valence.data.formats.values import is_blank, number, text
from valence.data.records import Message, Record, Text

ASKING = ("user", "system", "developer")
HH_TURN = "\n\nAssistant:"


def label(prompt: object, completion: object, verdict: int) -> Record:
    """One completion, accepted (+1), rejected (-1) or unlabelled (0)."""
    context, completions = _parts(prompt, (completion,), ("completion",))
    return Record("label", context, completions, (float(verdict),))


def score(prompt: object, completion: object, reward: float) -> Record:
    """One completion with its reward."""
    context, completions = _parts(prompt, (completion,), ("completion",))
    return Record("score", context, completions, (reward,), scored=True)


def pair(
    prompt: object, chosen: object, rejected: object, scores: tuple[float, float] | None, margin: float | None = None
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


def ranking(prompt: object, completions: object, scores: object, ranks: object = None) -> Record:
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
    context, texts = _parts(prompt, completions, [f"completions[{index}]" for index in range(len(completions))])
    return Record("ranking", context, texts, values, scored=points is not None)


def prompt_only(prompt: object) -> Record:
    """A prompt without a completion."""
    context = text(prompt, "prompt")
    if is_blank(context):
        raise Refused("prompt is empty, and the row has no completion")
    return Record("prompt", context)


def prompt_of(row: Row) -> object:
    """The row's prompt, behind its system prompt if it has one; None if it has no prompt."""
    prompt = row.take(row.first(names.PROMPT))
    turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    if isinstance(turns, list) and (opening := system_of(row)):
        return [*opening, *turns]
    return prompt


def system_of(row: Row) -> list[dict[str, str]]:
    """The row's system prompt as a list of one message; empty if the row has none or a blank one."""
    system = row.peek("system")
    if not isinstance(system, str):
        return []
    row.take("system")
    return [{"role": "system", "content": system}] if system.strip() else []


def answer_of(row: Row, prompt: object) -> Record | None:
    """The row's pair, or else its completion, as answers to `prompt`; None if it has neither."""
    chosen, rejected = row.first(names.CHOSEN), row.first(names.REJECTED)
    if chosen and rejected:
        return pair_of(row, prompt, row.take(chosen), row.take(rejected))
    completion = row.first(names.COMPLETION)
    return single_of(row, prompt, row.take(completion)) if completion else None


def single_of(row: Row, prompt: object, completion: object) -> Record:
    """One completion with its label if the row has one, else with its score, else unlabelled."""
    found = {name: row.verdict(name) for name in names.LABEL if name in row.fields}
    signs = {verdict for verdict in found.values() if verdict}
    if len(signs) > 1:
        raise Refused(f"{' and '.join(found)} contradict each other")
    key = row.first(names.SCORE)
    if signs or not key or row.peek(key) == "":
        return label(prompt, completion, signs.pop() if signs else 0)
    if row.verdicts.rule.given or row.verdicts.is_word(row.peek(key), spelled=True):
        return label(prompt, completion, row.verdict(key))
    return score(prompt, completion, row.number(key))


def pair_of(row: Row, prompt: object, chosen: object, rejected: object) -> Record:
    """Two completions with the row's scores of them or its margin."""
    scores = both(row, row.first(names.SCORE_CHOSEN), row.first(names.SCORE_REJECTED))
    margin = number(row.take("margin"), "margin") if scores is None and row.has("margin") else None
    return pair(prompt, chosen, rejected, scores, margin)


def both(row: Row, first: str | None, second: str | None) -> tuple[float, float] | None:
    """Two scores, or None if the row has neither."""
    there = [name for name in (first, second) if name and row.has(name)]
    if len(there) == 1:
        raise Refused(f"{there[0]} without a score of the other completion")
    return (number(row.take(first), there[0]), number(row.take(second), there[1])) if there else None


def shared_text(chosen: str, rejected: str) -> tuple[str, str, str]:
    """(prompt, chosen, rejected) of two texts with the same beginning, split before a space and not within a word.

    Transcripts in the Anthropic HH form are split after the last "Assistant:" that both have.
    """
    alike = takewhile(lambda letters: letters[0] == letters[1], zip(chosen, rejected, strict=False))
    apart = sum(1 for _ in alike)
    turn = chosen.rfind(HH_TURN, 0, apart)
    if turn >= 0:
        cut = turn + len(HH_TURN)
    else:
        last = min(apart, len(chosen) - 1, len(rejected) - 1)
        cut = next((index for index in range(last, 0, -1) if chosen[index].isspace() and rejected[index].isspace()), 0)
    return chosen[:cut], chosen[cut:], rejected[cut:]


def _parts(prompt: object, completions: Sequence[object], fields: Sequence[str]) -> tuple[Text, tuple[Text, ...]]:
    """(prompt, completions), all plain text or all messages. The turns that conversations share are the prompt."""
    context: Text = "" if prompt is None or prompt == [] else text(prompt, "prompt")
    texts = tuple([text(value, name) for value, name in zip(completions, fields, strict=True)])
    plain = isinstance(context, str)
    for value, name in zip(texts, fields, strict=True):
        plain = plain and isinstance(value, str)
        if is_blank(value):
            raise Refused(f"{name} is empty")
    if plain:
        return context, texts
    turns = [(Message("assistant", value),) if isinstance(value, str) else value for value in texts]
    # The last turn of a conversation is never shared.
    alike = takewhile(lambda same: len(set(same)) == 1, zip(*(turn[:-1] for turn in turns), strict=False))
    cut = sum(1 for _ in alike)
    shared, answers = turns[0][:cut], tuple(turn[cut:] for turn in turns)
    if len(answers) > 1 and any(answer[0].role in ASKING for answer in answers):
        raise Refused(f"{' and '.join(fields)} answer different prompts")
    for answer, name in zip(answers, fields, strict=True):
        if answer[-1].role != "assistant" or is_blank(answer[-1:]):
            raise Refused(f"{name} does not end with an answer of the assistant")
    if turns[0][0].role in ASKING:
        if context and shared[: len(context)] != context and all(turn.content != context for turn in shared):
            raise Refused(f"{' and '.join(fields)} begin with another prompt than the row's")
        return shared, answers
    if isinstance(context, str):
        context = (Message("user", context),) if context else ()
    return (*context, *shared) or "", answers


def _numbers(values: object, what: str, length: int) -> tuple[float, ...]:
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
