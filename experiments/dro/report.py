"""The lines of the table, claims, picture and page of `python -m experiments dro`."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from experiments.common.pictures import new_figure, save_figure
from experiments.common.results import Claim, mean
from experiments.dro.training import LR_FACTOR, Setting, side_by_side

Rows = Sequence[Mapping[str, Any]]
PAPER_LRS = (1e-5, 5e-5, 1e-4, 5e-4)
TAUS = (0.1, 1.0, 5.0)
SFT, DRO, KTO = "SFT", "DRO-V", "KTO"
PAPER_COMPARED = {"1": {DRO: 78.9, KTO: 67.5, (DRO, KTO): 63.4}, "2": {DRO: 81.5, KTO: 78.2, (DRO, KTO): 57.5}}
"""Win rates over SFT, and side by side: Figure 1 with T5-L, Figure 2 with T5-XL."""
PAPER = {
    "3 joint": (73.7, 78.7, 78.9, 78.4), "3 value": (76.8, 78.0, 78.9, 79.1),
    "4 DRO-V": (70.5, 78.9, 76.6), "4 KTO": (63.5, 61.9, 67.5), "5": (76.6, None, 55.5, None, 72.1),
}  # fmt: skip
"""Win rates over SFT with T5-L, in the order of the settings (Figures 3, 4, 5)."""
NOISE = 3.2
"""Points: two standard errors of one win rate over 1,000 prompts near 50%."""
SHOWN = ("reward", "judge", "kl_policy_ref", "distinct_2", "words")


def _line(figure: str, name: str, rows: Rows, paper: float | None) -> dict[str, Any]:
    """One line of the table: means over seeds."""
    line: dict[str, Any] = {"figure": figure, "run": name, "paper": "" if paper is None else paper}
    if "win" in rows[0]:
        line |= _win_columns(rows)
        line["step"] = " ".join(str(row["best_step"]) for row in rows)
    line |= {name: mean(rows, name) for name in SHOWN}
    values = [float(row["value"]) for row in rows if row.get("value") is not None]
    return line | {"value": statistics.fmean(values) if values else ""}


def _win_columns(rows: Rows) -> dict[str, Any]:
    lengths = [row["win_same_length"] for row in rows]
    return {
        "win": mean(rows, "win"), "sd_folds": statistics.fmean(statistics.stdev(row["folds"]) for row in rows),
        "win_same_length": "" if None in lengths else statistics.fmean(lengths),
    }  # fmt: skip


def compare_lines(compared: Mapping[str, Rows], figure: str = "1") -> list[dict[str, Any]]:
    """Figure 1 or 2: SFT, each method over SFT, and the methods side by side."""
    paper = PAPER_COMPARED[figure]
    lines = [_line(figure, SFT, compared[SFT], None) | {"win": 50.0}]
    for name, rows in compared.items():
        if name != SFT:
            setting = Setting(**rows[0]["setting"]).label.partition(" ")[2]
            lines.append(_line(figure, f"{name} ({setting})", rows, paper.get(name)))
    for first, second in _pairs(compared):
        line: dict[str, Any] = {"figure": figure, "run": f"{first} over {second}"}
        line["paper"] = paper.get((first, second), "")
        lines.append(line | _win_columns(faced(compared[first], compared[second])))
    # SFT has not all columns: the others' order leads.
    names = dict.fromkeys(name for line in lines[1:] for name in line)
    return [{name: line.get(name, "") for name in names} for line in lines]


def _pairs(compared: Mapping[str, Rows]) -> list[tuple[str, str]]:
    names = [name for name in compared if name != SFT]
    return list(zip(names[::2], names[1::2], strict=True))


def faced(first: Rows, second: Rows) -> list[dict[str, Any]]:
    """Side by side, seed by seed."""
    return [side_by_side(one, two) for one, two in zip(first, second, strict=True)]


def sweep_lines(found: Mapping[str, Rows]) -> list[dict[str, Any]]:
    """One line per run of Figures 3 to 5."""
    return [
        _line(figure, Setting(**row["setting"]).label, [row], paper)
        for figure, rows in found.items()
        for row, paper in zip(rows, PAPER.get(figure, (None,) * len(rows)), strict=True)
    ]


def interval(wins: Rows) -> tuple[float, float, float]:
    """(mean, low, high): 95%, taking the folds of all seeds as independent draws."""
    folds = [fold for win in wins for fold in win["folds"]]
    middle, spread = statistics.fmean(folds), statistics.stdev(folds)
    half = 1.96 * spread / math.sqrt(len(folds))
    return middle, middle - half, middle + half


def check_claims(compared: Mapping[str, Rows], larger: Mapping[str, Rows], found: Mapping[str, Rows]) -> list[Claim]:
    """The paper's claims. A win rate is above 50% where its 95% interval is; the sweeps have one seed."""
    claims = _compare_claims(compared, "1") + (_compare_claims(larger, "2") if larger else [])
    wins = {name: [row["win"] for row in rows] for name, rows in found.items()}
    return claims + (_sweep_claims(wins) if wins else [])


