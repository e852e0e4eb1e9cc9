"""What a file of feedback holds, and which method fits it: the first thing a newcomer runs."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from valence.data.formats.load import Loaded
from valence.data.records import Problem, Record, Text

WORDS = {"label": "labels", "score": "scores", "pair": "pairs", "ranking": "rankings", "prompt": "prompts"}
COLUMNS_SHOWN = 8


@dataclass(frozen=True)
class Summary:
    """What was found.

    Args:
        shape: "labels", "scores", "pairs", "rankings", "prompts" or "mixed".
        rows: rows read, those with problems too.
        prompts: distinct prompts.
        accepted, rejected: thumbs; a pair counts one of each; None where the rows have neither labels nor pairs.
        problems: rows that cannot be used.
        method: what `align` would choose, or None where there is nothing to learn from.
        why: the reason, in one line.
        layouts: layout -> rows.
        unlabelled: completions without any verdict.
        splits: the rows' own split marks -> rows; "" where a row has none.
        score_range: lowest and highest score, if there are scores.
        mean_length: mean length of a completion, in characters.
        conflicts: completions of one prompt that have been both accepted and rejected.
        ties: pairs whose scores are equal.
        empty_prompts: rows with a completion and no prompt.
        unread: column of the files -> rows that have it, where nobody read it; most common first.
    """

    shape: str
    rows: int
    prompts: int
    accepted: int | None
    rejected: int | None
    problems: tuple[Problem, ...]
    method: str | None
    why: str
    layouts: dict[str, int]
    unlabelled: int
    splits: dict[str, int]
    score_range: tuple[float, float] | None
    mean_length: float
    conflicts: int
    ties: int
    empty_prompts: int = 0
    unread: dict[str, int] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The fields that `valence inspect --json` promises, and after them what shows a missed prompt column."""
        problems = [{"file": item.file, "line": item.line, "reason": item.reason} for item in self.problems]
        promised = ("shape", "rows", "prompts", "accepted", "rejected")
        found = {name: getattr(self, name) for name in promised}
        missed = {"empty_prompts": self.empty_prompts, "unread_columns": self.unread}
        return {**found, "problems": problems, "method": self.method, "why": self.why, **missed}


def summarize(loaded: Loaded) -> Summary:
    """Count what the files hold."""
    records = loaded.records
    shapes = Counter(record.shape for record in records)
    verdicts = [value for record in records if record.shape == "label" for value in record.values]
    judged = bool(shapes["label"] or shapes["pair"])
    scores = [value for record in records if record.scored for value in record.values]
    lengths = [length(text) for record in records for text in record.completions]
    method, why = choose_method(records)
    return Summary(
        shape=WORDS[next(iter(shapes))] if len(shapes) == 1 else "mixed",
        rows=loaded.rows,
        prompts=len({record.prompt for record in records}),
        accepted=verdicts.count(1.0) + shapes["pair"] if judged else None,
        rejected=verdicts.count(-1.0) + shapes["pair"] if judged else None,
        problems=tuple(loaded.problems),
        method=method,
        why=why,
        layouts=loaded.layouts,
        unlabelled=verdicts.count(0.0),
        splits=dict(Counter(record.split or "" for record in records)),
        score_range=(min(scores), max(scores)) if scores else None,
        mean_length=sum(lengths) / len(lengths) if lengths else 0.0,
        conflicts=_conflicts(records),
        ties=sum(record.shape == "pair" and record.scored and len(set(record.values)) == 1 for record in records),
        empty_prompts=sum(record.shape != "prompt" and not length(record.prompt) for record in records),
        unread=loaded.unread,
    )


def choose_method(records: Sequence[Record]) -> tuple[str | None, str]:
    """The method that fits the feedback as it is, and why, in one line; None where there is no feedback."""
    shapes = {record.shape for record in records}
    feedback = shapes - {"prompt"}
    bare = sum(record.shape == "prompt" for record in records)
    aside = f"; {bare} rows of a prompt only are left out (they are for valence improve)" if bare and feedback else ""
    if not feedback:
        return None, "prompts without feedback: valence improve samples answers and scores them"
    if feedback == {"label"}:
        method, why = _for_labels([int(record.values[0]) for record in records if record.shape == "label"])
    elif feedback == {"score"}:
        method, why = "dro", "one score a completion: DRO-V regresses on the scores themselves"
    elif feedback == {"pair"}:
        method, why = "dpo", "chosen and rejected for each prompt: DPO takes pairs as they are"
    elif feedback == {"ranking"}:
        method, why = _for_rankings([record for record in records if record.shape == "ranking"])
    else:
        found = ", ".join(WORDS[shape] for shape in WORDS if shape in feedback)
        method, why = "pmpo", f"mixed feedback ({found}): all of it becomes accepted and rejected, which PMPO takes"
    return method, why + aside


