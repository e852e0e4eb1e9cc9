"""What `valence reproduce dro` says of its runs: lines of the table, the paper's claims, the picture, the page."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from valence.reproduce.dro_runs import (
    BATCH,
    FOLDS,
    LARGER,
    LR_FACTOR,
    PAPER_LRS,
    TAUS,
    Setting,
    Size,
    label,
    side_by_side,
)
from valence.reproduce.results import Claim

Rows = Sequence[Mapping[str, Any]]
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


def _line(what: str, name: str, rows: Rows, paper: float | None) -> dict[str, Any]:
    """One line of the table: means over seeds."""
    line: dict[str, Any] = {"figure": what, "run": name, "paper": "" if paper is None else paper}
    if "win" in rows[0]:
        line["win"] = statistics.fmean(row["win"] for row in rows)
        line["sd_folds"] = statistics.fmean(statistics.stdev(row["folds"]) for row in rows)
        lengths = [row["win_same_length"] for row in rows]
        line["win_same_length"] = "" if None in lengths else statistics.fmean(lengths)
        line["step"] = " ".join(str(row["best_step"]) for row in rows)
    line |= {key: statistics.fmean(row[key] for row in rows) for key in SHOWN}
    values = [float(row["value"]) for row in rows if row.get("value") is not None]
    return line | {"value": statistics.fmean(values) if values else ""}


def compare_lines(compared: Mapping[str, Rows], figure: str = "1") -> list[dict[str, Any]]:
    """Figure 1 or 2: SFT, each method over SFT, and side by side."""
    told = PAPER_COMPARED[figure]
    lines = [_line(figure, SFT, compared[SFT], None) | {"win": 50.0}]
    for name, rows in _methods(compared).items():
        setting = label(Setting(**rows[0]["setting"])).partition(" ")[2]
        lines.append(_line(figure, f"{name} ({setting})", rows, told.get(name)))
    for first, second in _pairs(compared):
        wins = faced(compared[first], compared[second])
        line: dict[str, Any] = {"figure": figure, "run": f"{first} over {second}"}
        line["paper"] = told.get((first, second), "")
        line["win"] = statistics.fmean(win["win"] for win in wins)
        line["sd_folds"] = statistics.fmean(statistics.stdev(win["folds"]) for win in wins)
        lengths = [win["win_same_length"] for win in wins]
        line["win_same_length"] = "" if None in lengths else statistics.fmean(lengths)
        lines.append(line)
    # The columns of the first line lead, and SFT has not all of them.
    names = dict.fromkeys(name for line in lines[1:] for name in line)
    return [{name: line.get(name, "") for name in names} for line in lines]


def _methods(compared: Mapping[str, Rows]) -> dict[str, Rows]:
    return {name: rows for name, rows in compared.items() if name != SFT}


def _pairs(compared: Mapping[str, Rows]) -> list[tuple[str, str]]:
    names = list(_methods(compared))
    return list(zip(names[::2], names[1::2], strict=True))


def faced(first: Rows, second: Rows) -> list[dict[str, Any]]:
    """Side by side, seed by seed."""
    return [side_by_side(one, two) for one, two in zip(first, second, strict=True)]


def sweep_lines(found: Mapping[str, Rows]) -> list[dict[str, Any]]:
    """One line a run of Figures 3 to 5, of one seed."""
    return [
        _line(figure, label(Setting(**row["setting"])), [row], paper)
        for figure, rows in found.items()
        for row, paper in zip(rows, PAPER.get(figure, (None,) * len(rows)), strict=True)
    ]


def interval(wins: Rows) -> tuple[float, float, float]:
    """(mean, low, high): 95%, from the folds of every seed as so many draws."""
    folds = [fold for win in wins for fold in win["folds"]]
    mean, spread = statistics.fmean(folds), statistics.stdev(folds)
    half = 1.96 * spread / math.sqrt(len(folds))
    return mean, mean - half, mean + half


def check_claims(compared: Mapping[str, Rows], larger: Mapping[str, Rows], found: Mapping[str, Rows]) -> list[Claim]:
    """The paper's claims. A win rate is above 50% where its 95% interval is; sweeps are one seed."""
    claims = _compare_claims(compared, "1") + (_compare_claims(larger, "2") if larger else [])
    wins = {name: [row["win"] for row in rows] for name, rows in found.items()}
    return claims + (_sweep_claims(wins) if wins else [])


def _compare_claims(compared: Mapping[str, Rows], figure: str) -> list[Claim]:
    told = PAPER_COMPARED[figure]
    claims = [_above(f"{name} beats SFT (Fig. {figure})", f"{told[name]}%", compared[name]) for name in (DRO, KTO)]
    for first, second in _pairs(compared):
        paper = f"{told[first, second]}%" if (first, second) in told else "DRO-V beats KTO"
        title = f"{first} beats {second}, side by side (Fig. {figure})"
        claims.append(_above(title, paper, faced(compared[first], compared[second])))
    return claims


