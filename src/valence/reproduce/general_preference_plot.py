"""The picture of `general-preference`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from valence.reproduce.general_preference_games import RATED, SPO
from valence.reproduce.general_preference_text import KINDS

COLOURS = {SPO: "tab:blue", RATED: "tab:red"}
Rows = Sequence[Mapping[str, Any]]


def plot(exact: Rows, played: Rows, written: Rows, path: Path) -> None:
    """Gaps on rock-paper-scissors, exact and sampled; gaps on text; shares of kinds on text, first seed."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    path.parent.mkdir(parents=True, exist_ok=True)
    figure, axes = plt.subplots(2, 2, figsize=(11, 7.4))
    _gaps(axes[0, 0], exact, played)
    _text_gaps(axes[0, 1], written)
    for axis, method in ((axes[1, 0], SPO), (axes[1, 1], RATED)):
        _shares(axis, next(row for row in written if row["method"] == method))
    for axis in axes.flat:
        axis.grid(alpha=0.25)
        axis.set_xlabel("iteration")
        axis.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _gaps(axis: Any, exact: Rows, played: Rows) -> None:
    for row in (*exact, *played):
        if row["game"] != "rock-paper-scissors":
            continue
        sampled, colour = "seed" in row, COLOURS[row["method"]]
        first = row.get("seed", 0) == min((one["seed"] for one in played), default=0)
        name = f"{row['method']}, {'sampled' if sampled else 'exact'}"
        curve = row["curve"]
        width, line = (1.2, "-") if sampled else (1.6, "--")
        label = f"{name}: average" if first else None
        axis.plot(curve["iteration"], curve["average"], line, color=colour, linewidth=width, label=label)
        if sampled and row["method"] == SPO:
            axis.plot(curve["iteration"], curve["last"], ":", color="tab:gray", linewidth=0.9,
                      label=f"{name}: last" if first else None)  # fmt: skip
    axis.set(xscale="log", yscale="log", title="rock-paper-scissors", ylabel="duality gap")


def _text_gaps(axis: Any, written: Rows) -> None:
    for method in (SPO, RATED):
        for number, row in enumerate(one for one in written if one["method"] == method):
            times = range(1, len(row["gap_curve"]) + 1)
            axis.plot(times, row["gap_curve"], color=COLOURS[method], label=None if number else f"{method}: average")
            axis.plot(times[-1], row["gap_last"], "x", color=COLOURS[method],
                      label=None if number else f"{method}: last iterate")  # fmt: skip
    axis.set(title="text: the average of the iterates so far", ylabel="duality gap (pooled)", ylim=(0, 1.7))


def _shares(axis: Any, row: Mapping[str, Any]) -> None:
    for number, name in enumerate(KINDS):
        axis.plot(range(1, len(row["shares"]) + 1), [shares[number] for shares in row["shares"]], label=name)
    axis.axhline(1 / 3, color="black", linewidth=0.8, linestyle=":", label="the minimax winner")
    axis.set(title=f"text, {row['method']}, seed {row['seed']}", ylabel="share of completions", ylim=(0, 1))
