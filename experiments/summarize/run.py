"""REBEL against its rivals on a text task with a fitted reward model and a separate judge.

REBEL paper, Table 1, Figures 2, 5 and 6, Table 6, with the settings of its appendix H.1.5 where they do not depend on
the model's size. The task stands in for TL;DR summaries: see `experiments.language.task`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from experiments.common import experiment as common
from experiments.common.experiment import TUNING_SEED, Experiment, fast_dtype
from experiments.common.results import print_table
from experiments.language.runs import Setting, measure_costs, run_settings, tune
from experiments.language.table import KL_LIMIT, average
from experiments.language.task import KL_WEIGHT, MAX_NEW_TOKENS, UNFINISHED, TaskSize, prepare
from experiments.summarize.report import check_claims, paper_columns, plot


@dataclass(frozen=True, kw_only=True)
class Size(common.Size):
    """How large the experiment is.

    Args:
        batches: batches that each online method collects, of `batch` prompts.
        pair_steps: optimizer steps of DPO, of as many human pairs each.
        evaluations, samples: evaluations of a run before the last one, and completions in each.
        methods: names in `METHODS`; all where empty.
        etas: values of REBEL's eta to compare, each in one run.
        costs: whether time and memory are measured.
    """

    task: TaskSize
    batches: int
    pair_steps: int
    evaluations: int
    samples: int
    methods: tuple[str, ...] = ()
    etas: tuple[float, ...] = ()
    costs: bool = False
    batch: int = 32


SIZES = {
    "smoke": Size(
        task=TaskSize(1, 8), batches=1, pair_steps=1, evaluations=0, samples=8, methods=("REBEL", "RLOO k=2"), batch=4
    ),
    "quick": Size(task=TaskSize(25, 96), batches=5, pair_steps=10, evaluations=1, samples=96),
    "full": Size(
        seeds=(0, 1, 2), tune=True, task=TaskSize(200, 256), batches=24, pair_steps=48, evaluations=3, samples=256,
        etas=(0.3, 0.7, 2.0), costs=True,
    ),
}  # fmt: skip
ONLINE = {
    "lr_schedule": "linear", "batch_size": 32, "num_samples": 2, "kl_weight": KL_WEIGHT,
    "unfinished_reward": UNFINISHED,
}  # fmt: skip
METHODS: dict[str, dict[str, Any]] = {
    "DPO": {"method": "dpo", "beta": 0.05, "lr_schedule": "linear", "batch_size": 32},
    "iterative DPO": ONLINE | {"method": "iterative-dpo", "beta": 0.05},
    "REINFORCE": ONLINE | {"method": "reinforce"},
    "RLOO k=2": ONLINE | {"method": "rloo"},
    "RLOO k=4": ONLINE | {"method": "rloo", "num_samples": 4},
    "PPO": ONLINE | {"method": "ppo"},
    "REBEL": ONLINE | {"method": "rebel", "eta": 1.0},
}
ONE_EPOCH = ("REINFORCE", "RLOO k=2", "RLOO k=4")
"""They use a batch for one epoch, and take larger steps."""


def make_setting(name: str, size: Size, seed: int, options: Mapping[str, Any]) -> Setting:
    """One run of a method; `options` are the tuned ones."""
    return Setting(
        name, seed, METHODS[name] | {"batch_size": size.batch} | dict(options),
        job="align" if name == "DPO" else "improve", batches=size.pair_steps if name == "DPO" else size.batches,
        evaluations=size.evaluations, samples=size.samples,
    )  # fmt: skip


def rates(name: str) -> tuple[float, ...]:
    """The three learning rates that a method is tuned over."""
    return (3e-4, 6e-4, 1e-3) if name in ONE_EPOCH else (1e-4, 3e-4, 6e-4)


def eta_settings(size: Size, tuned: Mapping[str, Any]) -> list[Setting]:
    """REBEL with other values of eta, on the first seed."""
    rebel = replace(make_setting("REBEL", size, size.seeds[0], tuned), batches=size.batches)
    return [replace(rebel, name=f"REBEL eta={eta:g}", options={**rebel.options, "eta": eta}) for eta in size.etas]


def run(experiment: Experiment[Size]) -> Path:
    """The experiment; prints its tables and writes `results.json`, a picture and a page."""
    size, out = experiment.size, experiment.out
    task = prepare(out / "task", size.task)
    facts = task.facts()
    print(
        f"reward model: {100 * facts['reward_model'].get('accuracy', float('nan')):.1f}% of held-out pairs right; "
        f"separate judge: {100 * facts['judge_accuracy']:.1f}% of held-out sentences"
    )
    names: Sequence[str] = size.methods or tuple(METHODS)
    short = replace(size, evaluations=0, samples=128)
    grids = {name: [{"lr": lr} for lr in rates(name)] for name in names}
    tried, chosen = tune(
        experiment, task, grids, lambda name, option: make_setting(name, short, TUNING_SEED, option)
    )  # fmt: skip
    settings = [Setting("SFT", seed, job="initial", samples=size.samples) for seed in size.seeds[:1]]
    settings += [make_setting(name, size, seed, chosen[name]) for seed in size.seeds for name in names]
    rows = run_settings(experiment, settings, task, "runs")
    swept = run_settings(experiment, eta_settings(size, chosen["REBEL"]), task, "runs")
    few = [make_setting(name, size, size.seeds[0], chosen[name]) for name in names] if size.costs else []
    costs = measure_costs(experiment, [replace(one, batches=4, evaluations=0, samples=1) for one in few], task)
    lines = [line | costs.get(line["method"], {}) | paper_columns(line["method"]) for line in average(rows)]
    first = [row | {"name": "REBEL eta=1"} for row in rows if row["name"] == "REBEL" and row["seed"] == size.seeds[0]]
    etas = average(first + swept)
    print_table("Means over seeds; reward by the fitted model, win % against humans by a separate judge", lines)
    if size.etas:
        print_table("REBEL's eta, one seed", etas)
    plot(rows, lines, out / "summarize.png")
    return experiment.write(
        lines, check_claims(lines, etas if size.etas else [], rows), ["summarize.png"],
        page={"tokens": MAX_NEW_TOKENS, "gamma": KL_WEIGHT, "unfinished": UNFINISHED, "kl_limit": KL_LIMIT},
        eta_sweep=etas, per_seed=rows, tuning=tried, task=facts, dtype=fast_dtype(),
        batches=size.batches, chosen=chosen,
    )  # fmt: skip