def _above(title: str, paper: str, wins: Rows) -> Claim:
    mean, low, high = interval(wins)
    return Claim(title, paper, f"{mean:.1f}% [{low:.1f}, {high:.1f}]", low > 50)


def _sweep_claims(wins: Mapping[str, Sequence[float]]) -> list[Claim]:
    """Of Figures 3 to 5; `wins` are in the order of `PAPER`."""
    both, alone, mine, theirs = (wins[name] for name in ("3 joint", "3 value", "4 DRO-V", "4 KTO"))
    token, _, head, _, batch = wins["5"]
    range_both, range_alone = max(both) - min(both), max(alone) - min(alone)
    upper = max(both[1:]) - min(both[1:])
    return [
        Claim("the value's learning rate alone matters less than both (Fig. 3)", "range 2.3 against 5.2 points",
              f"{range_alone:.1f} against {range_both:.1f} points", range_alone < range_both),
        Claim("a faster value is better, monotonically (Fig. 3)", "76.8 < 78.0 < 78.9 < 79.1", _said(alone),
              all(one < two for one, two in pairwise(alone))),
        Claim(f"stable over the upper three joint learning rates, within {NOISE} points (Fig. 3)",
              "78.7, 78.9, 78.4", _said(both[1:]), upper <= NOISE),
        Claim("tau = 1 is DRO-V's best of three (Fig. 4)", "70.5, 78.9, 76.6", _said(mine), mine[1] == max(mine)),
        Claim("tau = 5 is KTO's best of three (Fig. 4)", "63.5, 61.9, 67.5", _said(theirs), theirs[2] == max(theirs)),
        Claim("two networks beat one, a value a token (Fig. 5)", "76.6 against 55.5", _said([token, head]),
              token > head + NOISE),
        Claim("a value a token beats one a batch (Fig. 5)", "76.6 against 72.1", _said([token, batch]),
              token > batch + NOISE),
    ]  # fmt: skip


def _said(wins: Sequence[float]) -> str:
    return ", ".join(f"{win:.1f}" for win in wins)


def plot(lines: Rows, found: Mapping[str, Rows], path: Path) -> None:
    """Win rate over SFT, ours beside the paper's: the comparison, learning rates, temperatures, sharing."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    shape, size = ((2, 3), (16, 8)) if found else ((1, 1), (5, 4.2))
    figure, grid = plt.subplots(*shape, figsize=size, sharey=True, squeeze=False)
    axes = list(grid.flat)
    first = axes[0]
    shown = [line for line in lines if line["run"] != SFT]
    first.errorbar(
        range(len(shown)), [line["win"] for line in shown], yerr=[line["sd_folds"] for line in shown], fmt="o",
        capsize=3, label="ours (bars: sd of folds)",
    )  # fmt: skip
    told = [(place, line["paper"]) for place, line in enumerate(shown) if line["paper"] != ""]
    first.plot(*zip(*told, strict=True), "x", color="gray", label="paper, T5-L; T5-XL in Fig. 2")
    names = [line["run"].partition(" (")[0].replace(", best of 6", "*").replace(" over ", "\nover ") for line in shown]
    marks = [f"{name}\nFig. 2" if line["figure"] == "2" else name for name, line in zip(names, shown, strict=True)]
    first.set_xticks(range(len(shown)), marks, fontsize=6)
    first.set_title("Figs. 1, 2: over SFT, and side by side (*: best of 6)", fontsize=9)
    first.set_ylabel("win rate, %")
    wins = [line["win"] for line in shown] + [row["win"] for rows in found.values() for row in rows]
    first.set_ylim(min(45.0, *wins) - 5, max(80.0, *wins) + 5)
    if found:
        axes.pop().set_axis_off()
        _plot_sweeps(axes[1:4], found)
        _plot_distance(axes[4], found)
    for axis in axes:
        axis.axhline(50, color="black", linewidth=0.6)
        axis.grid(alpha=0.25)
        axis.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _plot_sweeps(axes: Any, found: Mapping[str, Rows]) -> None:
    rates, taus, sharing = axes
    for axis, keys, values in ((rates, ("3 joint", "3 value"), PAPER_LRS), (taus, ("4 DRO-V", "4 KTO"), TAUS)):
        for key, color in zip(keys, ("C0", "C1"), strict=True):
            axis.plot(values, [row["win"] for row in found[key]], "o-", color=color, label=f"{key[2:]}, ours")
            axis.plot(values, PAPER[key], "x--", color=color, alpha=0.5, label=f"{key[2:]}, paper")
        axis.set_xscale("log")
    rates.set_title("Fig. 3: learning rates of DRO-V", fontsize=9)
    rates.set_xlabel(f"the paper's learning rate (ours: times {LR_FACTOR})")
    taus.set_title("Fig. 4: regularisation", fontsize=9)
    taus.set_xlabel("τ")
    settings = [Setting(**row["setting"]) for row in found["5"]]
    places = range(len(settings))
    sharing.plot(places, [row["win"] for row in found["5"]], "o", label="ours")
    told = [(place, value) for place, value in zip(places, PAPER["5"], strict=True) if value is not None]
    sharing.plot(*zip(*told, strict=True), "x", color="gray", label="paper")
    names = ["one number" if one.value == "batch" else f"{one.value}\n{one.network}" for one in settings]
    sharing.set_xticks(places, names, fontsize=7)
    sharing.set_title("Fig. 5: a value per …, by which network", fontsize=9)


def _plot_distance(axis: Any, found: Mapping[str, Rows]) -> None:
    """Every run of the sweeps: what it wins for how far it goes."""
    rows = {str(row["setting"]): row for mine in found.values() for row in mine}.values()
    for method, name in (("dro", "DRO-V"), ("kto", "KTO")):
        mine = [row for row in rows if row["setting"]["method"] == method]
        axis.plot([row["kl_policy_ref"] for row in mine], [row["win"] for row in mine], "o", label=name)
    axis.set_xscale("log")
    axis.set_xlabel("KL(π‖π_ref), nats a completion")
    axis.set_title("every run of the sweeps", fontsize=9)


READING = """

