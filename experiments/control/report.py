"""The table, claims, pictures and page of `python -m experiments control`, from finished runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.common.pictures import new_figure, save_figure
from experiments.common.results import Claim, by_name
from valence.evaluation.statistics import bootstrap_interval, iqm

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
    claims += _not_below(main, shares) + _rejections(main)
    return claims + _sweep(sweep) + _dpo(main)


def _text(returns: Sequence[float]) -> str:
    if len(returns) < 2:
        return f"{iqm(returns):.0f} (1 seed)"
    low, high = bootstrap_interval([returns])
    return f"{iqm(returns):.0f} [{low:.0f}, {high:.0f}] ({len(returns)} seeds)"


def _not_below(main: Returns, shares: Mapping[str, float]) -> list[Claim]:
    """A method is not below MPO if its interval reaches up to MPO's."""
    claims = []
    for (task, name), returns in main.items():
        kind = CATEGORICAL if name.endswith(CATEGORICAL) else ""
        rival = main.get((task, f"MPO{kind}"))
        if rival is None or name.removesuffix(CATEGORICAL) not in NOT_BELOW:
            continue
        top = bootstrap_interval([returns])[1] if len(returns) > 1 else returns[0]
        bottom = bootstrap_interval([rival])[0] if len(rival) > 1 else rival[0]
        share = f", which has {100 * shares[task]:.0f}% of its published return" if task in shares and not kind else ""
        title, ours = f"{name} is not below MPO within intervals, {task}", f"{_text(returns)} against {_text(rival)}"
        claims.append(Claim(title, "matches or outperforms MPO (Fig. 2)", ours + share, top >= bottom))
    return claims


def _rejections(main: Returns) -> list[Claim]:
    claims = []
    for (task, name), returns in main.items():
        rival = main.get((task, "MPO"))
        if name == "PMPO-R" and rival is not None:
            share = iqm(returns) / iqm(rival)
            title = f"PMPO-R with β = 2 learns (half of MPO's return), {task}"
            ours = f"{_text(returns)}, {100 * share:.0f}% of MPO's"
            claims.append(Claim(title, "good (Fig. 2)", ours, share >= 0.5))
    return claims


def _sweep(sweep: Mapping[str, Sequence[float]]) -> list[Claim]:
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


def _dpo(main: Returns) -> list[Claim]:
    """DPO learns mean and spread together, so its rival is PMPO that does ("coupled"), on the same labels."""
    claims = []
    for (task, name), returns in main.items():
        for rival_name in ("PMPO-AR best/worst coupled", "PMPO-AR best/worst"):
            rival = main.get((task, rival_name))
            if name == "DPO" and rival is not None:
                ours = f"DPO {_text(returns)}; {rival_name} {_text(rival)}"
                title = f"DPO with a Gaussian policy (β = 20) ends a tenth or more below {rival_name}, {task}"
                claims.append(Claim(title, "slow and suboptimal (Fig. 2)", ours, iqm(returns) <= 0.9 * iqm(rival)))
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
