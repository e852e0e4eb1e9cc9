"""Rows of the language reproductions to tables: means over seeds, and the choice of what was tuned."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

KL_LIMIT = 12.0
"""Nats a completion: as far a token as the REBEL paper's policies go (29 nats over 53 tokens; ours have 20)."""


def average(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One line a name."""
    lines = []
    for name in dict.fromkeys(row["name"] for row in rows):
        mine = [row for row in rows if row["name"] == name]
        line: dict[str, Any] = {"method": name, "seeds": len(mine)}
        for key, label in (("reward", "reward"), ("win", "win"), ("judge", "judge"), ("kl", "kl_policy_ref")):
            line[label] = statistics.fmean(row[key] for row in mine)
            if key in ("reward", "win"):
                line[f"{label}_sd"] = spread([row[key] for row in mine])
        line["win_at_length"] = statistics.fmean(row["win_at_equal_length"] for row in mine)
        for key, label in (("distinct_2", "distinct_2"), ("ordinary_text_nll", "ordinary_nll")):
            line[label] = statistics.fmean(row["figures"][key] for row in mine)
        if "lr" in mine[0]["options"]:
            line["lr"] = f"{mine[0]['options']['lr']:g}"
        lines.append(line)
    return lines


def spread(values: Sequence[float]) -> float:
    """Standard deviation over seeds; 0 for one."""
    return statistics.stdev(values) if len(values) > 1 else 0.0


def commits_of(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The commits that rows were made at, where they say it: a page may be made later than its runs."""
    return sorted({row.get("commit", "not kept") for row in rows})


def tune(
    tried: Sequence[Mapping[str, Any]], grids: Mapping[str, Sequence[Mapping[str, Any]]], *, limit: float = KL_LIMIT
) -> dict[str, dict[str, Any]]:
    """The option of each method's grid whose run has the highest reward - gamma KL within the limit; where none is
    within, the one of least KL; where nothing was tried, the grid's first."""
    chosen: dict[str, dict[str, Any]] = {}
    for name, grid in grids.items():
        mine = [
            (row, option) for option in grid for row in tried
            if row["name"] == name and all(row["options"].get(key) == value for key, value in option.items())
        ]  # fmt: skip
        within = [pair for pair in mine if pair[0]["kl"] <= limit]
        if within:
            chosen[name] = dict(max(within, key=lambda pair: pair[0]["objective"])[1])
        elif mine:
            chosen[name] = dict(min(mine, key=lambda pair: pair[0]["kl"])[1])
        else:
            chosen[name] = dict(grid[0])
    return chosen
