"""One self-contained HTML page of a run: figures, curves as pictures, samples before and after.

All model text is escaped: a completion cannot run anything in the reader's browser.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

CURVES = (
    ("Loss", ("loss",)),
    ("Reward of what it learns from, after the KL's price", ("shaped_reward",)),
    ("Reward of fresh samples", ("eval/reward", "eval/gold")),
    ("Regression error beside the reward gaps' own size", ("regression_error", "reward_gap_variance")),
    ("KL on fresh samples, nats a sample", ("eval/kl_policy_ref", "eval/kl_ref_policy")),
    ("Log-likelihood drift from the reference, nats", ("accepted_drift", "rejected_drift")),
    ("Held-out accuracy of the implicit reward", ("eval/implicit_reward_accuracy",)),
    ("Ordinary text, nats a token (a rise is capability lost)", ("eval/ordinary_text_nll",)),
    ("How much images of one prompt differ", ("eval/pixel_spread",)),
    ("Tokens a second", ("tokens_per_second",)),
    ("Images a second", ("images_per_second",)),
)

EXPLAIN = {
    "kl_policy_ref": "KL(π‖π_ref), nats a sample, on the policy's samples",
    "kl_ref_policy": "KL(π_ref‖π), nats a sample, on the reference's samples",
    "ordinary_text_nll": "plain prose, nats a token: a rise is capability lost",
    "implicit_reward_accuracy": "how often log π/π_ref ranks better held-out feedback above worse",
    "reward": "mean reward of the samples",
    "reward_95_half_width": "half the width of that mean's 95% interval",
    "gold": "the same by the gold reward, which is not learned from (a pairwise judge: share won against the start)",
    "gold_95_half_width": "half the width of that mean's 95% interval",
    "gold_win_rate": "how often gold finds the sample better than the start's",
    "gold_win_rate_95_half_width": "half the width of that share's 95% interval",
    "distinct_2": "share of different word pairs in the samples",
    "pixel_spread": "how much images of one prompt differ, 0 to 1: near 0 it draws one image over and over",
    "mean_words": "words a sample",
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
    """The run's curves as one PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    kept = [(title, [name for name in names if any(name in row for row in rows)]) for title, names in CURVES]
    kept = [(title, names) for title, names in kept if names]
    height = max(1, (len(kept) + 1) // 2)
    figure, axes = plt.subplots(height, 2, figsize=(10, 2.6 * height), squeeze=False)
    for axis, (title, names) in zip(axes.flat, kept, strict=False):
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
    for axis in axes.flat[len(kept) :]:
        axis.set_visible(False)
    figure.tight_layout()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    plt.close(figure)
    return buffer.getvalue()


def _facts_table(facts: Mapping[str, str]) -> str:
    rows = "".join(
        f"<tr><th>{html.escape(name)}</th><td>{html.escape(value)}</td></tr>" for name, value in facts.items()
    )
    return f"<table>{rows}</table>"


def _figures_table(before: Mapping[str, float], after: Mapping[str, float]) -> str:
    rows = [
        f"<tr><th>{html.escape(name)}<br><span class=note>{html.escape(EXPLAIN.get(name, ''))}</span></th>"
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
        facts: what was run.
        rows: the lines of metrics.jsonl.
        samples: `{"prompt", "before", "after"}`.
        before, after: the evaluation's first and last figures.
        section: more of the page, as HTML that is safe.
    """
    picture = base64.b64encode(plot_curves(rows)).decode()
    page = (
        "<!doctype html><html lang=en><head><meta charset=utf-8><title>Valence run</title>"
        f"<style>{STYLE}</style></head><body><h1>Valence: {html.escape(facts.get('method', ''))} on "
        f"{html.escape(facts.get('feedback') or facts.get('prompts', ''))}</h1>{_facts_table(facts)}"
        f"<h2>Before and after</h2>{_figures_table(before, after)}"
        f'<h2>Curves</h2><img alt="curves of the run" src="data:image/png;base64,{picture}">'
        f"{section}{_samples_table(samples, most_samples)}</body></html>"
    )
    path.write_text(page, encoding="utf-8")
