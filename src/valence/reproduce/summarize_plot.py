"""The picture of `valence reproduce summarize`: frontier, deciles, regression error, cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def plot(rows: Sequence[Mapping[str, Any]], lines: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Four panels, of seed 0 where single runs are shown."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(2, 2, figsize=(11, 8))
    first = [row for row in rows if row["seed"] == rows[0]["seed"]]
    frontier(axes[0, 0], first, "reward", "reward of the fitted model")
    for row in first:
        if row["name"] in ("REBEL", "PPO"):
            cells = row["deciles"]
            axes[0, 1].errorbar(
                [cell["kl"] for cell in cells], [cell["reward"] for cell in cells], fmt="o-", markersize=4,
                yerr=[cell["half"] for cell in cells], label=row["name"], linewidth=1,
            )  # fmt: skip
    axes[0, 1].set(xlabel="KL of a sample, nats (tenths)", ylabel="reward", title="Reward by tenth of KL (Fig. 5)")
    for row in first:
        if row["name"] == "REBEL" and row.get("updates"):
            seen = [update for update in row["updates"] if "regression_error" in update]
            for name in ("regression_error", "reward_gap_variance"):
                axes[1, 0].plot([u["step"] for u in seen], [u[name] for u in seen], label=name.replace("_", " "))
    axes[1, 0].set(xlabel="step", yscale="log", title="REBEL's regression (Fig. 6)")
    timed = [line for line in lines if "update" in line]
    places = range(len(timed))
    axes[1, 1].bar(places, [line["collect"] for line in timed], label="collecting, s")
    axes[1, 1].bar(
        places, [line["update"] for line in timed], bottom=[line["collect"] for line in timed], label="updating, s"
    )
    axes[1, 1].set_xticks(list(places), [line["method"] for line in timed], fontsize=8, rotation=20)
    axes[1, 1].set(title="Seconds a batch (Fig. 2)")
    for axis in axes.flat:
        axis.grid(alpha=0.25)
        if axis.get_legend_handles_labels()[0]:
            axis.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def frontier(axis: Any, rows: Sequence[Mapping[str, Any]], name: str, label: str) -> None:
    """What was got for how far a run went, look by look."""
    for row in rows:
        looks = [look for look in row.get("curve", ()) if name in look]
        if looks:
            axis.plot(
                [look["kl_policy_ref"] for look in looks], [look[name] for look in looks], "o-", markersize=4,
                linewidth=1, label=row["name"],
            )  # fmt: skip
    axis.set(xlabel="KL(π‖π_0), nats a completion", ylabel=label, title="Reward against KL over training (Fig. 5)")
