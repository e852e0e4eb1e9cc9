"""The tables, claims, picture and page of `python -m experiments bandit`."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.bandit.methods import PYCMA, RANDOM, SAMPLES, TARGET, Problem
from experiments.common.pictures import new_figure, save_figure
from experiments.common.results import Claim, by_name

Rows = Sequence[Mapping[str, Any]]
PAPER = ("rosenbrock", "sphere", "double-sum", "schwefel")
PROTOCOL = ("PMPO-AR", "PMPO-A", "PMPO-R", "DPO", "PMPO-R beta=0")
SOLVED = (
    Problem("sphere", 2), Problem("sphere", 10), Problem("double-sum", 2), Problem("double-sum", 10),
    Problem("rosenbrock", 2),
)  # fmt: skip
HARD = (Problem("rosenbrock", 10), Problem("schwefel", 2))
TUNED = (*SOLVED, *HARD)
UNSEEN = tuple(
    Problem(name, dim)
    for name in ("ellipsoid", "cigar", "different-powers", "ackley", "griewank", "rastrigin")
    for dim in (2, 10)
    # In two dimensions the ellipsoid and the cigar are one function.
    if (name, dim) != ("cigar", 2)
)
PRODUCT = ("PMPO-AR", "PMPO-A", "PMPO-R", "PMPO-AR, exact KL", "PMPO-R, exact KL", PYCMA, RANDOM)
LOTS = "PMPO-AR, random labels"
AIMS = {"PMPO-AR": 2.5, "PMPO-A": 4.0, "PMPO-R": 7.0, "PMPO-AR, exact KL": 2.5, "PMPO-R, exact KL": 7.0}
"""How many times pycma's evaluations each may take."""


def protocol_rows(runs: Rows) -> list[dict[str, Any]]:
    """Part A, one row per function and method: medians over seeds."""
    rows = []
    paper = (run for run in runs if run["part"] == "paper")
    for (function, method), group in by_name(paper, lambda run: (run["function"], run["name"])).items():
        columns = zip(
            *((run["curve"][0][1], run["value"], run["best"], run["kl"], run["std"]) for run in group), strict=True
        )
        first, last, best, kl, std = map(statistics.median, columns)
        rows.append(
            {
                "part": "A", "function": function, "dim": 2, "method": method,
                "evaluations": SAMPLES * group[0]["limit"], "first": f"{first:.1e}", "last": f"{last:.1e}",
                "best seen": f"{best:.1e}", "std": f"{std:.1e}", "KL": f"{kl:.1e}", "left": last / first,
            }
        )  # fmt: skip
    return rows


def product_rows(runs: Rows) -> list[dict[str, Any]]:
    """Part B, one row per function and method: the median of evaluations, failures counting as infinite."""
    rows = []
    groups = by_name(
        (run for run in runs if run["part"] == "product"), lambda run: (run["function"], run["dim"], run["name"])
    )
    for (function, dim, method), group in groups.items():
        counts, base = ([run["evaluations"] for run in some] for some in (group, groups[function, dim, PYCMA]))
        median, other = statistics.median(counts), statistics.median(base)
        best = statistics.median(run["best"] for run in group)
        rows.append(
            {
                "part": "B" if Problem(function, dim) in TUNED else "B, unseen", "function": function, "dim": dim,
                "method": method, "solved": sum(map(math.isfinite, counts)), "of": len(counts),
                "median evaluations": number(median),
                "over pycma": number(median / other if other < math.inf else math.inf), "best seen": f"{best:.1e}",
            }
        )  # fmt: skip
    return rows


def number(value: float) -> float | str:
    """A number as the table shows it."""
    return value if math.isfinite(value) else "—"


def check_claims(rows: Rows) -> list[Claim]:
    """The paper's claims on part A and our aims for part B; claims about functions that were not run are left out."""
    protocol = [row for row in rows if row["part"] == "A"]
    complete = {row["function"] for row in protocol} == set(PAPER)
    by = {(row["function"], row["dim"], row["method"]): row for row in rows if row["part"] != "A"}
    claims = _protocol_claims(protocol) if complete else []
    for method in AIMS:
        claims += _product_claims(by, method)
    return claims + _lots_claims(by)


def _protocol_claims(rows: Rows) -> list[Claim]:
    claims = []
    for method in PROTOCOL[:4]:
        left = {row["function"]: row["left"] for row in rows if row["method"] == method}
        ours = ", ".join(f"{name} {100 * part:.2g}%" for name, part in left.items())
        title = f"{method}, paper's protocol: 1% or less of the first value is left at the mean, on every function"
        claims.append(Claim(title, "optimises all (Fig. 1)", ours, all(part <= 0.01 for part in left.values())))
    kl = {
        method: [float(row["KL"]) for row in rows if row["method"] == method] for method in ("PMPO-R", "PMPO-R beta=0")
    }
    ours = " and ".join(f"{method}: {min(values):.1e} to {max(values):.1e} nats" for method, values in kl.items())
    holds = max(kl["PMPO-R"]) < 100 < min(kl["PMPO-R beta=0"])
    title = "R runs away with beta = 0 (KL(ref‖π) over 100 nats within a lag), and not with 2"
    return [*claims, Claim(title, "the KL makes learning from rejections possible (sections 3.2, 5.1)", ours, holds)]


