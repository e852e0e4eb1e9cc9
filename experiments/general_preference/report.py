"""The table, claims, picture and page of `python -m experiments general-preference`."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.common.pictures import new_figure, save_figure
from experiments.common.results import Claim, by_name, mean
from experiments.general_preference.games import RATED, SPO, has_winner, make_games
from experiments.general_preference.text import KINDS

Rows = Sequence[Mapping[str, Any]]
THEOREM = "Theorem 2: DG of the average <= O(1/√T + √ε)"
CYCLE = "no reward orders a circle (section D)"
SLOPE, NEAR = -0.45, 0.1
COLOURS = {SPO: "tab:blue", RATED: "tab:red"}


def average(rows: Rows, form: str) -> list[dict[str, Any]]:
    """One line for each game and method: means over seeds, and the spread of the average iterate's gap."""
    lines = []
    for (game, method), group in by_name(rows, lambda row: (row["game"], row["method"])).items():
        line: dict[str, Any] = {"game": game, "form": form, "method": method}
        for name in ("gap_start", "gap_average", "gap_last"):
            line[name] = mean(group, name)
            if name == "gap_average" and len(group) > 1:
                line["gap_average_sd"] = statistics.stdev(row[name] for row in group)
        setting = group[0].get("options") or {"eta": group[0]["eta"]}
        line["setting"] = " ".join(f"{name}={value:g}" for name, value in setting.items())
        lines.append(line | (_text_columns(group) if "shares" in group[0] else {}))
    return lines


def _text_columns(rows: Rows) -> dict[str, str]:
    """The columns of runs on text, several numbers to a cell, each a mean over seeds."""

    def means(*names: str) -> str:
        return " / ".join(f"{mean(rows, name):.2f}" for name in names)

    def shares(name: str) -> str:
        parts = zip(*(row[name] for row in rows), strict=True)
        return " / ".join(f"{statistics.fmean(part):.2f}" for part in parts)

    return {
        "by_prompt": means("gap_start_by_prompt", "gap_average_by_prompt", "gap_last_by_prompt"),
        "by_prompt_floor": means("last_floor", "average_floor", "last_floor"),
        "shares_average": shares("average"), "shares_last": shares("last"), "kl": means("kl_iterates", "kl_last"),
    }  # fmt: skip


def check_claims(exact: Rows, rates: Rows, played: Rows, written: Rows) -> list[Claim]:
    """The claims about exact runs, their rates, sampled runs, and runs on text."""
    return [*_exact_claims(exact, rates), *_sampled_claims(played), *_text_claims(written)]


def _exact_claims(exact: Rows, rates: Rows) -> list[Claim]:
    circle = {row["method"]: row for row in exact if row["game"] == "rock-paper-scissors"}
    spo, rated = circle[SPO]["gap_average"], circle[RATED]["gap_last"]
    slopes = [row["slope"] for row in rates]
    return [
        Claim("exact, rock-paper-scissors: SPO's average has a gap below 0.02", THEOREM, f"{spo:.4f}", spo < 0.02),
        Claim("exact, rock-paper-scissors: Bradley-Terry + REBEL ends above 1", CYCLE, f"{rated:.2f}", rated > 1),
        Claim(
            f"exact, every game: the average's gap falls as T^-1/2 or faster (slope <= {SLOPE})", THEOREM,
            f"slopes {', '.join(f'{slope:.2f}' for slope in slopes)}", max(slopes) <= SLOPE,
        ),
    ]  # fmt: skip


def _sampled_claims(played: Rows) -> list[Claim]:
    groups = by_name(played, lambda row: (row["game"], row["method"]))
    games = list(dict.fromkeys(row["game"] for row in played))
    spo, last = ({game: mean(groups[game, SPO], name) for game in games} for name in ("gap_average", "gap_last"))
    rated = {game: min(mean(groups[game, RATED], name) for name in ("gap_average", "gap_last")) for game in games}
    circles = [game for game in games if not has_winner(make_games()[game])]
    count = f"{len(circles)} of {len(games)} games"
    return [
        Claim(
            f"sampled, every game: SPO's average has a gap below {NEAR}", THEOREM, _listed(spo.values()),
            all(gap < NEAR for gap in spo.values()),
        ),
        Claim(
            "sampled, games without one best action: SPO's average is nearer than its last iterate",
            "the theorem is about the average", f"last {_listed(last.values())} ({count})",
            all(spo[game] < last[game] for game in circles),
        ),
        Claim(
            "sampled, games without one best action: SPO's average is nearer than Bradley-Terry + REBEL's average and "
            "last iterate", CYCLE, f"theirs {_listed(rated.values())} ({count})",
            all(spo[game] < rated[game] for game in circles),
        ),
    ]  # fmt: skip


