"""`valence reproduce general-preference`: self-play with REBEL where preferences go in a circle.

The REBEL paper's section D: SPO with REBEL as its base learner, whose *average* iterate nears the minimax winner
(Theorem 2), against REBEL on a Bradley-Terry reward fitted to the same kind of comparisons, which no reward describes.
On matrix games, exact and from samples, and on text through `valence improve`.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from valence.reproduce.general_preference_claims import check_claims
from valence.reproduce.general_preference_games import CYCLES, GAMES, RATED, SPO, exact_row, play_row, rate
from valence.reproduce.general_preference_plot import plot
from valence.reproduce.general_preference_text import COMMON, TextSize, run_text
from valence.reproduce.results import print_claims, print_table, write_page, write_results

METHODS = (SPO, RATED)
EXACT_ETA, EXACT_STEPS, LENGTHS = 0.1, 10_000, (100, 1000, 10_000)
ETAS = (0.03, 0.1, 0.3)
LRS = (1e-4, 2e-4, 4e-4)
DEFAULT = 1
"""The setting of a grid that is used where nothing is tuned."""
TUNE_SEED = 100
TUNE_ITERATIONS = 40


@dataclass(frozen=True)
class Size:
    """How large the experiment is: `iterations` are those of each run from samples."""

    seeds: tuple[int, ...]
    games: tuple[str, ...]
    iterations: int
    text: TextSize
    tune: bool = False


SIZES = {
    "smoke": Size((0,), CYCLES[:1], 20, TextSize(2, pool=8, prompts=4, rated=8, reward_epochs=0.5, final=4)),
    "quick": Size((0,), CYCLES, 300, TextSize(24, rated=16, final=16)),
    "full": Size((0, 1, 2), GAMES, 600, TextSize(60), tune=True),
}


def run_all(
    job: Callable[[Mapping[str, Any]], dict[str, Any]], tasks: Sequence[Mapping[str, Any]], workers: int
) -> list[dict[str, Any]]:
    """All tasks, in processes side by side; each row is printed when it is there."""
    if workers == 1:
        return [_said(row) for row in map(job, tasks)]
    with ProcessPoolExecutor(max_workers=workers, mp_context=get_context("spawn")) as pool:
        return [_said(row) for row in pool.map(job, tasks)]


def _said(row: dict[str, Any]) -> dict[str, Any]:
    setting = row.get("options") or {"eta": row["eta"]}
    figures = f"gap of the average {row['gap_average']:.3f}, of the last {row['gap_last']:.3f}"
    print(f"  {row['game']:20} {row['method']:22} seed {row['seed']:<4} {figures}  {setting}", flush=True)
    return row


def choose(rows: Sequence[Mapping[str, Any]], key: str) -> Any:
    """The setting `row[key]` whose average iterate has the least gap, a mean over games."""
    settings: list[Any] = []
    for row in rows:
        if row[key] not in settings:
            settings.append(row[key])
    return min(settings, key=lambda one: statistics.fmean(row["gap_average"] for row in rows if row[key] == one))


def tune(size: Size, workers: int) -> tuple[dict[str, float], dict[str, dict[str, Any]], list[dict[str, Any]]]:
    """(eta of each method on games, options of each on text, all tuning rows): three settings for each, on a seed that
    is not reported. What is not tuned takes the middle of its grid."""
    if not size.tune:
        return dict.fromkeys(METHODS, ETAS[DEFAULT]), {name: {"lr": LRS[DEFAULT]} for name in METHODS}, []
    print("tuning, three settings a method, on a seed of its own:")
    games = [
        {"game": game, "method": method, "eta": eta, "iterations": size.iterations, "seed": TUNE_SEED}
        for method in METHODS for eta in ETAS for game in CYCLES
    ]  # fmt: skip
    short = TextSize(TUNE_ITERATIONS)
    texts = [
        {"method": method, "options": {"lr": lr}, "size": short, "seed": TUNE_SEED} for method in METHODS for lr in LRS
    ]
    played, written = run_all(play_row, games, workers), run_all(run_text, texts, workers)

    def own(rows: Sequence[dict[str, Any]], method: str) -> list[dict[str, Any]]:
        return [row for row in rows if row["method"] == method]

    etas = {method: choose(own(played, method), "eta") for method in METHODS}
    options = {method: choose(own(written, method), "options") for method in METHODS}
    return etas, options, played + written


def average(rows: Sequence[Mapping[str, Any]], form: str) -> list[dict[str, Any]]:
    """One line for each game and method: means over seeds, and the spread of the average iterate's gap."""
    lines = []
    for game, method in dict.fromkeys((row["game"], row["method"]) for row in rows):
        mine = [row for row in rows if (row["game"], row["method"]) == (game, method)]
        line: dict[str, Any] = {"game": game, "form": form, "method": method}
        for name in ("gap_start", "gap_average", "gap_last"):
            line[name] = statistics.fmean(row[name] for row in mine)
            if name == "gap_average" and len(mine) > 1:
                line["gap_average_sd"] = statistics.stdev(row[name] for row in mine)
        line["setting"] = " ".join(f"{name}={value:g}" for name, value in _setting(mine[0]).items())
        if "shares" in mine[0]:
            line |= _text_columns(mine)
        lines.append(line)
    return lines


