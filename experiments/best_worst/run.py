"""REBEL over the full data set, the best of five completions against the worst of five, beside DPO.

REBEL paper, section 5.2's ablation, Table 3: each iteration samples five completions of every prompt, keeps the best
and the worst by the reward model, and regresses once over them, with eta 1e6, 1e4, 1e2 and no KL in the reward. DPO
learns from the pairs of the first iteration.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.best_worst.report import ITERATIONS, check_claims, plot, table
from experiments.common import experiment as common
from experiments.common.experiment import TUNING_SEED, Experiment, fast_dtype
from experiments.common.results import print_table
from experiments.language.runs import Setting, run_settings, tune
from experiments.language.task import UNFINISHED, TaskSize, prepare


@dataclass(frozen=True, kw_only=True)
class Size(common.Size):
    """How large the experiment is.

    Args:
        prompts: prompts of an iteration, its full data set; `minibatch` of them in an optimizer step.
        samples: completions per evaluation.
    """

    task: TaskSize
    prompts: int
    minibatch: int
    samples: int


SIZES = {
    "smoke": Size(task=TaskSize(1, 8), prompts=4, minibatch=2, samples=8),
    "quick": Size(task=TaskSize(25, 96), prompts=96, minibatch=16, samples=96),
    "full": Size(seeds=(0, 1), tune=True, task=TaskSize(200, 256), prompts=384, minibatch=32, samples=256),
}
SHARED = {
    "full_batch": True, "num_samples": 5, "pairs": "best-worst", "num_epochs": 1, "kl_weight": 0.0,
    "unfinished_reward": UNFINISHED, "warmup_steps": 1,
}  # fmt: skip
METHODS: dict[str, dict[str, Any]] = {
    "REBEL": SHARED | {"method": "rebel", "eta_schedule": (1e6, 1e4, 1e2)},
    "DPO": SHARED | {"method": "iterative-dpo", "beta": 0.1},
}
RATES = (3e-4, 1e-3)


def make_setting(name: str, size: Size, seed: int, options: Mapping[str, Any], iterations: int) -> Setting:
    """One run, evaluated after each iteration."""
    options = METHODS[name] | {"minibatch_size": size.minibatch} | dict(options)
    return Setting(
        name, seed, options, batches=iterations, evaluations=iterations, samples=size.samples, prompts=size.prompts
    )


def run(experiment: Experiment[Size]) -> Path:
    """The experiment; prints its tables and writes `results.json`, a picture and a page."""
    size, out = experiment.size, experiment.out
    task = prepare(out / "task", size.task)
    grids = {name: [{"lr": lr} for lr in RATES] for name in METHODS}
    tried, chosen = tune(
        experiment, task, grids, lambda name, option: make_setting(name, size, TUNING_SEED, option, 1)
    )  # fmt: skip
    settings = [
        make_setting(name, size, seed, chosen[name], ITERATIONS if name == "REBEL" else 1)
        for seed in size.seeds for name in METHODS
    ]  # fmt: skip
    rows = run_settings(experiment, settings, task, "runs")
    lines = table(rows)
    print_table("Means over seeds; win % against the initial policy by the separate judge", lines)
    plot(lines, out / "best-worst.png")
    return experiment.write(
        lines, check_claims(lines), ["best-worst.png"], per_seed=rows, tuning=tried, chosen=chosen, task=task.facts(),
        prompts=size.prompts, dtype=fast_dtype(),
    )  # fmt: skip
