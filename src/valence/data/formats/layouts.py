"""Valence's own layouts, and the table of all layouts, which are tried in order.

A layout returns a Record, or None if the row has another layout. It raises Refused if the row has this layout and
cannot be used.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from valence.data.formats import build, tools
from valence.data.formats import row as names
from valence.data.formats.row import Refused, Row
from valence.data.formats.values import number
from valence.data.records import Record


def ranking(row: Row) -> Record | None:
    """Several completions with scores or ranks."""
    key = row.first(names.COMPLETIONS)
    if key is None:
        return None
    scores, ranks = row.take(row.first(names.SCORES)), row.take(row.first(names.RANKS))
    return build.ranking(build.prompt_of(row), row.take(key), scores, ranks)


def implicit_pair(row: Row) -> Record | None:
    """TRL's pairs without a prompt field: the prompt is the beginning that both completions share."""
    return pair(row) if row.first(names.CHOSEN) and not row.first(names.PROMPT) else None


def pair(row: Row) -> Record | None:
    """A chosen and a rejected completion, with a prompt or with a beginning that they share."""
    chosen, rejected = row.first(names.CHOSEN), row.first(names.REJECTED)
    if chosen is None and rejected is None:
        return None
    if chosen is None or rejected is None:
        raise Refused(f"{chosen or rejected} without {'chosen' if chosen is None else 'rejected'}")
    single, judged = row.first(names.COMPLETION), row.first((*names.LABEL, *names.SCORE))
    if single and judged:
        raise Refused(f"a pair and a {single} with {judged} in one row: keep one of the two")
    return build.pair_of(row, build.prompt_of(row), row.take(chosen), row.take(rejected))


def winner(row: Row) -> Record | None:
    """Two answers and which of them won: a word, a model's name, a probability or votes."""
    key = row.first(names.WINNER)
    sides = next((pair for pair in zip(names.FIRST, names.SECOND, strict=True) if row.has(*pair)), None)
    if key is None or sides is None:
        return None
    texts, models = [row.take(side) for side in sides], [row.peek(name) for name in ("model_a", "model_b")]
    rate = row.verdicts.winner(row.take(key), key, texts, models)
    row.used.update(("model_a", "model_b"))
    better, worse = texts if rate > 0.5 else reversed(texts)
    record = build.pair(build.prompt_of(row), better, worse, None)
    return replace(record, rate=max(rate, 1 - rate))


def single(row: Row) -> Record | None:
    """One completion with a label, a score or neither."""
    judged = _judged(row)
    bare = ("text",) if judged or not row.first(names.PROMPT) else ()
    key = row.first((*names.COMPLETION, *(names.ANSWER if judged else ()), *bare))
    if key is None:
        return None
    return build.single_of(row, build.prompt_of(row), row.take(key))


def prompts(row: Row) -> Record | None:
    """A prompt without feedback, as in verl's and other tools' prompt-only rows."""
    judged = _judged(row)
    if judged:
        raise Refused(f"{judged} without a completion")
    prompt = build.prompt_of(row)
    return None if prompt is None else build.prompt_only(prompt)


def _judged(row: Row) -> str | None:
    """The name of the first field of the row that is feedback."""
    return next((name for name in names.FEEDBACK if name in row.fields and _is_verdict(row, name)), None)


def _is_verdict(row: Row, name: str) -> bool:
    """Whether a field is feedback. OpenRLHF's prompts have the right answer in `label`, which is not."""
    value = row.peek(name)
    if isinstance(value, list) and name not in names.LABEL:
        return True
    if row.verdicts.is_word(value) or row.verdicts.rule.names(value):
        return True
    try:
        return name not in names.LABEL and bool(number(value, name))
    except Refused:
        return False


Layout = tuple[str, Callable[[Row], Record | None]]
LAYOUTS: tuple[Layout, ...] = (
    ("hosted service", tools.hosted),
    ("HALOs", tools.halos),
    ("torchtune", tools.torchtune),
    ("REBEL", tools.rebel),
    ("UltraFeedback", tools.ultrafeedback),
    ("TRL stepwise", tools.stepwise),
    ("conversation", tools.conversation),
    ("LLaMA-Factory alpaca", tools.alpaca),
    ("", ranking),
    ("implicit-prompt", implicit_pair),
    ("", pair),
    ("winner", winner),
    ("", single),
    ("", prompts),
)


MOST_KNOWN = 1000
Known = dict[tuple[str, ...], Sequence[Layout]]
"""Names of a row's fields -> the layouts that can fit a row with these names."""


def detect(row: Row, known: Known) -> tuple[str, Record]:
    """(the layout of the row and its shape, such as "pair" or "HALOs label"; the row as a Record).

    A layout that does not fit, and has looked at no value to see that, fits no row with the same names: `known` keeps
    the others.

    Raises:
        Refused: no layout fits, or the row cannot be used.
    """
    names = tuple(row.fields)
    unfit: list[Layout] = []
    for each in known.get(names, LAYOUTS):
        row.looked = False
        name, layout = each
        record = layout(row)
        if record is not None:
            if names not in known and len(known) < MOST_KNOWN:
                known[names] = [each for each in LAYOUTS if each not in unfit]
            return f"{name} {record.shape}" if name else record.shape, record
        if not row.looked:
            unfit.append(each)
    columns = ", ".join(list(row.fields)[:6]) or "none"
    raise Refused(f"no prompt, completion, pair or ranking among its columns ({columns}): name them with `columns`")
