"""`valence reproduce pmpo-language`: PMPO online on a text task, with accepted, rejected and both.

PMPO paper, section 5.4 and appendix, Figures 4, 5 and 6: four completions a prompt, the better half accepted and the
worse rejected (or the best and the worst alone), against online DPO; beta swept; the policy judged along training by
another judge against the first checkpoint, where reward and judge may part.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from valence.reproduce.language_runs import Setting, fast_dtype, run_all, workers_for
from valence.reproduce.language_table import average, commits_of, tune
from valence.reproduce.pmpo_language_report import PAGE, check_claims, plot
from valence.reproduce.results import print_claims, print_table, write_page, write_results
from valence.reproduce.sentences import UNFINISHED, TaskSize, prepare


@dataclass(frozen=True)
class Size:
    """How large the experiment is.

    Args:
        batches: of the runs that are reported, `batch` prompts each.
        short: of tuning and of the sweep over beta.
    """

    task: TaskSize
    seeds: tuple[int, ...]
    batches: int
    short: int
    looks: int
    samples: int
    tune: bool
    methods: tuple[str, ...] = ()
    betas: tuple[float, ...] = ()
    batch: int = 32


SIZES = {
    "smoke": Size(TaskSize(1, 8), (0,), 1, 1, 0, 8, False, ("PMPO-AR", "PMPO-R"), batch=4),
    "quick": Size(TaskSize(25, 96), (0,), 6, 2, 1, 96, False),
    "full": Size(TaskSize(200, 256), (0, 1), 40, 8, 8, 192, True, betas=(0.0, 0.5, 1.0, 1.5, 2.0)),
}
TUNE_SEED = 100
SHARED = {
    "lr_schedule": "linear",
    "batch_size": 32,
    "num_samples": 4,
    "kl_weight": 0.0,
    "unfinished_reward": UNFINISHED,
}
PMPO = SHARED | {"method": "pmpo", "refresh_every": 4}
METHODS: dict[str, dict[str, Any]] = {
    "PMPO-AR": PMPO | {"preset": "ar"},
    "PMPO-A": PMPO | {"preset": "a"},
    "PMPO-R": PMPO | {"preset": "r"},
    "PMPO best/worst": PMPO | {"preset": "ar", "labels": "best-worst"},
    "DPO": SHARED | {"method": "iterative-dpo", "pairs": "best-worst", "beta": 0.1, "inner_epochs": 1},
}
RATES = (1e-3, 3e-3)
ALPHAS = {"PMPO-AR": 0.5, "PMPO-A": 1.0, "PMPO-R": 0.0}


def run(out: Path, size_name: str, workers: int | None = None) -> Path:
    """The experiment; prints its tables and writes results.json, a picture and a page."""
    size, count = SIZES[size_name], workers_for(size_name, workers)
    task = prepare(out / "task", size.task)
    names = size.methods or tuple(METHODS)
    grids = {name: [{"lr": lr} for lr in RATES] for name in names}
    candidates = [
        Setting(name, METHODS[name] | option, TUNE_SEED, batches=size.short, looks=0, samples=size.samples)
        for name in names for option in grids[name]
    ]  # fmt: skip
    tried = run_all(candidates, task, out / "tuning", count) if size.tune else []
    chosen = tune(tried, grids)
    settings = [
        Setting(
            name, METHODS[name] | {"batch_size": size.batch} | chosen[name], seed, batches=size.batches,
            looks=size.looks, samples=size.samples,
        )
        for seed in size.seeds for name in names
    ]  # fmt: skip
    rows = run_all(settings, task, out / "runs", count)
    swept = run_all(
        [_with_beta(name, beta, chosen, size) for name in ALPHAS for beta in size.betas], task, out / "beta", count
    )
    lines = average(rows)
    sweep = [line | {"start_reward": row["start"]["reward"]} for line, row in zip(average(swept), swept, strict=True)]
    claims = check_claims(lines, rows, sweep)
    print_table("Means over seeds; reward by the fitted model, win % against humans by the separate judge", lines)
    if sweep:
        print_table(f"beta swept, one seed, {size.short} batches", sweep)
    print_claims(claims)
    plot(rows, swept, out / "pmpo-language.png")
    path = write_results(
        out, "pmpo-language", lines, claims, size.seeds, beta_sweep=sweep, per_seed=rows, sweep_runs=swept,
        tuning=tried, chosen=chosen, task=task.facts(),
        commits=commits_of(rows), dtype=fast_dtype(), batches=size.batches, short=size.short,
    )  # fmt: skip
    write_page(
        out / "README.md",
        "PMPO online on a text task",
        PAGE.format(batches=size.batches, short=size.short),
        "pmpo-language.png",
    )
    return path


def _with_beta(name: str, beta: float, chosen: Mapping[str, Mapping[str, Any]], size: Size) -> Setting:
    options = PMPO | {"alpha": ALPHAS[name], "beta": beta} | dict(chosen[name])
    return Setting(f"{name} beta={beta:g}", options, size.seeds[0], batches=size.short, looks=0, samples=size.samples)
