"""PMPO online on a text task, with accepted completions, rejected ones, and both.

PMPO paper, section 5.4 and appendix, Figures 4, 5 and 6. Of four completions per prompt the better half is accepted and
the worse half rejected (or the best and the worst alone); online DPO is the rival. Beta is swept, and a separate judge
compares the policy with the first checkpoint along training, to see whether reward and judge diverge.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.common import experiment as common
from experiments.common.experiment import TUNING_SEED, Experiment, fast_dtype
from experiments.common.results import print_table
from experiments.language.runs import Setting, run_settings, tune
from experiments.language.table import average
from experiments.language.task import UNFINISHED, TaskSize, prepare
from experiments.pmpo_language.report import check_claims, plot


@dataclass(frozen=True, kw_only=True)
class Size(common.Size):
    """How large the experiment is.

    Args:
        batches: batches of the reported runs, `batch` prompts each.
        short: batches of tuning and of the sweep over beta.
        evaluations, samples: evaluations of a run before the last one, and completions in each.
        methods: names in `METHODS`; all where empty.
        betas: the values of beta in the sweep.
    """

    task: TaskSize
    batches: int
    short: int
    evaluations: int
    samples: int
    methods: tuple[str, ...] = ()
    betas: tuple[float, ...] = ()
    batch: int = 32


SIZES = {
    "smoke": Size(
        task=TaskSize(1, 8), batches=1, short=1, evaluations=0, samples=8, methods=("PMPO-AR", "PMPO-R"), batch=4
    ),
    "quick": Size(task=TaskSize(25, 96), batches=6, short=2, evaluations=1, samples=96),
    "full": Size(
        seeds=(0, 1), tune=True, task=TaskSize(200, 256), batches=40, short=8, evaluations=8, samples=192,
        betas=(0.0, 0.5, 1.0, 1.5, 2.0),
    ),
}  # fmt: skip
SHARED = {
    "lr_schedule": "linear", "batch_size": 32, "num_samples": 4, "kl_weight": 0.0, "unfinished_reward": UNFINISHED,
}  # fmt: skip
PMPO = SHARED | {"method": "pmpo", "refresh_every": 4}
METHODS: dict[str, dict[str, Any]] = {
    "PMPO-AR": PMPO | {"preset": "ar"},
    "PMPO-A": PMPO | {"preset": "a"},
    "PMPO-R": PMPO | {"preset": "r"},
    "PMPO best/worst": PMPO | {"preset": "ar", "labels": "best-worst"},
    "DPO": SHARED | {"method": "iterative-dpo", "pairs": "best-worst", "beta": 0.1, "num_epochs": 1},
}
RATES = (1e-3, 3e-3)
ALPHAS = {"PMPO-AR": 0.5, "PMPO-A": 1.0, "PMPO-R": 0.0}


def beta_settings(size: Size, chosen: Mapping[str, Mapping[str, Any]]) -> list[Setting]:
    """Short runs of each kind of PMPO over beta, on the first seed."""
    return [
        Setting(
            f"{name} beta={beta:g}", size.seeds[0], PMPO | {"alpha": alpha, "beta": beta} | dict(chosen[name]),
            batches=size.short, evaluations=0, samples=size.samples,
        )
        for name, alpha in ALPHAS.items() for beta in size.betas
    ]  # fmt: skip


def run(experiment: Experiment[Size]) -> Path:
    """The experiment; prints its tables and writes `results.json`, a picture and a page."""
    size, out = experiment.size, experiment.out
    task = prepare(out / "task", size.task)
    names: Sequence[str] = size.methods or tuple(METHODS)

    def short_setting(name: str, option: Mapping[str, Any]) -> Setting:
        options = METHODS[name] | dict(option)
        return Setting(name, TUNING_SEED, options, batches=size.short, evaluations=0, samples=size.samples)

    tried, chosen = tune(experiment, task, {name: [{"lr": lr} for lr in RATES] for name in names}, short_setting)
    settings = [
        Setting(
            name, seed, METHODS[name] | {"batch_size": size.batch} | chosen[name], batches=size.batches,
            evaluations=size.evaluations, samples=size.samples,
        )
        for seed in size.seeds for name in names
    ]  # fmt: skip
    rows = run_settings(experiment, settings, task, "runs")
    swept = run_settings(experiment, beta_settings(size, chosen), task, "beta")
    lines = average(rows)
    sweep = [line | {"start_reward": row["start"]["reward"]} for line, row in zip(average(swept), swept, strict=True)]
    print_table("Means over seeds; reward by the fitted model, win % against humans by the separate judge", lines)
    if sweep:
        print_table(f"beta swept, one seed, {size.short} batches", sweep)
    plot(rows, swept, out / "pmpo-language.png")
    return experiment.write(
        lines, check_claims(lines, rows, sweep), ["pmpo-language.png"], beta_sweep=sweep, per_seed=rows,
        sweep_runs=swept, tuning=tried, chosen=chosen, task=task.facts(),
        dtype=fast_dtype(), batches=size.batches, short=size.short,
    )  # fmt: skip
