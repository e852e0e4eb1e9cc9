"""A summary of files of feedback, and the method that fits them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass

from valence.data.load import Loaded
from valence.data.tally import Tally

COLUMNS_SHOWN = 8


@dataclass(frozen=True)
class Summary:
    """The content of files of feedback.

    Args:
        loaded: the rows, the problems, the layouts and the unread columns.
        shape: "labels", "scores", "pairs", "rankings", "prompts" or "mixed".
        prompts: number of distinct prompts.
        accepted, rejected: number of completions; a pair counts as one of each. None without labels and pairs.
        method: the method that `align` chooses, or None if there is no feedback.
        why: the reason, in one line.
        unlabelled: number of completions without a label.
        splits: split mark -> rows; "" for rows without a mark.
        score_range: lowest and highest score, if there are scores.
        mean_length: mean length of a completion, in characters.
        conflicts: number of completions of a prompt that are both accepted and rejected.
        agreement: how far annotators agree (`Tally.agreement`), or None.
        ties: number of pairs with equal scores.
        empty_prompts: number of rows with a completion and no prompt.
        examples: side, such as "accepted" or "better" -> a completion that was read so, shortened.
    """

    loaded: Loaded
    shape: str
    prompts: int
    accepted: int | None
    rejected: int | None
    method: str | None
    why: str
    unlabelled: int
    splits: dict[str, int]
    score_range: tuple[float, float] | None
    mean_length: float
    conflicts: int
    agreement: tuple[int, float, float] | None
    ties: int
    empty_prompts: int
    examples: dict[str, str]

    def to_json(self) -> dict[str, object]:
        """The documented fields, then those that show a prompt column that was not recognised."""
        return {
            "shape": self.shape, "rows": self.loaded.rows, "prompts": self.prompts, "accepted": self.accepted,
            "rejected": self.rejected, "problems": [asdict(problem) for problem in self.loaded.problems],
            "method": self.method, "why": self.why, "empty_prompts": self.empty_prompts,
            "unread_columns": self.loaded.unread, "skipped": self.loaded.skipped,
            "verdict_like_columns": self.loaded.verdict_like, "examples": self.examples,
            "agreement": self.agreement,
        }  # fmt: skip


def summarize(loaded: Loaded) -> Summary:
    """What was counted while files of feedback were read."""
    tally = loaded.tally
    shapes, signs = tally.shapes, tally.signs
    judged = bool(shapes["label"] or shapes["pair"])
    method, why = choose_method(loaded)
    return Summary(
        loaded=loaded,
        shape=f"{next(iter(shapes))}s" if len(shapes) == 1 else "mixed",
        prompts=tally.prompts,
        accepted=signs[1] + shapes["pair"] if judged else None,
        rejected=signs[-1] + shapes["pair"] if judged else None,
        method=method,
        why=why,
        unlabelled=signs[0],
        splits=dict(tally.splits),
        score_range=tally.score_range,
        mean_length=tally.mean_length,
        conflicts=tally.conflicts,
        agreement=tally.agreement,
        ties=tally.ties,
        empty_prompts=tally.empty_prompts,
        examples=tally.examples,
    )


def choose_method(loaded: Loaded) -> tuple[str | None, str]:
    """(the method that fits the feedback without a conversion, the reason in one line); no method without feedback."""
    method, why = _choose(loaded.tally)
    if method is None and loaded.verdict_like:
        columns = "; ".join(f"{name} ({values})" for name, values in loaded.verdict_like.items())
        return None, f"no verdict was read, and these columns look like verdicts: {columns}: name one with `columns`"
    return method, why


def _choose(tally: Tally) -> tuple[str | None, str]:
    shapes = {shape: rows for shape, rows in tally.shapes.items() if shape != "prompt"}
    if not shapes:
        return None, "prompts without feedback: valence improve samples answers and scores them"
    if len(shapes) == 1:
        method, why = CHOICES[next(iter(shapes))](tally)
    else:
        names = ", ".join(f"{shape}s" for shape in CHOICES if shape in shapes)
        method, why = "pmpo", f"mixed feedback ({names}): PMPO learns from all of it as accepted and rejected"
    bare = tally.shapes["prompt"]
    return method, why + (f"; {bare} rows with only a prompt are dropped (valence improve uses them)" if bare else "")


def _for_labels(tally: Tally) -> tuple[str | None, str]:
    """PMPO in the form that the signs allow."""
    accepted, rejected, silent = tally.signs[1], tally.signs[-1], tally.signs[0]
    also = f", {silent} unlabelled ones for the KL" if silent else ""
    counts = f"{accepted} accepted and {rejected} rejected completions{also}"
    if accepted and rejected:
        return "pmpo", f"{counts}: PMPO-AR learns from both, however many of each"
    if accepted:
        return "pmpo", f"{counts}: PMPO-A learns from acceptances alone"
    if rejected:
        return "pmpo", f"{counts}: PMPO-R learns from rejections alone"
    return None, (
        'completions without a label, score or rank: `method="supervised"` imitates them all; if a column judges them, '
        "name it with `columns`"
    )


def _for_rankings(tally: Tally) -> tuple[str, str]:
    """REBEL if all have scores, which it needs; else DPO on the pairs of each order."""
    ordered, rankings = tally.orders, tally.shapes["ranking"]
    if not ordered:
        return "rebel", "several scored completions a prompt: REBEL regresses on the gaps between scores"
    which = "rankings" if ordered == rankings else f"{ordered} of {rankings} rankings"
    return "dpo", f"{which} without scores: DPO learns from every pair of an order"


CHOICES: dict[str, Callable[[Tally], tuple[str | None, str]]] = {
    "label": _for_labels,
    "score": lambda _: ("dro", "one score a completion: DRO-V regresses on the scores themselves"),
    "pair": lambda _: ("dpo", "chosen and rejected for each prompt: DPO learns from pairs"),
    "ranking": _for_rankings,
}
"""Shape of the feedback -> the counts of its records -> (method, reason)."""


def render(summary: Summary, most: int = 10) -> object:
    """The summary as a rich renderable, with the first `most` problems."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text as Line

    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold")
    table.add_column()
    for name, value in _facts(summary):
        table.add_row(name, Line(value))
    problems = summary.loaded.problems
    lines = [Line(f"  {problem}", style="yellow") for problem in problems[:most]]
    if len(problems) > most:
        lines.append(Line(f"  and {len(problems) - most} more", style="yellow"))
    return Group(table, *lines)


