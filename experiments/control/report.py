"""The table, claims, pictures and page of `python -m experiments control`, from finished runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.common.pictures import new_figure, save_figure
from experiments.common.results import Claim, by_name
from experiments.common.statistics import bootstrap_interval, iqm

Rows = Sequence[Mapping[str, Any]]
Returns = Mapping[tuple[str, str], Sequence[float]]
PUBLISHED_MPO: dict[str, dict[int, float]] = {
    "cartpole-swingup": {100_000: 792.0, 200_000: 845.0},
    "walker-walk": {100_000: 298.0, 200_000: 586.0},
    "cheetah-run": {100_000: 216.0, 200_000: 397.0},
}
"""Published MPO returns by environment steps, as the project's brief gives them."""
CATEGORICAL = ", categorical"
NOT_BELOW = ("PMPO-AR", "PMPO-AR coupled", "PMPO-AR beta=0.5", "PMPO-AR beta=0.5 coupled", "PMPO-A", "PMPO-R")
"""Compared with MPO: β at the bound and at the paper's 0.5, each with mean and spread apart and together."""
MARGIN = 1.2


def short(task: str) -> str:
    return task.split("/")[-1].removesuffix("-v0")


def final(run: Mapping[str, Any]) -> float:
    """The mean return of the last evaluation."""
    return float(run["curve"][-1][1])


def groups(runs: Rows) -> dict[tuple[str, str, str], list[Mapping[str, Any]]]:
    """Runs by (part, task, method)."""
    return by_name(runs, lambda run: (run["part"], short(run["task"]), run["name"]))


def published(runs: Rows) -> float | None:
    """MPO's published return on the runs' task after as many steps."""
    return PUBLISHED_MPO.get(short(runs[0]["task"]), {}).get(runs[0]["steps"])


def summarize(runs: Rows) -> list[dict[str, Any]]:
    """One row per task and method."""
    rows = []
    for (part, task, name), group in groups(runs).items():
        returns, goal = [final(run) for run in group], published(group)
        low, high = bootstrap_interval([returns]) if len(returns) > 1 else ("", "")
        rows.append(
            {
                "task": task, "method": name, "part": part, "steps": group[0]["steps"], "repeat": group[0]["repeat"],
                "seeds": len(group), "return": iqm(returns), "low": low, "high": high,
                "published": goal if name.startswith("MPO") and goal is not None else "",
            }
        )  # fmt: skip
    return sorted(rows, key=lambda row: (row["part"], row["task"]))


def check_claims(runs: Rows) -> list[Claim]:
    """Every claim whose runs are there."""
    main: dict[tuple[str, str], list[float]] = {}
    sweep: dict[str, list[float]] = {}
    shares: dict[str, float] = {}
    claims = []
    for (part, task, name), group in groups(runs).items():
        returns, goal = [final(run) for run in group], published(group)
        if part == "sweep":
            sweep[name] = returns
            continue
        main[task, name] = returns
        if name == "MPO" and goal is not None:
            shares[task] = share = iqm(returns) / goal
            title = f"MPO reaches 90% of its published return on {task} at {group[0]['steps']:,} steps"
            claims.append(Claim(title, f"{goal:g}", f"{_text(returns)}: {100 * share:.0f}%", share >= 0.9))
    return claims + _rival_claims(main, shares) + _sweep_claims(sweep)


def _interval(returns: Sequence[float]) -> tuple[float, float]:
    return bootstrap_interval([returns]) if len(returns) > 1 else (returns[0], returns[0])


def _text(returns: Sequence[float]) -> str:
    if len(returns) < 2:
        return f"{iqm(returns):.0f} (1 seed)"
    low, high = _interval(returns)
    return f"{iqm(returns):.0f} [{low:.0f}, {high:.0f}] ({len(returns)} seeds)"


def _rival_claims(main: Returns, shares: Mapping[str, float]) -> list[Claim]:
    """Each method beside its rival. It is not below MPO if its interval reaches up to MPO's.

    DPO learns mean and spread together, so its first rival is PMPO that does ("coupled"), on the same labels.
    """
    not_below, rejections, dpo = [], [], []
    for (task, name), returns in main.items():
        ours, bare = _text(returns), name.removesuffix(CATEGORICAL)
        mpo = main.get((task, "MPO" + name[len(bare) :]))
        if mpo is not None and bare in NOT_BELOW:
            known = task in shares and bare == name
            share = f", which has {100 * shares[task]:.0f}% of its published return" if known else ""
            title, text = f"{name} is not below MPO within intervals, {task}", f"{ours} against {_text(mpo)}{share}"
            holds = _interval(returns)[1] >= _interval(mpo)[0]
            not_below.append(Claim(title, "matches or outperforms MPO (Fig. 2)", text, holds))
        if mpo is not None and name == "PMPO-R":
            share = iqm(returns) / iqm(mpo)
            title = f"PMPO-R with β = 2 learns (half of MPO's return), {task}"
            rejections.append(Claim(title, "good (Fig. 2)", f"{ours}, {100 * share:.0f}% of MPO's", share >= 0.5))
        for rival in ("PMPO-AR best/worst coupled", "PMPO-AR best/worst") if name == "DPO" else ():
            if (task, rival) in main:
                other = main[task, rival]
                title = f"DPO with a Gaussian policy (β = 20) ends a tenth or more below {rival}, {task}"
                text = f"DPO {ours}; {rival} {_text(other)}"
                dpo.append(Claim(title, "slow and suboptimal (Fig. 2)", text, iqm(returns) <= 0.9 * iqm(other)))
    return not_below + rejections + dpo


