"""Claims, picture and page of `python -m experiments pmpo-language`."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.common.pictures import new_figure, save_figure
from experiments.common.results import Claim

Rows = Sequence[Mapping[str, Any]]
KINDS = ("PMPO-AR", "PMPO-A", "PMPO-R")


def check_claims(lines: Rows, rows: Rows, sweep: Rows) -> list[Claim]:
    """The claims, judged on means over seeds; a claim about methods that were not run is left out."""
    by = {line["method"]: line for line in lines}
    claims: list[Claim] = []
    curves = {name: mean_curve(rows, name) for name in by}
    start = next((curve[0] for curve in curves.values() if curve), None)
    if start is not None:
        for name in KINDS:
            if name in by:
                ours = f"{start['reward']:.2f} to {by[name]['reward']:.2f} ± {by[name]['reward_sd']:.2f}"
                risen = by[name]["reward"] > start["reward"] + 0.3
                claims.append(Claim(f"{name} raises the reward", "Fig. 4, 5", ours, risen))
    if by.keys() >= set(KINDS) and all(len(curve) > 2 for curve in curves.values()):
        middle = {name: curve[len(curve) // 2]["reward"] for name, curve in curves.items()}
        ours = ", ".join(f"{name} {value:.2f}" for name, value in middle.items()) + " halfway"
        faster = middle["PMPO-AR"] > max(middle["PMPO-A"], middle["PMPO-R"])
        claims.append(Claim("both signals learn faster than either alone", "Fig. 4: AR rises first", ours, faster))
    if {"DPO", "PMPO-AR"} <= by.keys():
        best, dpo = by["PMPO-AR"], by["DPO"]
        ours = f"AR {best['reward']:.2f} ± {best['reward_sd']:.2f}, DPO {dpo['reward']:.2f} ± {dpo['reward_sd']:.2f}"
        gain = dpo["reward"] - start["reward"] if start else 0.0
        near = start is not None and gain > 0.3 and best["reward"] - start["reward"] >= 0.8 * gain
        claims.append(Claim("AR is competitive with DPO (four fifths of its gain or more)", "Fig. 4", ours, near))
    return claims + _divergence_claims(curves.get("PMPO-AR", [])) + (_sweep_claims(sweep) if sweep else [])


def mean_curve(rows: Rows, name: str) -> list[dict[str, float]]:
    """A method's evaluations, means over seeds; `half` is the half width of the win rate's 95% interval."""
    evaluations = list(zip(*(row["curve"] for row in rows if row["name"] == name), strict=False))
    figures = ("step", "reward", "gold", "gold_win_rate", "kl_policy_ref")
    curve = [{figure: statistics.fmean(one[figure] for one in some) for figure in figures} for some in evaluations]
    for point, some in zip(curve, evaluations, strict=True):
        point["half"] = sum(one["gold_win_rate_95_half_width"] ** 2 for one in some) ** 0.5 / len(some)
    return curve


def _divergence_claims(curve: Sequence[Mapping[str, float]]) -> list[Claim]:
    """Figure 6: AR's win rate rises above one half, and falls again while its reward still rises."""
    if len(curve) < 3:
        return []
    wins = [100 * point["gold_win_rate"] for point in curve]
    course = ", ".join(f"{win:.0f}" for win in wins)
    top, last = wins.index(max(wins)), curve[-1]
    margin = 100 * (curve[top]["half"] ** 2 + last["half"] ** 2) ** 0.5
    diverged = wins[-1] < max(wins) - margin and last["reward"] > curve[top]["reward"]
    final = f"{wins[-1]:.1f} ± {100 * last['half']:.1f} % at the end"
    return [
        Claim("PMPO-AR ends above the first checkpoint by another judge, beyond its interval", "Fig. 4 right: over 50%",
              final, wins[-1] - 100 * last["half"] > 50),
        Claim("AR then games the reward: the win rate falls by more than its interval, the reward does not", "Fig. 6",
              f"{course} %, reward {curve[top]['reward']:.2f} at the best, {last['reward']:.2f} at the end", diverged),
    ]  # fmt: skip


def _sweep_claims(sweep: Rows) -> list[Claim]:
    """Figure 5."""
    by = {line["method"]: line for line in sweep}
    rejected = {name.partition("=")[2]: line for name, line in by.items() if name.startswith("PMPO-R")}
    accepted = {name.partition("=")[2]: line for name, line in by.items() if name.startswith("PMPO-A ")}
    ours = ", ".join(
        f"β {beta}: {line['reward']:.2f} (KL {line['kl_policy_ref']:.1f})" for beta, line in rejected.items()
    )
    bounded, unbounded = rejected["2"], rejected["0"]
    alone = ", ".join(f"β {beta}: {line['reward']:.2f}" for beta, line in accepted.items())
    gains = [line["reward"] - line["start_reward"] for line in accepted.values()]
    return [
        Claim("R needs a β that is large enough: β 2 has more reward than β 0, and less KL", "Fig. 5", ours,
              bounded["reward"] > unbounded["reward"] and bounded["kl_policy_ref"] < unbounded["kl_policy_ref"]),
        Claim("A learns at every β (its reward rises by 0.2 or more)", "Fig. 5: insensitive", alone, min(gains) > 0.2),
    ]  # fmt: skip


def plot(rows: Rows, swept: Rows, path: Path) -> Any:
    """Reward and win rate by step, the judge's score against the square root of KL, and the sweep over beta."""
    figure, panels = new_figure(2, 3, size=(15, 8))
    for name in dict.fromkeys(row["name"] for row in rows):
        curve = mean_curve(rows, name)
        steps = [point["step"] for point in curve]
        root = [max(point["kl_policy_ref"], 0.0) ** 0.5 for point in curve]
        win = [100 * point["gold_win_rate"] for point in curve]
        lines = ((steps, [one["reward"] for one in curve]), (steps, win), (root, [one["gold"] for one in curve]))
        for panel, line in zip(panels[0], lines, strict=True):
            panel.plot(*line, "o-", markersize=3, label=name)
    panels[0, 0].set(title="Reward of the fitted model (Fig. 4 left)", xlabel="step")
    panels[0, 1].set(title="Win against the first checkpoint, %, another judge (Fig. 6)", xlabel="step")
    panels[0, 1].axhline(50, color="grey", linewidth=0.8)
    panels[0, 2].set(title="The other judge's own score", xlabel="√KL(π‖π_0), √nats")
    for panel, kind in zip(panels[1], KINDS, strict=True):
        for row in swept:
            updates = [update for update in row["updates"] if "reward" in update]
            if row["name"].partition(" ")[0] == kind:
                label = "β = " + row["name"].partition("=")[2]
                panel.plot([one["step"] for one in updates], [one["reward"] for one in updates], label=label)
        panel.set(title=f"{kind}: reward of each batch by β (Fig. 5)", xlabel="step")
    return save_figure(figure, path, legend=8)