def _for_labels(signs: Sequence[int]) -> tuple[str | None, str]:
    """PMPO in the form that the signs allow."""
    accepted, rejected, silent = signs.count(1), signs.count(-1), signs.count(0)
    also = f", {silent} unlabelled ones for the KL" if silent else ""
    counts = f"{accepted} accepted and {rejected} rejected completions{also}"
    if accepted and rejected:
        return "pmpo", f"{counts}: PMPO-AR learns from both, however many of each"
    if accepted:
        return "pmpo", f"{counts}: PMPO-A learns from acceptances alone"
    if rejected:
        return "pmpo", f"{counts}: PMPO-R learns from rejections alone"
    return (
        None,
        "completions without a label, score or rank: --method supervised imitates them all; "
        "where a column judges them, name it with --columns",
    )


def _for_rankings(rankings: Sequence[Record]) -> tuple[str, str]:
    """REBEL needs the scores; an order alone gives pairs."""
    ordered = sum(not record.scored for record in rankings)
    if not ordered:
        return "rebel", "several scored completions a prompt: REBEL regresses on the gaps between scores"
    which = "rankings" if ordered == len(rankings) else f"{ordered} of {len(rankings)} rankings"
    return "dpo", f"{which} without scores: DPO takes every pair that the order gives"


def length(text: Text) -> int:
    """Characters of a text, or of all of its messages."""
    return len(text) if isinstance(text, str) else sum(len(turn.content) for turn in text)


def _conflicts(records: Sequence[Record]) -> int:
    """How many completions have been both accepted and rejected."""
    verdicts: defaultdict[tuple[Text, Text], set[float]] = defaultdict(set)
    for record in records:
        if record.shape == "label":
            verdicts[record.prompt, record.completions[0]].add(record.values[0])
    return sum({1.0, -1.0} <= signs for signs in verdicts.values())


def render(summary: Summary, most: int = 10) -> Any:
    """The summary as a rich renderable, with the first `most` problems."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text as Line

    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold")
    table.add_column()
    for name, value in _facts(summary):
        table.add_row(name, Line(value))
    lines = [Line(f"  {problem}", style="yellow") for problem in summary.problems[:most]]
    if len(summary.problems) > most:
        lines.append(Line(f"  and {len(summary.problems) - most} more", style="yellow"))
    return Group(table, *lines)


def _facts(summary: Summary) -> list[tuple[str, str]]:
    """What the table says, without what there is none of."""
    splits = ", ".join(f"{rows} {name or 'unmarked'}" for name, rows in summary.splits.items())
    low, high = summary.score_range or (0.0, 0.0)
    unread = [f"{name} ({rows} rows)" for name, rows in summary.unread.items()]
    more = f" and {len(unread) - COLUMNS_SHOWN} more" if len(unread) > COLUMNS_SHOWN else ""
    hint = "; if a column below is their prompt, name it with --columns prompt=…" if unread else ""
    facts = [
        ("shape", f"{summary.shape} ({', '.join(f'{rows} {name}' for name, rows in summary.layouts.items())})"),
        ("rows", f"{summary.rows}, {summary.prompts} distinct prompts"),
        (
            "verdicts",
            f"{summary.accepted} accepted, {summary.rejected} rejected" if summary.accepted is not None else "",
        ),
        ("no prompt", f"{summary.empty_prompts} rows{hint}" if summary.empty_prompts else ""),
        ("not read", ", ".join(unread[:COLUMNS_SHOWN]) + more),
        ("unlabelled", str(summary.unlabelled or "")),
        ("scores", f"{low:g} to {high:g}" if summary.score_range else ""),
        ("length", f"{summary.mean_length:.0f} characters a completion" if summary.mean_length else ""),
        ("splits", splits if set(summary.splits) != {""} else ""),
        ("conflicts", f"{summary.conflicts} completions both accepted and rejected" if summary.conflicts else ""),
        ("ties", f"{summary.ties} pairs with equal scores" if summary.ties else ""),
        ("method", f"{summary.method or 'none'}: {summary.why}"),
        ("problems", f"{len(summary.problems)} rows cannot be used" if summary.problems else "none"),
    ]
    return [(name, value) for name, value in facts if value]