def _facts(summary: Summary) -> list[tuple[str, str]]:
    """(name, value) of each line of the table, without the empty ones."""
    splits = ", ".join(f"{rows} {name or 'unmarked'}" for name, rows in summary.splits.items())
    low, high = summary.score_range or (0.0, 0.0)
    loaded = summary.loaded
    unread = [f"{name} ({rows} rows)" for name, rows in loaded.unread.items()]
    skipped = "; ".join(f"{count} rows: {reason}" for reason, count in loaded.skipped.items())
    judged = "; ".join(f"{name} ({values})" for name, values in loaded.verdict_like.items())
    scores = f"{low:g} to {high:g}, higher is better" if summary.score_range else ""
    more = f" and {len(unread) - COLUMNS_SHOWN} more" if len(unread) > COLUMNS_SHOWN else ""
    hint = "; if a column below is their prompt, name it with `columns`: prompt=…" if unread else ""
    facts = [
        ("shape", f"{summary.shape} ({', '.join(f'{rows} {name}' for name, rows in loaded.layouts.items())})"),
        ("rows", f"{loaded.rows}, {summary.prompts} distinct prompts"),
        ("verdicts", "" if summary.accepted is None else f"{summary.accepted} accepted, {summary.rejected} rejected"),
        ("no prompt", f"{summary.empty_prompts} rows{hint}" if summary.empty_prompts else ""),
        *((f"read as {side}", example) for side, example in summary.examples.items()),
        ("skipped", skipped),
        ("not read", ", ".join(unread[:COLUMNS_SHOWN]) + more),
        ("like verdicts", f"{judged}, and not read: name one with `columns`" if judged else ""),
        ("unlabelled", str(summary.unlabelled or "")),
        ("scores", f"{scores} (`labels` such as {_bounds(low, high)} makes verdicts of them)" if scores else ""),
        ("length", f"{summary.mean_length:.0f} characters a completion" if summary.mean_length else ""),
        ("splits", splits if set(summary.splits) != {""} else ""),
        ("agreement", agreed(summary)),
        ("conflicts", f"{summary.conflicts} completions both accepted and rejected" if summary.conflicts else ""),
        ("ties", f"{summary.ties} pairs with equal scores" if summary.ties else ""),
        ("method", f"{summary.method or 'none'}: {summary.why}"),
        ("problems", f"{len(loaded.problems)} rows cannot be used" if loaded.problems else "none"),
    ]
    return [(name, value) for name, value in facts if value]


def agreed(summary: Summary) -> str:
    """How far several annotators agree, in words; "" where no two judged the same."""
    if summary.agreement is None:
        return ""
    several, share, alpha = summary.agreement
    return f"{share:.0%} of annotators' pairs on {several} answers or pairs agree (Krippendorff's alpha {alpha:.2f})"


def _bounds(low: float, high: float) -> str:
    """Bounds that split a range in three."""
    return f"accept>={high - (high - low) / 4:.3g},reject<={low + (high - low) / 4:.3g}"
