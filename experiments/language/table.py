"""Tables of runs on the text task: means over seeds, and the choice among settings that were tuned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from experiments.common.results import by_name, mean, spread

KL_LIMIT = 12.0
"""Nats per completion: as far per token as the REBEL paper's policies go (29 nats over 53 tokens; ours have 20)."""
Rows = Sequence[Mapping[str, Any]]


def average(rows: Rows) -> list[dict[str, Any]]:
    """One line per name."""
    lines = []
    for name, group in by_name(rows).items():
        line: dict[str, Any] = {"method": name, "seeds": len(group)}
        for figure, label in (("reward", "reward"), ("win", "win"), ("judge", "judge"), ("kl", "kl_policy_ref")):
            line[label] = mean(group, figure)
            if figure in ("reward", "win"):
                line[f"{label}_sd"] = spread(group, figure)
        line["win_at_length"] = mean(group, "win_at_equal_length")
        figures = [row["figures"] for row in group]
        line |= {"distinct_2": mean(figures, "distinct_2"), "ordinary_nll": mean(figures, "ordinary_text_nll")}
        if "lr" in group[0]["options"]:
            line["lr"] = f"{group[0]['options']['lr']:g}"
        lines.append(line)
    return lines


def choose(tried: Rows, grids: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, dict[str, Any]]:
    """The options of each method whose run has the highest reward - gamma KL within `KL_LIMIT`.

    Where no run is within the limit, those with the least KL; where nothing was tried, the grid's first.
    """
    chosen: dict[str, dict[str, Any]] = {}
    for name, grid in grids.items():
        runs = [
            (row, option) for option in grid for row in tried
            if row["name"] == name and all(row["options"].get(key) == value for key, value in option.items())
        ]  # fmt: skip
        within = [run for run in runs if run[0]["kl"] <= KL_LIMIT]
        if within:
            chosen[name] = dict(max(within, key=lambda run: run[0]["objective"])[1])
        else:
            chosen[name] = dict(min(runs, key=lambda run: run[0]["kl"])[1] if runs else grid[0])
    return chosen
