"""PMPO with accepted and rejected actions, MPO and DPO on the control suite (PMPO paper, section 5.2).

All methods share one agent: the same critic, networks, update ratio and reference lag, tuned for MPO only; see
docs/decisions.md. Every run is `valence.control` itself, with checkpoints: an interrupted run continues.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from experiments.common import experiment as common
from experiments.common.experiment import Experiment, Row, key
from experiments.common.results import print_table
from experiments.control.report import check_claims, plot_curves, plot_sweep, summarize

CARTPOLE = "dm_control/cartpole-swingup-v0"
WALKER = "dm_control/walker-walk-v0"
CHEETAH = "dm_control/cheetah-run-v0"
BETAS = (0.0, 0.5, 1.0, 1.5, 2.0)
AGENT: dict[str, Any] = {
    "hidden": (128, 128), "batch_size": 256, "steps_per_update": 8.0, "refresh_every": 25, "target_every": 50,
    "n_step": 3, "lr": 1e-3, "critic_lr": 1e-3, "eval_every": 10_000, "save_every": 20_000, "tracker": "none",
    "threads": 1,
}  # fmt: skip
"""Options of all methods, tuned for MPO on the cartpole; see docs/decisions.md."""
REPEAT = {CARTPOLE: 8, WALKER: 2, CHEETAH: 4}
"""Environment steps per action: PlaNet's (Hafner et al. 2019), usual in comparisons by environment steps."""
MPO: dict[str, Any] = {"method": "mpo", "epsilon_mean": 0.02, "epsilon_covariance": 1e-5}
PMPO: dict[str, Any] = {"method": "pmpo", "alpha": 0.5}
GAUSSIAN: dict[str, dict[str, Any]] = {
    "MPO": MPO,
    "PMPO-AR": PMPO,
    "PMPO-AR coupled": PMPO | {"coupled": True},
    "PMPO-AR beta=0.5": PMPO | {"beta": 0.5},
    "PMPO-AR beta=0.5 coupled": PMPO | {"beta": 0.5, "coupled": True},
    "PMPO-A": PMPO | {"alpha": 1.0},
    "PMPO-R": PMPO | {"alpha": 0.0},
    "PMPO-AR best/worst": PMPO | {"labels": "best-worst"},
    "PMPO-AR best/worst coupled": PMPO | {"labels": "best-worst", "coupled": True},
    "DPO": {"method": "dpo", "beta": 20.0},
}
CATEGORICAL: dict[str, dict[str, Any]] = {
    f"{name}, categorical": options | {"policy": "categorical"}
    for name, options in {
        "MPO": MPO, "PMPO-AR": GAUSSIAN["PMPO-AR"], "PMPO-R": GAUSSIAN["PMPO-R"],
        "DPO": {"method": "dpo", "beta": 1.0},
    }.items()
}  # fmt: skip
ALPHAS = {"PMPO-A": 1.0, "PMPO-AR": 0.5, "PMPO-R": 0.0}
LARGE = ("MPO", "PMPO-AR", "PMPO-R")
"""Methods on the walker and the cheetah."""


@dataclass(frozen=True)
class Setting(common.Setting):
    """One run.

    Args:
        task: the environment.
        steps: environment steps.
        options: options of `valence.control`, beside `AGENT`.
        part: "main" for the comparison, "sweep" for the sweep over beta.
    """

    task: str = CARTPOLE
    steps: int = 0
    options: Mapping[str, Any] = field(default_factory=dict)
    part: str = "main"


SIZES = {"smoke": common.Size(), "quick": common.Size(), "full": common.Size(seeds=(0, 1, 2))}


def list_settings(size_name: str) -> list[Setting]:
    """All runs of a size, the most informative first, so that an interrupted experiment shows most."""
    if size_name == "smoke":
        small = {"hidden": (16,), "batch_size": 16, "eval_episodes": 1, "warmup_steps": 200, "eval_every": 0}
        return [Setting(name, 0, CARTPOLE, 400, GAUSSIAN[name] | small) for name in ("MPO", "PMPO-AR")]
    if size_name == "quick":
        fewer = {"eval_episodes": 2, "eval_every": 10_000}
        return [Setting(name, 0, CARTPOLE, 30_000, GAUSSIAN[name] | fewer) for name in ("MPO", "PMPO-AR")]
    methods = GAUSSIAN | CATEGORICAL
    small = [[Setting(name, seed, CARTPOLE, 100_000, one) for name, one in methods.items()] for seed in range(3)]
    large = [
        [Setting(name, seed, task, 200_000, GAUSSIAN[name]) for task in (WALKER, CHEETAH) for name in LARGE]
        for seed in range(2)
    ]
    # Figure 3 on the cartpole.
    sweep = [
        Setting(f"{name} beta={beta:g}", 0, CARTPOLE, 60_000, PMPO | {"alpha": alpha, "beta": beta}, "sweep")
        for beta in BETAS for name, alpha in ALPHAS.items()
    ]  # fmt: skip
    return [*small[0], *large[0], *small[1], *sweep, *small[2], *large[1]]


def run_setting(setting: Setting, agent: Mapping[str, Any], folder: Path) -> Row:
    """Run, or continue, one training."""
    # Nothing is rendered here, so no driver needs to be opened.
    os.environ.setdefault("MUJOCO_GL", "disable")
    from valence import control
    from valence.training.checkpoint import checkpoints

    out = folder / key(setting, agent)
    resume = bool(checkpoints(out / "checkpoints"))
    if not resume:
        shutil.rmtree(out, ignore_errors=True)
    options = {**agent, "action_repeat": REPEAT[setting.task], "steps": setting.steps, **setting.options}
    result = control(setting.task, seed=setting.seed, out=out, resume=resume, quiet=True, **options)
    return {
        "task": setting.task, "part": setting.part, "steps": setting.steps, "repeat": REPEAT[setting.task],
        "options": dict(setting.options), **{name: result.details[name] for name in ("curve", "returns", "seconds")},
    }  # fmt: skip


def log(row: Row) -> str:
    """A line about one run."""
    title = f"{row['task'].split('/')[-1]}, {row['name']}, {row['part']}"
    return f"{title:60} seed {row['seed']} return {row['curve'][-1][1]:7.1f}  {row['seconds']:.0f} s"


def run(experiment: Experiment[common.Size]) -> Path:
    """The experiment; prints its tables and writes `results.json`, pictures and a page, of the runs that finished."""
    out = experiment.out
    settings = list_settings(experiment.size_name)
    rows = experiment.run_all(run_setting, settings, AGENT, out / "runs", log=log, keep_going=True)
    finished = {(row["name"], row["seed"], row["task"], row["part"]) for row in rows}
    missing = [one for one in settings if (one.name, one.seed, one.task, one.part) not in finished]
    not_run = [f"{one.part}-{one.task.split('/')[-1]}-{one.name}-{one.seed}" for one in missing]
    lines, claims = summarize(rows), check_claims(rows) if experiment.size_name == "full" else []
    print_table("Returns at the end: IQM over seeds, 95% stratified-bootstrap interval", lines)
    pictures = ["control.png"]
    plot_curves(rows, out / "control.png")
    if any(row["part"] == "sweep" for row in rows):
        plot_sweep(rows, out / "sweep.png")
        pictures.append("sweep.png")
    note = f"Of {len(settings)} runs {len(not_run)} are missing: {', '.join(not_run)}." if not_run else ""
    return experiment.write(
        lines, claims, pictures, note=note, agent=AGENT, action_repeat=REPEAT, runs=rows, not_run=not_run
    )