def _compare_claims(compared: Mapping[str, Rows], figure: str) -> list[Claim]:
    paper = PAPER_COMPARED[figure]
    claims = [_above(f"{name} beats SFT (Fig. {figure})", f"{paper[name]}%", compared[name]) for name in (DRO, KTO)]
    for pair in _pairs(compared):
        text = f"{paper[pair]}%" if pair in paper else "DRO-V beats KTO"
        wins = faced(compared[pair[0]], compared[pair[1]])
        claims.append(_above(f"{pair[0]} beats {pair[1]}, side by side (Fig. {figure})", text, wins))
    return claims


def _above(title: str, paper: str, wins: Rows) -> Claim:
    middle, low, high = interval(wins)
    return Claim(title, paper, f"{middle:.1f}% [{low:.1f}, {high:.1f}]", low > 50)


def _sweep_claims(wins: Mapping[str, Sequence[float]]) -> list[Claim]:
    """Figures 3 to 5; `wins` are in the order of `PAPER`."""
    both, alone, ours, theirs = (wins[name] for name in ("3 joint", "3 value", "4 DRO-V", "4 KTO"))
    token, _, head, _, batch = wins["5"]
    range_both, range_alone = max(both) - min(both), max(alone) - min(alone)
    upper = max(both[1:]) - min(both[1:])
    return [
        Claim("the value's learning rate alone matters less than both (Fig. 3)", "range 2.3 against 5.2 points",
              f"{range_alone:.1f} against {range_both:.1f} points", range_alone < range_both),
        Claim("a faster value is better, monotonically (Fig. 3)", "76.8 < 78.0 < 78.9 < 79.1", _listed(alone),
              all(one < two for one, two in pairwise(alone))),
        Claim(f"stable over the upper three joint learning rates, within {NOISE} points (Fig. 3)",
              "78.7, 78.9, 78.4", _listed(both[1:]), upper <= NOISE),
        Claim("tau = 1 is DRO-V's best of three (Fig. 4)", "70.5, 78.9, 76.6", _listed(ours), ours[1] == max(ours)),
        Claim("tau = 5 is KTO's best of three (Fig. 4)", "63.5, 61.9, 67.5", _listed(theirs),
              theirs[2] == max(theirs)),
        Claim("two networks beat one, a value a token (Fig. 5)", "76.6 against 55.5", _listed([token, head]),
              token > head + NOISE),
        Claim("a value a token beats one a batch (Fig. 5)", "76.6 against 72.1", _listed([token, batch]),
              token > batch + NOISE),
    ]  # fmt: skip


def _listed(wins: Sequence[float]) -> str:
    return ", ".join(f"{win:.1f}" for win in wins)


