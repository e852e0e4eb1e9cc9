"""The pictures of `reproduce control`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from valence.evaluation.statistics import bootstrap_interval, iqm
from valence.reproduce.control_report import PUBLISHED_MPO, final, groups


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def plot_curves(finished: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Return over environment steps: a panel for each task, Gaussian and categorical apart."""
    panels: dict[str, dict[str, list[Mapping[str, Any]]]] = {}
    for (part, task, name), runs in groups(finished).items():
        if part == "main":
            kind = ", categorical" if name.endswith(", categorical") else ""
            panels.setdefault(task + kind, {})[name.removesuffix(", categorical")] = runs
    pyplot = _pyplot()
    figure, axes = pyplot.subplots(1, max(len(panels), 1), figsize=(5.2 * max(len(panels), 1), 5), squeeze=False)
    for axis, (title, methods) in zip(axes[0], panels.items(), strict=False):
        for name, runs in methods.items():
            curves = [[value for _, value in run["curve"]] for run in runs]
            length = min(map(len, curves))
            steps = [step / 1000 for step, _ in runs[0]["curve"]][:length]
            columns = [[curve[place] for curve in curves] for place in range(length)]
            mark = "o" if length == 1 else None
            (line,) = axis.plot(steps, [iqm(column) for column in columns], marker=mark, label=f"{name} ({len(runs)})")
            if len(runs) > 1:
                bands = np.array([bootstrap_interval([column], draws=500) for column in columns])
                axis.fill_between(steps, bands[:, 0], bands[:, 1], color=line.get_color(), alpha=0.15)
        known = PUBLISHED_MPO.get(title.removesuffix(", categorical"), {})
        goal = known.get(max(runs[0]["steps"] for runs in methods.values()))
        if goal is not None:
            axis.axhline(goal, color="grey", linestyle=":", label="MPO, published, at the end")
        axis.set_title(title)
        axis.set_xlabel("thousand environment steps")
        axis.set_ylabel("return: IQM over seeds, 95% interval")
        axis.grid(alpha=0.25)
        axis.legend(
            fontsize=7,
            title="method (seeds)",
            title_fontsize=7,
            ncol=2,
            loc="upper center",
            bbox_to_anchor=(0.5, -0.14),
        )
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def plot_sweep(finished: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Return at the end over beta, a line for each of A, AR and R."""
    lines: dict[str, dict[float, float]] = {}
    for (part, _, name), runs in groups(finished).items():
        if part == "sweep":
            method, beta = name.split(" beta=")
            lines.setdefault(method, {})[float(beta)] = iqm([final(run) for run in runs])
    pyplot = _pyplot()
    figure, axis = pyplot.subplots(figsize=(5.2, 3.6))
    for method, points in lines.items():
        axis.plot(sorted(points), [points[beta] for beta in sorted(points)], marker="o", label=method)
    axis.set_xlabel("β, the weight of KL(π_ref‖π)")
    axis.set_ylabel("return at the end")
    axis.grid(alpha=0.25)
    axis.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
