"""Self-play with REBEL where preferences go in a circle.

REBEL paper, section D: SPO with REBEL as its base learner, whose *average* iterate approaches the minimax winner
(Theorem 2), against REBEL on a Bradley-Terry reward fitted to the same kind of comparisons, which no reward describes.
On matrix games, exact and from samples, and on text through `valence.improve`.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.common import experiment as common
from experiments.common.experiment import TUNING_SEED, Experiment, Row
from experiments.common.results import by_name, print_table
from experiments.general_preference import games, text
from experiments.general_preference.games import CYCLES, GAMES, RATED, SPO, exact_row, play_row, rate
from experiments.general_preference.report import average, check_claims, plot
from experiments.general_preference.text import COMMON, TextSize, run_text

METHODS = (SPO, RATED)
EXACT_ETA, EXACT_STEPS, LENGTHS = 0.1, 10_000, (100, 1000, 10_000)
ETAS = (0.03, 0.1, 0.3)
LRS = (1e-4, 2e-4, 4e-4)
DEFAULT = 1
"""The place in its grid of the setting that is used where nothing is tuned."""
TUNE_ITERATIONS = 40


@dataclass(frozen=True, kw_only=True)
class Size(common.Size):
    """The games, the iterations of each run from samples, and the size of the runs on text."""

    games: tuple[str, ...]
    iterations: int
    text: TextSize


SIZES = {
    "smoke": Size(
        games=CYCLES[:1], iterations=20, text=TextSize(2, pool=8, prompts=4, rated=8, reward_epochs=0.5, final=4)
    ),
    "quick": Size(games=CYCLES, iterations=300, text=TextSize(24, rated=16, final=16)),
    "full": Size(seeds=(0, 1, 2), tune=True, games=GAMES, iterations=600, text=TextSize(60)),
}  # fmt: skip


def log(row: Row) -> str:
    """A line about one run."""
    setting = row.get("options") or {"eta": row["eta"]}
    figures = f"gap of the average {row['gap_average']:.3f}, of the last {row['gap_last']:.3f}"
    return f"{row['game']:20} {row['method']:22} seed {row['seed']:<4} {figures}  {setting}"


def choose(rows: Sequence[Mapping[str, Any]], name: str) -> Any:
    """The setting `row[name]` whose average iterate has the smallest gap, a mean over games."""
    settings: list[Any] = []
    for row in rows:
        if row[name] not in settings:
            settings.append(row[name])
    return min(settings, key=lambda one: statistics.fmean(row["gap_average"] for row in rows if row[name] == one))


def tune(experiment: Experiment[Size]) -> tuple[dict[str, float], dict[str, dict[str, Any]], list[Row]]:
    """(eta of each method on games, options of each on text, all rows of tuning): three settings for each.

    Without tuning the middle of each grid is used.
    """
    if not experiment.size.tune:
        return dict.fromkeys(METHODS, ETAS[DEFAULT]), {name: {"lr": LRS[DEFAULT]} for name in METHODS}, []
    print("tuning, three settings per method, on a separate seed:")
    played = experiment.run_all(
        play_row,
        [games.Setting(name, TUNING_SEED, game, eta, experiment.size.iterations)
         for name in METHODS for eta in ETAS for game in CYCLES],
        folder="tuning", log=log,
    )  # fmt: skip
    short = TextSize(TUNE_ITERATIONS)
    written = experiment.run_all(
        run_text, [text.Setting(name, TUNING_SEED, {"lr": lr}, short) for name in METHODS for lr in LRS],
        folder="tuning", log=log,
    )  # fmt: skip
    etas = {name: choose(rows, "eta") for name, rows in by_name(played, "method").items()}
    options = {name: choose(rows, "options") for name, rows in by_name(written, "method").items()}
    return etas, options, played + written


def run(experiment: Experiment[Size]) -> Path:
    """The experiment; prints its tables and writes `results.json`, a picture and a page."""
    size = experiment.size
    etas, options, tuned = tune(experiment)
    exact = [exact_row(games.Setting(name, 0, game, EXACT_ETA, EXACT_STEPS)) for game in size.games for name in METHODS]
    rates = [rate(game, LENGTHS) for game in size.games]
    print("runs:")
    settings = [
        games.Setting(name, seed, game, etas[name], size.iterations)
        for game in size.games for name in METHODS for seed in size.seeds
    ]  # fmt: skip
    played = experiment.run_all(play_row, settings, log=log)
    texts = [text.Setting(name, seed, options[name], size.text) for name in METHODS for seed in size.seeds]
    written = experiment.run_all(run_text, texts, log=log)
    games_lines, text_lines = average(exact, "exact") + average(played, "sampled"), average(written, "improve")
    print_table("Duality gaps of games (0 at the minimax winner, 2 at most), means over seeds", games_lines)
    print_table("Duality gaps on text, means over seeds", text_lines)
    plot(exact, played, written, experiment.out / "general-preference.png")
    return experiment.write(
        games_lines + text_lines, check_claims(exact, rates, played, written), ["general-preference.png"],
        exact=exact, rates=rates, per_seed=played + written, tuning=tuned, common=COMMON,
        text_iterations=size.text.iterations, game_iterations=size.iterations,
        tuned_by=f"the gap of the average iterate, on seed {TUNING_SEED}, which is not among the reported ones",
    )  # fmt: skip
