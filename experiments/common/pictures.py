"""Figures in one style: a faint grid on every panel, and a legend where lines have labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def new_figure(
    rows: int = 1, columns: int = 1, *, size: tuple[float | int, float | int], **options: Any
) -> tuple[Any, Any]:
    """(a matplotlib figure of `size` inches, its panels `[rows, columns]`)."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=size)
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def save_figure(figure: Any, path: Path, *, legend: int = 7) -> Any:
    """Finish a figure and write it to `path`; returns the figure.

    Args:
        legend: font size of the legends. A panel that has a legend already keeps it.
    """
    for panel in figure.axes:
        if not panel.axison:
            continue
        panel.grid(alpha=0.25)
        if panel.get_legend_handles_labels()[0] and panel.get_legend() is None:
            panel.legend(fontsize=legend)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    return figure
