"""The report of a run and the page of a comparison: HTML with figures, curves and samples that loads nothing else.

All model text is escaped, so a completion cannot run anything in the reader's browser.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from valence.evaluation.pictures import image_tag, png
from valence.evaluation.statistics import WinRate

CURVES = (
    ("Loss", ("loss",)),
    ("Training reward, less the KL penalty", ("shaped_reward",)),
    ("Reward of fresh samples", ("eval/reward", "eval/gold")),
    ("Regression error and variance of the reward gaps", ("regression_error", "reward_gap_variance")),
    ("KL on fresh samples, nats per sample", ("eval/kl_policy_ref", "eval/kl_ref_policy")),
    ("Change of log-likelihood from the reference, nats", ("accepted_drift", "rejected_drift")),
    ("Held-out accuracy of the implicit reward", ("eval/implicit_reward_accuracy",)),
    ("Ordinary text, nats per token (a rise is capability lost)", ("eval/ordinary_text_nll",)),
    ("How much images of one prompt differ", ("eval/pixel_spread",)),
    ("Tokens per second", ("tokens_per_second",)),
    ("Images per second", ("images_per_second",)),
)
"""Title of each plot, and the metrics that it shows."""

EXPLANATIONS = {
    "kl_policy_ref": "KL(π‖π_ref), nats per sample, on the policy's samples",
    "kl_ref_policy": "KL(π_ref‖π), nats per sample, on the reference's samples",
    "ordinary_text_nll": "negative log-likelihood of plain prose, nats per token: a rise is capability lost",
    "implicit_reward_accuracy": "how often log π/π_ref ranks the better of two held-out completions higher",
    "reward": "mean reward of the samples",
    "reward_95_half_width": "half the width of the 95% interval of reward",
    "gold": "mean gold reward, which the policy does not learn from (with a pairwise judge: share of wins against the "
    "initial policy)",
    "gold_95_half_width": "half the width of the 95% interval of gold",
    "gold_win_rate": "how often gold prefers the sample to the initial policy's for the same prompt",
    "gold_win_rate_95_half_width": "half the width of the 95% interval of gold_win_rate",
    "distinct_2": "share of distinct word pairs in the samples",
    "pixel_spread": "how much images of one prompt differ, 0 to 1: near 0 the policy draws one image over and over",
    "mean_words": "words per sample",
    "truncated": "share of samples cut at the length limit",
}

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #1a1a1a; }
h1 { font-size: 1.5rem } h2 { font-size: 1.15rem; margin-top: 2rem } .note { color: #666; font-size: .9em }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums } img { max-width: 100% }
td, th { padding: .35rem .6rem; text-align: left; vertical-align: top; border-bottom: 1px solid #ddd }
.facts td:first-child { font-weight: bold }
.samples td { width: 40%; white-space: pre-wrap; overflow-wrap: anywhere } .samples td:first-child { width: 20% }
"""
MAX_SAMPLES, MAX_PAIRS = 24, 100
"""Samples shown in a report, and pairs shown in a comparison."""


FIGURES_HEAD = ("measure", "before", "after", "meaning")


def figures_table(before: Mapping[str, float], after: Mapping[str, float]) -> list[tuple[str, str, str, str]]:
    """The row of each figure in `after`, as text; see `FIGURES_HEAD`."""
    return [
        (name, f"{before.get(name, float('nan')):.4f}", f"{value:.4f}", EXPLANATIONS.get(name, ""))
        for name, value in after.items()
    ]


def curves_figure(rows: Sequence[Mapping[str, Any]]) -> Any:
    """The curves of a run as a matplotlib figure, one plot for each entry of `CURVES` that `rows` has metrics of.

    Args:
        rows: the lines of metrics.jsonl.
    """
    from matplotlib.figure import Figure

    plots = [(title, [name for name in names if any(name in row for row in rows)]) for title, names in CURVES]
    plots = [(title, names) for title, names in plots if names]
    height = max(1, (len(plots) + 1) // 2)
    figure = Figure(figsize=(10, 2.6 * height))
    axes = figure.subplots(height, 2, squeeze=False)
    for axis, (title, names) in zip(axes.flat, plots, strict=False):
        for name in names:
            points = [(row["step"], row[name]) for row in rows if name in row]
            marker = "o" if len(points) < 30 else None
            label = name.removeprefix("eval/").replace("_", " ")
            axis.plot(*zip(*points, strict=True), marker=marker, markersize=3, linewidth=1.2, label=label)
        axis.set_title(title, fontsize=9)
        axis.tick_params(labelsize=8)
        axis.set_xlabel("step", fontsize=8)
        axis.grid(alpha=0.25)
        if len(names) > 1:
            axis.legend(fontsize=7)
    for axis in axes.flat[len(plots) :]:
        axis.set_visible(False)
    figure.tight_layout()
    return figure


def _table(kind: str, head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [("th", head), *(("td", row) for row in rows)]
    cells = ("".join(f"<{tag}>{html.escape(str(cell))}</{tag}>" for cell in row) for tag, row in lines)
    return f"<table class='{kind}'>{''.join(f'<tr>{line}</tr>' for line in cells)}</table>"


def _write_page(path: Path, title: str, heading: str, body: str) -> None:
    head = f"<meta charset=utf-8><title>{html.escape(title)}</title><style>{STYLE}</style>"
    page = f"<!doctype html><html lang=en><head>{head}</head><body><h1>{html.escape(heading)}</h1>{body}</body></html>"
    path.write_text(page, encoding="utf-8")


def write_report(
    path: Path, facts: Mapping[str, str], rows: Sequence[Mapping[str, Any]], samples: Sequence[Mapping[str, str]],
    before: Mapping[str, float], after: Mapping[str, float], *, section: str = "",
) -> None:  # fmt: skip
    """Write the report of a run.

    Args:
        facts: settings of the run by name; "method" and "feedback" or "prompts" make the title.
        rows: the lines of metrics.jsonl.
        samples: `{"prompt", "before", "after"}`.
        before, after: the first and the last evaluation's figures.
        section: another part of the page, as HTML whose texts are already escaped.
    """
    names = ("prompt", "before", "after")
    shown = [[row[name] for name in names] for row in samples[:MAX_SAMPLES]]
    parts = [
        _table("facts", ("setting", "value"), facts.items()),
        "<h2>Before and after</h2>",
        _table("figures", FIGURES_HEAD, figures_table(before, after)),
        "<h2>Curves</h2>",
        image_tag(png(curves_figure(rows)), "curves of the run"),
        section,
        f"<h2>Samples</h2>{_table('samples', names, shown)}" if shown else "",
    ]
    heading = f"Valence: {facts.get('method', '')} on {facts.get('feedback') or facts.get('prompts', '')}"
    _write_page(path, "Valence run", heading, "".join(parts))


def write_comparison(
    path: Path, first: str, second: str, judge: str, found: WinRate, samples: Sequence[Mapping[str, Any]]
) -> None:
    """Write the page of a comparison; `samples` hold "prompt", "first", "second" and "verdict"."""
    shown = [[row[name] for name in ("prompt", "first", "second", "verdict")] for row in samples[:MAX_PAIRS]]
    table = _table("samples", ("prompt", first, second, "P(first is better)"), shown)
    sentence = html.escape(f"{found.sentence(first, second)}, judged by {judge}.")
    _write_page(path, f"{first} against {second}", f"{first} against {second}", f"<p>{sentence}</p>{table}")