def _text_columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """What is said of runs on text alone, several numbers to a cell, each a mean over seeds."""

    def means(*names: str) -> str:
        return " / ".join(f"{statistics.fmean(row[name] for row in rows):.2f}" for name in names)

    def shares(name: str) -> str:
        parts = zip(*(row[name] for row in rows), strict=True)
        return " / ".join(f"{statistics.fmean(part):.2f}" for part in parts)

    return {
        "by_prompt": means("gap_start_by_prompt", "gap_average_by_prompt", "gap_last_by_prompt"),
        "by_prompt_floor": means("last_floor", "average_floor", "last_floor"),
        "shares_average": shares("average"), "shares_last": shares("last"), "kl": means("kl_iterates", "kl_last"),
    }  # fmt: skip


def _setting(row: Mapping[str, Any]) -> Mapping[str, float]:
    return row["options"] if "options" in row else {"eta": row["eta"]}


def run(out: Path, size_name: str, workers: int | None = None) -> Path:
    """The experiment; prints its tables and writes `out/results.json`, a picture and a page."""
    size = SIZES[size_name]
    workers = 1 if size_name == "smoke" else workers or os.cpu_count() or 1
    etas, options, tuned = tune(size, workers)
    exact = [exact_row(game, method, eta=EXACT_ETA, steps=EXACT_STEPS) for game in size.games for method in METHODS]
    rates = [rate(game, LENGTHS) for game in size.games]
    print("runs:")
    games = [
        {"game": game, "method": method, "eta": etas[method], "iterations": size.iterations, "seed": seed}
        for game in size.games for method in METHODS for seed in size.seeds
    ]  # fmt: skip
    texts = [
        {"method": method, "options": options[method], "size": size.text, "seed": seed}
        for method in METHODS for seed in size.seeds
    ]  # fmt: skip
    played, written = run_all(play_row, games, workers), run_all(run_text, texts, workers)
    games_lines, text_lines = average(exact, "exact") + average(played, "sampled"), average(written, "improve")
    claims = check_claims(exact, rates, played, written)
    print_table("Duality gaps of games (0 at the minimax winner, 2 at most), means over seeds", games_lines)
    print_table("Duality gaps on text, means over seeds", text_lines)
    print_claims(claims)
    plot(exact, played, written, out / "general-preference.png")
    extra = {
        "exact": exact, "rates": rates, "per_seed": played + written, "tuning": tuned, "common": COMMON,
        "text_iterations": size.text.iterations, "game_iterations": size.iterations,
        "tuned_by": f"the gap of the average iterate, on seed {TUNE_SEED}, which is not among the reported ones",
    }  # fmt: skip
    path = write_results(out, "general-preference", games_lines + text_lines, claims, size.seeds, **extra)
    write_page(out / "README.md", "Preferences that go in a circle", PAGE, "general-preference.png")
    return path


PAGE = """\
SPO with REBEL as base learner (REBEL paper, section D.2) against REBEL on a Bradley-Terry reward, where preferences go
in a circle. The measure is the paper's duality gap, 0 at the minimax winner and 2 at most: of the **average** of all
iterates, which Theorem 2 is about, and of the last one.

**Matrix games.** Rock-paper-scissors; a cycle of three with P(win) 0.6, 0.75 and 0.9; three draws of eight actions with
l uniform in [-1, 1]. All start at 0.8 on the first action. `exact`: REBEL's regression solved in closed form (mirror
descent), η 0.1, 10,000 iterations; the Bradley-Terry reward is fitted to all comparisons of the start policy.
`sampled`: the product's learner on a Categorical policy (floor 0.001), 128 actions an iteration, one binary vote on
each pair, four Adam steps of 0.003; the Bradley-Terry reward is fitted to 2,000 votes on pairs from the start policy.
The iterates' probabilities are known, so these gaps are not estimates.

**Text** (`improve`). The carried small model goes on from the first four words of 64 review sentences, by at most 6
tokens. What kind a completion is depends on the first mark in it: a comma beats a stop (. ! ?), a stop beats none, none
beats a comma, each with probability 0.9. This stands for a judge whose preferences go in a circle; one that reads text
for its meaning would need a far larger model. SPO is `valence improve --method spo` with a binary vote on each pair of
4 completions; its rival is `valence reward-model` on 3,072 such votes over the start policy's completions, then
`valence improve --method rebel` (KL weight 0.05, its default; SPO's is 0). The gaps are against the best single kind
for all prompts, from pooled shares (comma / stop / none). `by_prompt` is the paper's gap, against the best kind for
each prompt, of start / average / last; sampling makes it too large, and `by_prompt_floor` is what even shares would
show at as many samples. The average is over the completions that training drew from each iterate; start and last
iterate are sampled anew. `kl` is KL(π‖π_0) in nats a completion, mean over iterates / last iterate.

Both methods were tuned over three settings on a seed that is not reported, by the gap of their average iterate (games:
η on the two cycles; text: learning rate, 40 iterations); for the rival that means the setting that goes least far. What
is common to both was set in first looks at SPO alone: the games' actions, steps and rate on that seed; the 60
iterations on text, about one turn of the circle, after a run of 50 at another learning rate on seed 0, which is
reported. Between whole turns an average lies farther off.

Departs from the paper: all pairs among K samples take the place of y, y', y''; a sample's tie with itself counts (see
docs/decisions.md); an iteration's regression is a few Adam steps, not solved."""