How to read it. The paper's order does not show here: KTO wins, with either model. DRO-V with τ = 1 gains a few points
over SFT whatever the learning rates, of which the two seeds of the comparison confirm part. It is not V that holds it
back: V learns (column `value`, its mean over the last steps), faster with a faster rate, and Figure 5's settings, whose
V differ, win alike within noise. It is τ: at τ = 0.1 the same algorithm wins far more, and in the last panel those runs
win about as much as KTO's for the same KL. We take it (and have not tested it) that after so few steps the squared
log-ratio of one sample says more about noise in the policy's move than about the target, and a smaller τ weighs it
less. KTO goes further from the reference for the same number of steps, and its samples say less that differs.

Weights that start at zero, such as V's head, are stepped here as if they had a usual size. torch's Adafactor would step
them by a thousandth of the rate: with it V stayed near zero, τ = 1 won no more, and the best of six settings less.

Runs of one seed complete the evaluation prompts with the same random numbers, SFT with others: the luck of that draw is
common to a whole sweep, and the run of least KL(π‖π_ref), which has hardly moved, shows how large it may be."""


def page(size: Size) -> str:
    """What a reader must know of a run of this size."""
    text = f"""\
What stands for what. A prompt is the first four words of a movie-review sentence, a completion what follows, 24 tokens
at most. The policy is a small T5 ({size.layers} layers a side, the small model's tokenizer and word vectors), taught
the real continuations (SFT). One sample of it for each of {size.rows:,} prompts is the data set; rewards are a fitted
scorer's log-odds that the whole sentence is a fresh one (character n-grams, one half of the sentences), brought to
mean 0 and variance 1. Another model (words, the other half) is the judge: of two completions of a held-out prompt the
one of higher log-odds wins. How often judge and scorer order two samples alike, and how often each is right on real
sentences, stands in `results.json` under `data`.

`paper` is the paper's win rate with T5-L (770M; in Figure 2 T5-XL, 3B; UltraFeedback, PaLM 2 as judge); `win` is
ours, percent, over SFT or, in the lines that say over, side by side; `sd_folds` is the standard deviation over
{FOLDS} folds of {size.evaluate // FOLDS} prompts; `win_same_length` is the win rate at equal lengths; `step` is the
checkpoint that was best by win rate over SFT on {size.select} other prompts. `reward` is the scorer's mean in
standard units, `judge` its mean probability of fresh, percent; `kl_policy_ref` is KL(π‖π_ref), nats a completion.
Lines of Figures 1 and 2 are means over {len(size.seeds)} seeds; the sweeps are one other seed, where two standard
errors of a win rate are {NOISE} points, so small differences within a sweep are noise.

Protocol. As in the paper: KTO accepts what is above its mini-batch's mean reward, unweighted, with the KL estimated on
the batch; KTO's τ is the best of three, DRO-V has τ = 1 and the default rates; Adafactor (decay 0.8), {BATCH} rows a
batch. The lines "best of 6" give both methods the same effort: three τ, then three more learning rates at the best of
them, chosen by the same {size.select} prompts. Learning rates are named as in the paper, and all were {LR_FACTOR} times
that: {size.steps} steps stand for 40,000. The factor is from a first look at both methods with τ = 1, on the sweeps'
seed: at 100 times, KTO's samples fell apart, and DRO-V won less than at {LR_FACTOR} times.

Smaller or other than in the paper: the models (Figure 2's has {LARGER} times the layers, {size.larger.layers} a side,
is taught and sampled anew, and takes the settings of Figure 1 as they are, as in the paper); the data (one pass, one
row a prompt); the judge; {size.checkpoints} checkpoints instead of twenty. Figure 5 is read so: a value for each
token or each prompt, from a network of its own or a head on the policy, and one learned number for all, which has no
network to share (the paper does not say how its one value a batch leaves a network). Every run is `valence.align`."""
    return text + READING if size.sweeps else text