def plot(lines: Rows, found: Mapping[str, Rows], path: Path) -> Any:
    """Win rate over SFT, ours beside the paper's: the comparison, learning rates, temperatures, sharing."""
    rows, columns, size = (2, 3, (16, 8)) if found else (1, 1, (5, 4.2))
    figure, grid = new_figure(rows, columns, size=size, sharey=True)
    panels = list(grid.flat)
    _plot_compared(panels[0], [line for line in lines if line["run"] != SFT])
    wins = [line["win"] for line in lines if line["run"] != SFT] + [
        row["win"] for some in found.values() for row in some
    ]
    panels[0].set_ylim(min(45.0, *wins) - 5, max(80.0, *wins) + 5)
    if found:
        panels.pop().set_axis_off()
        for panel, keys, values in zip(
            panels[1:3], (("3 joint", "3 value"), ("4 DRO-V", "4 KTO")), (PAPER_LRS, TAUS), strict=True
        ):
            _plot_sweep(panel, {key: found[key] for key in keys}, values)
        panels[1].set_title("Fig. 3: learning rates of DRO-V", fontsize=9)
        panels[1].set_xlabel(f"the paper's learning rate (ours: times {LR_FACTOR})")
        panels[2].set_title("Fig. 4: regularisation", fontsize=9)
        panels[2].set_xlabel("τ")
        _plot_sharing(panels[3], found["5"])
        _plot_distance(panels[4], found)
    for panel in panels:
        panel.axhline(50, color="black", linewidth=0.6)
    return save_figure(figure, path)


def _plot_compared(panel: Any, lines: Rows) -> None:
    panel.errorbar(
        range(len(lines)), [line["win"] for line in lines], yerr=[line["sd_folds"] for line in lines], fmt="o",
        capsize=3, label="ours (bars: sd of folds)",
    )  # fmt: skip
    paper = [(place, line["paper"]) for place, line in enumerate(lines) if line["paper"] != ""]
    panel.plot(*zip(*paper, strict=True), "x", color="gray", label="paper, T5-L; T5-XL in Fig. 2")
    names = [line["run"].partition(" (")[0].replace(", best of 6", "*").replace(" over ", "\nover ") for line in lines]
    ticks = [f"{name}\nFig. 2" if line["figure"] == "2" else name for name, line in zip(names, lines, strict=True)]
    panel.set_xticks(range(len(lines)), ticks, fontsize=6)
    panel.set_title("Figs. 1, 2: over SFT, and side by side (*: best of 6)", fontsize=9)
    panel.set_ylabel("win rate, %")


def _plot_sweep(panel: Any, found: Mapping[str, Rows], values: Sequence[float]) -> None:
    for number, (key, rows) in enumerate(found.items()):
        panel.plot(values, [row["win"] for row in rows], "o-", color=f"C{number}", label=f"{key[2:]}, ours")
        panel.plot(values, PAPER[key], "x--", color=f"C{number}", alpha=0.5, label=f"{key[2:]}, paper")
    panel.set_xscale("log")


def _plot_sharing(panel: Any, rows: Rows) -> None:
    settings = [Setting(**row["setting"]) for row in rows]
    panel.plot(range(len(rows)), [row["win"] for row in rows], "o", label="ours")
    paper = [(place, value) for place, value in enumerate(PAPER["5"]) if value is not None]
    panel.plot(*zip(*paper, strict=True), "x", color="gray", label="paper")
    names = ["one number" if one.value == "batch" else f"{one.value}\n{one.network}" for one in settings]
    panel.set_xticks(range(len(rows)), names, fontsize=7)
    panel.set_title("Fig. 5: a value per …, by which network", fontsize=9)


def _plot_distance(panel: Any, found: Mapping[str, Rows]) -> None:
    """Every run of the sweeps: the win rate against the distance from the reference."""
    rows = {str(row["setting"]): row for some in found.values() for row in some}.values()
    for method, name in (("dro", DRO), ("kto", KTO)):
        mine = [row for row in rows if row["setting"]["name"] == method]
        panel.plot([row["kl_policy_ref"] for row in mine], [row["win"] for row in mine], "o", label=name)
    panel.set_xscale("log")
    panel.set_xlabel("KL(π‖π_ref), nats per completion")
    panel.set_title("every run of the sweeps", fontsize=9)
