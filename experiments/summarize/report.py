"""The REBEL paper's claims on summaries, and the picture and page of `python -m experiments summarize`."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.common.pictures import new_figure, save_figure
from experiments.common.results import Claim

Rows = Sequence[Mapping[str, Any]]
PAPER: dict[str, dict[str, str]] = {
    "SFT": {"paper_reward": "-0.38", "paper_win": "28.2"},
    "DPO": {"paper_reward": "2.40", "paper_win": "53.7", "paper_kl": "64.3"},
    "iterative DPO": {"paper_reward": "2.37", "paper_win": "63.1", "paper_kl": "28.1"},
    "PPO": {"paper_reward": "2.37", "paper_win": "67.4", "paper_kl": "27.2"},
    "REBEL": {"paper_reward": "2.44", "paper_win": "70.2", "paper_kl": "29.0"},
    "REINFORCE": {"paper_win": "70.7 (6.9B)"}, "RLOO k=2": {"paper_win": "74.2 (6.9B)"},
    "RLOO k=4": {"paper_win": "77.9 (6.9B)"},
}  # fmt: skip
"""Table 1: figures of the 2.8B model, or of the 6.9B model where the paper has no others."""
PAPER_ETA = {"0.3": "1.37", "0.7": "1.60", "1": "2.44", "2": "1.76"}
"""Table 6: reward by eta."""
COMPARED = ("RLOO k=2", "iterative DPO", "REBEL", "RLOO k=4", "PPO")
"""The methods whose costs are compared."""


def paper_columns(method: str) -> dict[str, str]:
    """The paper's figures of a method."""
    return {name: PAPER.get(method, {}).get(name, "") for name in ("paper_reward", "paper_win", "paper_kl")}


def check_claims(lines: Rows, etas: Rows, rows: Rows) -> list[Claim]:
    """The claims, judged on means over seeds; a claim about methods that were not run is left out."""
    by = {line["method"]: line for line in lines}
    rivals = [line for line in lines if line["method"] not in ("SFT", "REBEL")]
    if "REBEL" not in by or not rivals:
        return []
    rebel, claims = by["REBEL"], []
    for name, label, paper in (
        ("reward", "reward model's score", "2.44, best rival 2.40 (2.8B); highest at 1.4B too"),
        ("win", "win rate against humans, %", "70.2, best rival 67.4 (2.8B); 78.1, 77.9 (6.9B)"),
    ):
        best = max(rivals, key=lambda line: line[name])
        ours = f"{rebel[name]:.2f} ± {rebel[f'{name}_sd']:.2f}, best rival {best['method']} {best[name]:.2f} ± "
        claims.append(
            Claim(f"REBEL has the highest {label}", paper, f"{ours}{best[f'{name}_sd']:.2f}", rebel[name] > best[name])
        )
    if "PPO" in by:
        far, near = rebel["kl_policy_ref"], by["PPO"]["kl_policy_ref"]
        title = "PPO stays a little closer to the start (by less than half)"
        ours = f"REBEL {far:.2f}, PPO {near:.2f}"
        claims.append(Claim(title, "KL 29.0, PPO 27.2", ours, 0.5 * far < near < far))
    if all("update" in by.get(name, {}) for name in COMPARED):
        claims += _cost_claims(by)
    return claims + _curve_claims(rows) + (_eta_claims(etas) if etas else [])


def _eta_claims(etas: Rows) -> list[Claim]:
    rewards = {str(line["method"]).partition("=")[2]: line["reward"] for line in etas}
    ours = ", ".join(f"{eta}: {value:.2f}" for eta, value in sorted(rewards.items(), key=lambda item: float(item[0])))
    paper = ", ".join(f"{eta}: {value}" for eta, value in PAPER_ETA.items())
    best = max(rewards, key=lambda eta: rewards[eta])
    return [Claim("η = 1 gives the best reward (one seed, at the rate tuned for it)", paper, ours, best == "1")]


def _cost_claims(by: Mapping[str, Mapping[str, Any]]) -> list[Claim]:
    """Figure 2."""
    time = {name: by[name]["collect"] + by[name]["update"] for name in COMPARED}
    memory = {name: by[name]["mib"] for name in COMPARED}
    seconds = ", ".join(f"{name} {time[name]:.1f} s" for name in COMPARED)
    mib = ", ".join(f"{name} {memory[name]:.0f} MiB" for name in COMPARED)
    faster, smaller = (one["REBEL"] < min(one["PPO"], one["RLOO k=4"]) for one in (time, memory))
    close = time["REBEL"] < 1.25 * time["iterative DPO"]
    return [
        Claim("a batch of REBEL takes less time than PPO's and RLOO k=4's", "Fig. 2", seconds, faster),
        Claim("it takes about as long as iterative DPO's (within a quarter)", "Fig. 2", seconds, close),
        Claim("a batch of REBEL needs less memory than PPO's and RLOO k=4's", "Fig. 2", mib, smaller),
    ]


