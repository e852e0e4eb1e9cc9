"""What `valence reproduce offline-control` says of its runs: means with intervals, the paper's claims, the picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from valence.reproduce.results import Claim

PAPER = {"BC": 24, "Accept+BC": 26, "Accept": 27, "Reject+BC": 77, "Accept+Reject+BC": 93}
"""Table 1, in the paper's order: least first."""
RESAMPLES = 2000
FEWEST = 20
"""Episodes of a mixture, over all seeds, below which no claim is judged."""

Rows = Sequence[Mapping[str, Any]]


def resample(table: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Bootstrap means of `[seeds, episodes]`, `[RESAMPLES]`: seeds are drawn anew, then the episodes of each."""
    seeds, episodes = table.shape
    picks = generator.integers(seeds, size=(RESAMPLES, seeds, 1))
    inner = generator.integers(episodes, size=(RESAMPLES, seeds, episodes))
    return table[picks, inner].mean(axis=(1, 2))


def interval(means: np.ndarray) -> tuple[float, float]:
    """95%."""
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)


def rewards(rows: Rows, name: str) -> np.ndarray:
    """`[seeds, episodes]`."""
    return np.array([row["rewards"] for row in rows if row["name"] == name])


def average(rows: Rows) -> list[dict[str, Any]]:
    """One line a mixture, in the paper's order; only its name and the paper's figure where nothing was evaluated."""
    lines = []
    for name, paper in PAPER.items():
        mine = [row for row in rows if row["name"] == name]
        line: dict[str, Any] = {"mixture": name, "paper": paper}
        if mine and "reward" in mine[0]:
            table = rewards(rows, name)
            line["reward"] = float(table.mean())
            line["low"], line["high"] = interval(resample(table, np.random.default_rng(0)))
            line["success"] = float(np.mean([row["success"] for row in mine]))
        if mine:
            setting = mine[0]["setting"]
            betas = sorted(f"{row['beta']:.3g}" for row in mine)
            beta = betas[0] if betas[0] == betas[-1] else f"{betas[0]}–{betas[-1]}"
            line["seeds"] = len(mine)
            line["setting"] = f"alpha={setting['alpha']:g} beta={beta} lr={setting['lr']:g}"
        lines.append(line)
    return lines


def check_claims(rows: Rows) -> list[Claim]:
    """The paper's claims; a difference holds where its interval lies above 0. None where too little was evaluated."""
    if not rows or "reward" not in rows[0] or rewards(rows, next(iter(PAPER))).size < FEWEST:
        return []
    means = {name: float(rewards(rows, name).mean()) for name in PAPER}
    everything = "Accept+Reject+BC"
    second = max((name for name in PAPER if name != everything), key=lambda name: means[name])
    claims = [
        _difference(rows, "Reject+BC", "BC"),
        _difference(rows, "Reject+BC", "Accept"),
        _difference(rows, everything, second, f"all three are best (the next is {second})"),
    ]
    order = sorted(PAPER, key=lambda name: means[name])
    claims.append(Claim("the whole order", " < ".join(PAPER), " < ".join(order), order == list(PAPER)))
    return claims


def _difference(rows: Rows, more: str, less: str, title: str | None = None) -> Claim:
    both = [rewards(rows, name) for name in (more, less)]
    generator = np.random.default_rng(0)
    low, high = interval(resample(both[0], generator) - resample(both[1], generator))
    gain = both[0].mean() - both[1].mean()
    paper = f"{PAPER[more]} against {PAPER[less]}"
    return Claim(title or f"{more} above {less}", paper, f"{gain:+.1f} [{low:+.1f}, {high:+.1f}]", low > 0)


def plot(lines: Rows, few: Rows, path: Path) -> None:
    """Bars of ours with their intervals, with few labels where that was run, and the paper's on its own scale."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axis = plt.subplots(figsize=(7.6, 4.2))
    places = np.arange(len(lines))
    kinds = [("ours: Meta-World pick-and-place, 1.4k episodes", lines), ("ours, a tenth of the labels", few)]
    kinds = [(label, mine) for label, mine in kinds if mine]
    width = 0.8 / (len(kinds) + 1)
    for place, (label, mine) in enumerate(kinds):
        ours = np.array([line["reward"] for line in mine])
        errors = np.abs(np.array([[line["low"], line["high"]] for line in mine]).T - ours)
        axis.bar(places + (place - len(kinds) / 2) * width, ours, width, yerr=errors, capsize=3, label=label)
    theirs = [line["paper"] for line in lines]
    axis.bar(places + len(kinds) / 2 * width, theirs, width, label="paper: RGB stacking, 140k episodes")
    axis.set_xticks(places, [line["mixture"].replace("+", "+\n", 1) for line in lines])
    axis.set_ylabel("reward of an episode (scales differ)")
    axis.grid(axis="y", alpha=0.25)
    axis.legend(fontsize=8, loc="upper left")
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)