def _sweep_claims(sweep: Mapping[str, Sequence[float]]) -> list[Claim]:
    """Figure 3, with a margin: one or two seeds are few."""
    claims = []
    middles = {name: iqm(returns) for name, returns in sweep.items()}
    seeds = f"({min(map(len, sweep.values()))} seed(s))" if sweep else ""
    low = [middles[name] for name in ("PMPO-R beta=0", "PMPO-R beta=0.5", "PMPO-R beta=1") if name in middles]
    if "PMPO-R beta=2" in middles and low:
        enough = middles["PMPO-R beta=2"]
        ours = f"β = 2: {enough:.0f}; best of β ≤ 1: {max(low):.0f} {seeds}"
        holds = enough >= MARGIN * max(low)
        claims.append(Claim("PMPO-R is worse with β ≤ 1, by a fifth", "needs β > 1 (Fig. 3)", ours, holds))
    accepts = [value for name, value in middles.items() if name.startswith("PMPO-A ")]
    if len(accepts) > 1:
        ours = f"{min(accepts):.0f} to {max(accepts):.0f} {seeds}"
        holds = min(accepts) >= 0.8 * max(accepts)
        claims.append(Claim("PMPO-A hardly depends on β (worst ≥ 80% of best)", "insensitive (Fig. 3)", ours, holds))
    return claims


def plot_curves(runs: Rows, path: Path) -> Any:
    """Return over environment steps: a panel for each task, Gaussian and categorical policies apart."""
    titles: dict[str, dict[str, list[Mapping[str, Any]]]] = {}
    for (part, task, name), group in groups(runs).items():
        if part == "main":
            kind = CATEGORICAL if name.endswith(CATEGORICAL) else ""
            titles.setdefault(task + kind, {})[name.removesuffix(CATEGORICAL)] = group
    figure, panels = new_figure(1, max(len(titles), 1), size=(5.2 * max(len(titles), 1), 5))
    for panel, (title, methods) in zip(panels[0], titles.items(), strict=False):
        for name, group in methods.items():
            _plot_curve(panel, name, group)
        goals = [published(group) for group in methods.values()]
        if goals[0] is not None:
            panel.axhline(goals[0], color="grey", linestyle=":", label="MPO, published, at the end")
        panel.set(title=title, xlabel="thousand environment steps", ylabel="return: IQM over seeds, 95% interval")
        panel.legend(
            fontsize=7, title="method (seeds)", title_fontsize=7, ncol=2, loc="upper center",
            bbox_to_anchor=(0.5, -0.14),
        )  # fmt: skip
    return save_figure(figure, path)


def _plot_curve(panel: Any, name: str, runs: Rows) -> None:
    """The interquartile mean over seeds, with its interval."""
    curves = [[value for _, value in run["curve"]] for run in runs]
    length = min(map(len, curves))
    steps = [step / 1000 for step, _ in runs[0]["curve"]][:length]
    columns = [[curve[place] for curve in curves] for place in range(length)]
    mark, label = "o" if length == 1 else None, f"{name} ({len(runs)})"
    (line,) = panel.plot(steps, [iqm(column) for column in columns], marker=mark, label=label)
    if len(runs) > 1:
        bands = np.array([bootstrap_interval([column], draws=500) for column in columns])
        panel.fill_between(steps, bands[:, 0], bands[:, 1], color=line.get_color(), alpha=0.15)


def plot_sweep(runs: Rows, path: Path) -> Any:
    """Return at the end over beta, a line for each of A, AR and R."""
    lines: dict[str, dict[float, float]] = {}
    for (part, _, name), group in groups(runs).items():
        if part == "sweep":
            method, beta = name.split(" beta=")
            lines.setdefault(method, {})[float(beta)] = iqm([final(run) for run in group])
    figure, ((panel,),) = new_figure(size=(5.2, 3.6))
    for method, points in lines.items():
        panel.plot(sorted(points), [points[beta] for beta in sorted(points)], marker="o", label=method)
    panel.set(xlabel="β, the weight of KL(π_ref‖π)", ylabel="return at the end")
    return save_figure(figure, path, legend=8)
