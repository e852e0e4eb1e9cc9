"""The picture of `valence reproduce bandit`: curves of the paper's protocol, and evaluations over pycma's."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def plot(runs: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Above, the median value at the policy's mean against evaluations; below, the product beside pycma.

    Args:
        runs: every run, with the curves of part A.
        rows: the table, with the ratios of part B.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    curves = [run for run in runs if run["part"] == "paper"]
    names = list(dict.fromkeys(run["problem"].name for run in curves))
    figure = plt.figure(figsize=(3.2 * max(len(names), 4), 6.4))
    grid = figure.add_gridspec(2, len(names))
    for place, name in enumerate(names):
        axis = figure.add_subplot(grid[0, place])
        for method in dict.fromkeys(run["method"] for run in curves):
            _curve(axis, [r for r in curves if (r["problem"].name, r["method"]) == (name, method)], method)
        axis.set_yscale("log")
        axis.set_title(f"{name}, 2D", fontsize=9)
        axis.set_xlabel("evaluations", fontsize=8)
        axis.tick_params(labelsize=7)
        axis.grid(alpha=0.25)
        if place == 0:
            axis.set_ylabel("value at the mean", fontsize=8)
            axis.legend(fontsize=7)
    _ratios(figure.add_subplot(grid[1, :]), rows)
    figure.tight_layout()
    figure.savefig(path, dpi=100)
    plt.close(figure)


def _curve(axis: Any, mine: Sequence[Mapping[str, Any]], method: str) -> None:
    """The median over the seeds that got so far, and where half of them lie."""
    longest = max((run["curve"] for run in mine), key=len)
    values = [
        [run["curve"][place][1] for run in mine if place < len(run["curve"]) and math.isfinite(run["curve"][place][1])]
        for place in range(len(longest))
    ]
    kept = [(point[0], sorted(group)) for point, group in zip(longest, values, strict=True) if group]
    steps = [step for step, _ in kept]
    (line,) = axis.plot(steps, [statistics.median(group) for _, group in kept], label=method, linewidth=1.2)
    low, high = ([group[int(part * (len(group) - 1))] for _, group in kept] for part in (0.25, 0.75))
    axis.fill_between(steps, low, high, alpha=0.12, color=line.get_color(), linewidth=0)


def _ratios(axis: Any, rows: Sequence[Mapping[str, Any]]) -> None:
    mine = [row for row in rows if row["part"] != "A" and isinstance(row["over pycma"], float)]
    problems = list(dict.fromkeys((row["function"], row["dim"]) for row in mine))
    methods = [name for name in dict.fromkeys(row["method"] for row in mine) if "pycma" not in name]
    for place, method in enumerate(methods):
        found = [row for row in mine if row["method"] == method]
        spots = [
            problems.index((row["function"], row["dim"])) + 0.12 * (place - (len(methods) - 1) / 2) for row in found
        ]
        axis.plot(spots, [row["over pycma"] for row in found], "o", markersize=4, label=method)
    axis.axhline(1, color="black", linewidth=0.8)
    axis.set_yscale("log")
    axis.set_xticks(range(len(problems)), [f"{name}\n{dim}D".replace("-", "-\n") for name, dim in problems], fontsize=7)
    axis.set_ylabel("median evaluations / pycma's", fontsize=8)
    axis.grid(alpha=0.25)
    if methods:
        axis.legend(fontsize=7, ncols=len(methods), loc="lower left", bbox_to_anchor=(0, 1.0))