def _curve_claims(rows: Rows) -> list[Claim]:
    """Figures 5 and 6, from the runs of REBEL and PPO."""
    rebel = [row for row in rows if row["name"] == "REBEL" and len(row.get("updates", ())) >= 8]
    ppo = [row for row in rows if row["name"] == "PPO" and "deciles" in row]
    if not rebel:
        return []
    late = [update for row in rebel for update in row["updates"][-len(row["updates"]) // 4 :]]
    error, variance = (
        statistics.fmean(update[name] for update in late) for name in ("regression_error", "reward_gap_variance")
    )
    ours = f"{error:.2f} over the last quarter's four passes, the squared gaps themselves {variance:.2f}"
    title = "the regression's error stays low beside the rewards' spread (under half of the squared gaps)"
    claims = [Claim(title, "Fig. 6", ours, error < 0.5 * variance)]
    if ppo:
        curves = [_deciles(some) for some in (rebel, ppo)]
        near = max(curve[0][0] for curve in curves)
        mine, other = (
            float(np.interp(near, [far for far, _ in curve], [reward for _, reward in curve])) for curve in curves
        )
        text = f"at {near:.1f} nats, the nearest that both have: REBEL {mine:.2f}, PPO {other:.2f}"
        claims.append(Claim("REBEL scores higher where samples are near the start", "Fig. 5", text, mine > other))
    return claims


def _deciles(rows: Rows) -> list[tuple[float, float]]:
    """(KL, reward) of each tenth of the samples by KL, means over seeds."""
    cells = zip(*(row["deciles"] for row in rows), strict=True)
    return [(statistics.fmean(one["kl"] for one in some), statistics.fmean(one["reward"] for one in some))
            for some in cells]  # fmt: skip


def plot(rows: Rows, lines: Rows, path: Path) -> Any:
    """Four panels: frontier, deciles, regression error, cost; single runs are of the first seed."""
    figure, panels = new_figure(2, 2, size=(11, 8))
    first = [row for row in rows if row["seed"] == rows[0]["seed"]]
    _plot_frontier(panels[0, 0], first)
    for row in first:
        if row["name"] in ("REBEL", "PPO"):
            kl, reward, half = ([cell[name] for cell in row["deciles"]] for name in ("kl", "reward", "half"))
            panels[0, 1].errorbar(kl, reward, fmt="o-", markersize=4, yerr=half, label=row["name"], linewidth=1)
        updates = [update for update in row.get("updates", ()) if "regression_error" in update]
        if row["name"] == "REBEL" and updates:
            for name in ("regression_error", "reward_gap_variance"):
                values = [update[name] for update in updates]
                panels[1, 0].plot([update["step"] for update in updates], values, label=name.replace("_", " "))
    panels[0, 1].set(xlabel="KL of a sample, nats (tenths)", ylabel="reward", title="Reward by tenth of KL (Fig. 5)")
    panels[1, 0].set(xlabel="step", yscale="log", title="REBEL's regression (Fig. 6)")
    _plot_costs(panels[1, 1], [line for line in lines if "update" in line])
    return save_figure(figure, path, legend=8)


def _plot_frontier(panel: Any, rows: Rows) -> None:
    """The reward against the distance from the initial policy, evaluation by evaluation."""
    for row in rows:
        points = [point for point in row.get("curve", ()) if "reward" in point]
        if points:
            kl, reward = ([point[name] for point in points] for name in ("kl_policy_ref", "reward"))
            panel.plot(kl, reward, "o-", markersize=4, linewidth=1, label=row["name"])
    panel.set(
        xlabel="KL(π‖π_0), nats per completion", ylabel="reward of the fitted model",
        title="Reward against KL over training (Fig. 5)",
    )  # fmt: skip


def _plot_costs(panel: Any, lines: Rows) -> None:
    places, collect = range(len(lines)), [line["collect"] for line in lines]
    panel.bar(places, collect, label="collecting, s")
    panel.bar(places, [line["update"] for line in lines], bottom=collect, label="updating, s")
    panel.set_xticks(list(places), [line["method"] for line in lines], fontsize=8, rotation=20)
    panel.set(title="Seconds per batch (Fig. 2)")