def _product_claims(by: Mapping[Any, Mapping[str, Any]], method: str) -> list[Claim]:
    """Of one method; none where it was not run on all functions of `SOLVED`."""

    def found(problems: Sequence[Problem], method: str) -> list[Mapping[str, Any]]:
        keys = [(problem.name, problem.dim, method) for problem in problems]
        return [by[key] for key in keys if key in by]

    def solved(rows: Rows) -> str:
        return ", ".join(f"{row['function']} {row['dim']}D {row['solved']}/{row['of']}" for row in rows)

    easy, hard, unseen = (found(problems, method) for problems in (SOLVED, HARD, UNSEEN))
    if len(easy) < len(SOLVED):
        return []
    title = f"{method}: sphere and double sum 2D and 10D, Rosenbrock 2D to {TARGET:g} with every seed"
    claims = [Claim(title, "—", solved(easy), all(row["solved"] == row["of"] for row in easy))]
    ratios = [row["over pycma"] if isinstance(row["over pycma"], float) else math.inf for row in easy]
    title = f"{method}: at most {AIMS[method]:g} times pycma's evaluations there"
    claims.append(Claim(title, "—", ", ".join(f"{ratio:.2f}" for ratio in ratios), max(ratios) <= AIMS[method]))
    if hard:
        title = f"{method}: Rosenbrock 10D and Schwefel 2.26 2D with 8 of 10 seeds"
        claims.append(Claim(title, "—", solved(hard), all(row["solved"] >= 0.8 * row["of"] for row in hard)))
    if unseen:
        ours, base = (sum(row["solved"] for row in rows) for rows in (unseen, found(UNSEEN, PYCMA)))
        text = f"{ours} runs, pycma {base}, of {sum(row['of'] for row in found(UNSEEN, PYCMA))}"
        title = f"{method}: on functions not tuned on, solves 9 in 10 of the runs that pycma does"
        claims.append(Claim(title, "—", text, ours >= 0.9 * base))
    return claims


def _lots_claims(by: Mapping[Any, Mapping[str, Any]]) -> list[Claim]:
    """Random labels against random search."""
    pairs = [(row, by[function, dim, RANDOM]) for (function, dim, method), row in by.items() if method == LOTS]
    if not pairs:
        return []
    ours = ", ".join(
        f"{row['function']} {row['dim']}D {row['best seen']} against {other['best seen']}" for row, other in pairs
    )
    title = "random labels get nowhere: none solved, and the best seen is above a hundredth of random search's"
    holds = all(
        not row["solved"] and float(row["best seen"]) > 0.01 * float(other["best seen"]) for row, other in pairs
    )
    return [Claim(title, "—", ours, holds)]


def plot(runs: Rows, rows: Rows, path: Path) -> Any:
    """Above, the median value at the policy's mean against evaluations, by function; below, evaluations over pycma's.

    Args:
        runs: every run; those of part A have curves.
        rows: the table; the rows of part B have ratios.
    """
    functions = by_name((run for run in runs if run["part"] == "paper"), "function")
    figure, panels = new_figure(2, len(functions), size=(3.2 * max(len(functions), 4), 6.4))
    for panel, (name, group) in zip(panels[0], functions.items(), strict=True):
        for method, some in by_name(group).items():
            _plot_curve(panel, some, method)
        panel.set_yscale("log")
        panel.set_title(f"{name}, 2D", fontsize=9)
        panel.set_xlabel("evaluations", fontsize=8)
        panel.tick_params(labelsize=7)
    panels[0, 0].set_ylabel("value at the mean", fontsize=8)
    grid = panels[1, 0].get_gridspec()
    for panel in panels[1]:
        panel.remove()
    _plot_ratios(figure.add_subplot(grid[1, :]), rows)
    return save_figure(figure, path)


def _plot_curve(panel: Any, runs: Rows, method: str) -> None:
    """The median over the seeds that got so far, and the band that holds half of them."""
    longest = max((run["curve"] for run in runs), key=len)
    values = [
        [run["curve"][place][1] for run in runs if place < len(run["curve"]) and math.isfinite(run["curve"][place][1])]
        for place in range(len(longest))
    ]
    points = [(point[0], sorted(group)) for point, group in zip(longest, values, strict=True) if group]
    steps = [step for step, _ in points]
    (line,) = panel.plot(steps, [statistics.median(group) for _, group in points], label=method, linewidth=1.2)
    low, high = ([group[int(part * (len(group) - 1))] for _, group in points] for part in (0.25, 0.75))
    panel.fill_between(steps, low, high, alpha=0.12, color=line.get_color(), linewidth=0)


def _plot_ratios(panel: Any, rows: Rows) -> None:
    rows = [row for row in rows if row["part"] != "A" and isinstance(row["over pycma"], float)]
    problems = list(dict.fromkeys((row["function"], row["dim"]) for row in rows))
    methods = {name: some for name, some in by_name(rows, "method").items() if name != PYCMA}
    for index, (method, some) in enumerate(methods.items()):
        offset = 0.12 * (index - (len(methods) - 1) / 2)
        places = [problems.index((row["function"], row["dim"])) + offset for row in some]
        panel.plot(places, [row["over pycma"] for row in some], "o", markersize=4, label=method)
    panel.axhline(1, color="black", linewidth=0.8)
    panel.set_yscale("log")
    names = [f"{name}\n{dim}D".replace("-", "-\n") for name, dim in problems]
    panel.set_xticks(range(len(problems)), names, fontsize=7)
    panel.set_ylabel("median evaluations / pycma's", fontsize=8)
    if methods:
        panel.legend(fontsize=7, ncols=len(methods), loc="lower left", bbox_to_anchor=(0, 1.0))