def _listed(values: Any) -> str:
    return ", ".join(f"{value:.2f}" for value in values)


def _text_claims(written: Rows) -> list[Claim]:
    spo, rated = ([row for row in written if row["method"] == method] for method in (SPO, RATED))

    def listed(rows: Rows, name: str) -> str:
        return _listed(row[name] for row in rows)

    top = [max(row["last"]) for row in rated]
    return [
        Claim(
            "text, every seed: SPO's average has less than half of the start's gap", THEOREM,
            f"{listed(spo, 'gap_average')} against {listed(spo, 'gap_start')}",
            all(row["gap_average"] < row["gap_start"] / 2 for row in spo),
        ),
        Claim(
            "text, every seed, against the best kind for each prompt: the same", THEOREM,
            f"{listed(spo, 'gap_average_by_prompt')} (an even policy would show {listed(spo, 'average_floor')})",
            all(row["gap_average_by_prompt"] < row["gap_start_by_prompt"] / 2 for row in spo),
        ),
        Claim(
            "text, every seed: SPO's average is nearer than its last iterate", "the theorem is about the average",
            f"last {listed(spo, 'gap_last')}", all(row["gap_average"] < row["gap_last"] for row in spo),
        ),
        Claim(
            "text, every seed: SPO's average is nearer than Bradley-Terry + REBEL's average and last iterate", CYCLE,
            f"average {listed(rated, 'gap_average')}, last {listed(rated, 'gap_last')}",
            all(one["gap_average"] < min(other["gap_average"], other["gap_last"])
                for one, other in zip(spo, rated, strict=True)),
        ),
        Claim(
            "text, every seed: Bradley-Terry + REBEL ends with one kind above 0.8", CYCLE, _listed(top),
            all(share > 0.8 for share in top),
        ),
    ]  # fmt: skip


def plot(exact: Rows, played: Rows, written: Rows, path: Path) -> Any:
    """Gaps on rock-paper-scissors, exact and sampled; gaps on text; shares of kinds on text, first seed."""
    figure, panels = new_figure(2, 2, size=(11, 7.4))
    _plot_games(panels[0, 0], exact, played)
    _plot_text(panels[0, 1], written)
    for panel, method in zip(panels[1], (SPO, RATED), strict=True):
        _plot_shares(panel, next(row for row in written if row["method"] == method))
    for panel in panels.flat:
        panel.set_xlabel("iteration")
    return save_figure(figure, path)


def _plot_games(panel: Any, exact: Rows, played: Rows) -> None:
    first_seed = min((row["seed"] for row in played), default=0)
    for row in (*exact, *played):
        if row["game"] != "rock-paper-scissors":
            continue
        sampled, colour, curve = "seed" in row, COLOURS[row["method"]], row["curve"]
        name = f"{row['method']}, {'sampled' if sampled else 'exact'}"
        labelled = row.get("seed", first_seed) == first_seed
        width, line = (1.2, "-") if sampled else (1.6, "--")
        label = f"{name}: average" if labelled else None
        panel.plot(curve["iteration"], curve["average"], line, color=colour, linewidth=width, label=label)
        if sampled and row["method"] == SPO:
            label = f"{name}: last" if labelled else None
            panel.plot(curve["iteration"], curve["last"], ":", color="tab:gray", linewidth=0.9, label=label)
    panel.set(xscale="log", yscale="log", title="rock-paper-scissors", ylabel="duality gap")


def _plot_text(panel: Any, written: Rows) -> None:
    for method in (SPO, RATED):
        for number, row in enumerate(one for one in written if one["method"] == method):
            times = range(1, len(row["gap_curve"]) + 1)
            labels = (None, None) if number else (f"{method}: average", f"{method}: last iterate")
            panel.plot(times, row["gap_curve"], color=COLOURS[method], label=labels[0])
            panel.plot(times[-1], row["gap_last"], "x", color=COLOURS[method], label=labels[1])
    panel.set(title="text: the average of the iterates so far", ylabel="duality gap (pooled)", ylim=(0, 1.7))


def _plot_shares(panel: Any, row: Mapping[str, Any]) -> None:
    for number, name in enumerate(KINDS):
        panel.plot(range(1, len(row["shares"]) + 1), [shares[number] for shares in row["shares"]], label=name)
    panel.axhline(1 / 3, color="black", linewidth=0.8, linestyle=":", label="the minimax winner")
    panel.set(title=f"text, {row['method']}, seed {row['seed']}", ylabel="share of completions", ylim=(0, 1))
