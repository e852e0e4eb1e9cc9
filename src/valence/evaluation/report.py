"""The report of a run: one HTML page with its figures, curves and samples, and nothing loaded from elsewhere.

All model text is escaped, so a completion cannot run anything in the reader's browser.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from valence.evaluation.pictures import image_tag, png

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
h1 { font-size: 1.5rem } h2 { font-size: 1.15rem; margin-top: 2rem }
table { border-collapse: collapse; width: 100% } td, th { padding: .35rem .6rem; text-align: left; vertical-align: top;
border-bottom: 1px solid #ddd } td.number { font-variant-numeric: tabular-nums; white-space: nowrap }
.samples td { width: 40%; white-space: pre-wrap; overflow-wrap: anywhere } .samples td:first-child { width: 20% }
.note { color: #666; font-size: .9em } img { max-width: 100% }
"""


def plot_curves(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """The figure as PNG; see `curves_figure`."""
    return png(curves_figure(rows))


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


def _facts_table(facts: Mapping[str, str]) -> str:
    rows = "".join(
        f"<tr><th>{html.escape(name)}</th><td>{html.escape(value)}</td></tr>" for name, value in facts.items()
    )
    return f"<table>{rows}</table>"


def _figures_table(before: Mapping[str, float], after: Mapping[str, float]) -> str:
    rows = [
        f"<tr><th>{html.escape(name)}<br><span class=note>{html.escape(EXPLANATIONS.get(name, ''))}</span></th>"
        f"<td class=number>{before.get(name, float('nan')):.4f}</td><td class=number>{value:.4f}</td></tr>"
        for name, value in after.items()
    ]
    return f"<table><tr><th>measure</th><th>before</th><th>after</th></tr>{''.join(rows)}</table>"


def _samples_table(samples: Sequence[Mapping[str, str]], most: int) -> str:
    rows = [
        "<tr>" + "".join(f"<td>{html.escape(row[key])}</td>" for key in ("prompt", "before", "after")) + "</tr>"
        for row in samples[:most]
    ]
    if not rows:
        return ""
    head = "<tr><th>prompt</th><th>before</th><th>after</th></tr>"
    return f"<h2>Samples</h2><table class=samples>{head}{''.join(rows)}</table>"


def write_report(
    path: Path,
    facts: Mapping[str, str],
    rows: Sequence[Mapping[str, Any]],
    samples: Sequence[Mapping[str, str]],
    before: Mapping[str, float],
    after: Mapping[str, float],
    *,
    most_samples: int = 24,
    section: str = "",
) -> None:
    """Write the page.

    Args:
        facts: settings of the run by name; "method" and "feedback" or "prompts" make the title.
        rows: the lines of metrics.jsonl.
        samples: `{"prompt", "before", "after"}`.
        before, after: the first and the last evaluation's figures.
        most_samples: how many samples are shown, at most.
        section: another part of the page, as HTML whose texts are already escaped.
    """
    page = (
        "<!doctype html><html lang=en><head><meta charset=utf-8><title>Valence run</title>"
        f"<style>{STYLE}</style></head><body><h1>Valence: {html.escape(facts.get('method', ''))} on "
        f"{html.escape(facts.get('feedback') or facts.get('prompts', ''))}</h1>{_facts_table(facts)}"
        f"<h2>Before and after</h2>{_figures_table(before, after)}"
        f"<h2>Curves</h2>{image_tag(plot_curves(rows), 'curves of the run')}"
        f"{section}{_samples_table(samples, most_samples)}</body></html>"
    )
    path.write_text(page, encoding="utf-8")
