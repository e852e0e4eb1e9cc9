"""`valence reproduce control`: the control suite, PMPO from both sides and from either, MPO, DPO (paper, section 5.2).

One agent for all methods: the same critic, networks, update ratio and reference lag, tuned for MPO alone; see
docs/decisions.md. Every run is `valence.control` itself, checkpointed: what was stopped goes on where it was.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from valence.reproduce.control_claims import check_claims
from valence.reproduce.control_plot import plot_curves, plot_sweep
from valence.reproduce.control_report import FULL, TEXT, short, summarize
from valence.reproduce.results import commit, print_claims, print_table, write_page, write_results

CARTPOLE = "dm_control/cartpole-swingup-v0"
WALKER = "dm_control/walker-walk-v0"
CHEETAH = "dm_control/cheetah-run-v0"
BETAS = (0.0, 0.5, 1.0, 1.5, 2.0)
AGENT: dict[str, Any] = {
    "hidden": (128, 128), "batch_size": 256, "steps_per_update": 8.0, "refresh_every": 25, "target_every": 50,
    "n_step": 3, "lr": 1e-3, "critic_lr": 1e-3, "eval_every": 10_000, "save_every": 20_000, "tracker": "none",
    "threads": 1,
}  # fmt: skip
"""Shared by all methods, tuned for MPO on the cartpole; see docs/decisions.md."""
REPEAT = {CARTPOLE: 8, WALKER: 2, CHEETAH: 4}
"""Environment steps an action lasts: PlaNet's (Hafner et al. 2019), usual in comparisons by environment steps."""
MPO_OPTIONS: dict[str, Any] = {"method": "mpo", "epsilon_mean": 0.02, "epsilon_covariance": 1e-5}


@dataclass(frozen=True)
class Job:
    """One run.

    Args:
        name: the method's name in the tables.
        task: the environment.
        steps: environment steps.
        seed: of everything in the run.
        options: fields of `valence.control`.
        part: "main" for the curves, "sweep" for the sweep of beta.
    """

    name: str
    task: str
    steps: int
    seed: int
    options: Mapping[str, Any] = field(default_factory=dict)
    part: str = "main"

    @property
    def settings(self) -> dict[str, Any]:
        """All that `valence.control` is given, but where to write."""
        return AGENT | {"action_repeat": REPEAT[self.task], "steps": self.steps} | dict(self.options)

    @property
    def folder(self) -> str:
        """Named by its settings too: a run made with others is never taken for this one."""
        name = "".join("-" if mark in " /" else mark for mark in self.name if mark != "=")
        digest = hashlib.sha256(json.dumps(self.settings, sort_keys=True).encode()).hexdigest()[:6]
        return f"{self.part}-{short(self.task)}-{name}-{self.seed}-{digest}"


GAUSSIAN: dict[str, dict[str, Any]] = {
    "MPO": MPO_OPTIONS,
    "PMPO-AR": {"method": "pmpo", "alpha": 0.5},
    "PMPO-AR coupled": {"method": "pmpo", "alpha": 0.5, "coupled": True},
    "PMPO-AR beta=0.5": {"method": "pmpo", "alpha": 0.5, "beta": "0.5"},
    "PMPO-AR beta=0.5 coupled": {"method": "pmpo", "alpha": 0.5, "beta": "0.5", "coupled": True},
    "PMPO-A": {"method": "pmpo", "alpha": 1.0},
    "PMPO-R": {"method": "pmpo", "alpha": 0.0},
    "PMPO-AR best/worst": {"method": "pmpo", "alpha": 0.5, "labels": "best-worst"},
    "PMPO-AR best/worst coupled": {"method": "pmpo", "alpha": 0.5, "labels": "best-worst", "coupled": True},
    "DPO": {"method": "dpo", "beta": "20"},
}
CATEGORICAL: dict[str, dict[str, Any]] = {
    f"{name}, categorical": options | {"policy": "categorical"}
    for name, options in {
        "MPO": MPO_OPTIONS, "PMPO-AR": GAUSSIAN["PMPO-AR"], "PMPO-R": GAUSSIAN["PMPO-R"],
        "DPO": {"method": "dpo", "beta": "1"},
    }.items()
}  # fmt: skip
ALPHAS = {"PMPO-A": 1.0, "PMPO-AR": 0.5, "PMPO-R": 0.0}


def jobs(size: str) -> list[Job]:
    """All runs of a size, the most telling first: a run that is stopped early has the most to say."""
    if size == "smoke":
        small = {"hidden": (16,), "batch_size": 16, "eval_episodes": 1, "warmup_steps": 200, "eval_every": 0}
        return [Job(name, CARTPOLE, 400, 0, GAUSSIAN[name] | small) for name in ("MPO", "PMPO-AR")]
    if size == "quick":
        fewer = {"eval_episodes": 2, "eval_every": 10_000}
        return [Job(name, CARTPOLE, 30_000, 0, GAUSSIAN[name] | fewer) for name in ("MPO", "PMPO-AR")]
    methods = GAUSSIAN | CATEGORICAL
    seeds = [[Job(name, CARTPOLE, 100_000, seed, o) for name, o in methods.items()] for seed in range(3)]
    large = [
        [Job(name, task, 200_000, seed, GAUSSIAN[name]) for task in (WALKER, CHEETAH) for name in LARGE]
        for seed in range(2)
    ]
    return [*seeds[0], *large[0], *seeds[1], *sweep(), *seeds[2], *large[1]]


LARGE = ("MPO", "PMPO-AR", "PMPO-R")


def sweep() -> list[Job]:
    """Figure 3 on the cartpole: A, AR and R over beta."""
    chosen = {
        f"{name} beta={beta:g}": {"method": "pmpo", "alpha": alpha, "beta": str(beta)}
        for beta in BETAS
        for name, alpha in ALPHAS.items()
    }
    return [Job(name, CARTPOLE, 60_000, 0, options, "sweep") for name, options in chosen.items()]


def run_job(job: Job, home: Path) -> str:
    """Run, or go on with, one job; returns a line about it. Runs in a process of its own, on one thread."""
    import torch

    torch.set_num_threads(1)
    # Nothing is rendered here, and no driver need be opened.
    os.environ.setdefault("MUJOCO_GL", "disable")
    from valence.runs.control import control

    out = home / job.folder
    kept = out / "done.json"
    if not kept.is_file():
        resume = (out / "control.json").is_file()
        result = control(job.task, seed=job.seed, out=str(out), resume=resume, quiet=True, **job.settings)
        found = {"curve": result.curve, "returns": result.returns, "seconds": result.seconds, "commit": commit()}
        kept.write_text(json.dumps(found))
    found = json.loads(kept.read_text())
    return f"{job.folder:48} return {found['curve'][-1][1]:7.1f}  {found['seconds']:.0f} s"


def run_all(todo: Sequence[Job], home: Path, workers: int) -> None:
    """The jobs, side by side; a line when one is there."""
    home.mkdir(parents=True, exist_ok=True)
    if workers == 1:
        for job in todo:
            print(f"  {run_job(job, home)}", flush=True)
        return
    with ProcessPoolExecutor(max_workers=workers, mp_context=get_context("spawn")) as pool:
        began = {pool.submit(run_job, job, home): job for job in todo}
        for ended in as_completed(began):
            # One job that fails must not take the others with it, nor be passed over in silence.
            failed = ended.exception()
            print(f"  {ended.result() if failed is None else f'{began[ended].folder}: FAILED: {failed}'}", flush=True)


def read_finished(todo: Sequence[Job], home: Path) -> list[dict[str, Any]]:
    """What the finished jobs found."""
    found = []
    for job in todo:
        path = home / job.folder / "done.json"
        if path.is_file():
            about = {
                "name": job.name, "task": job.task, "seed": job.seed, "part": job.part, "steps": job.steps,
                "repeat": REPEAT[job.task], "options": dict(job.options),
            }  # fmt: skip
            found.append(about | json.loads(path.read_text()))
    return found


def run(out: Path, size_name: str, workers: int | None = None) -> Path:
    """The experiment; prints its tables and writes `out/results.json`, pictures and a page."""
    workers = 1 if size_name == "smoke" else workers or os.cpu_count() or 1
    todo, home = jobs(size_name), out / f"runs-{size_name}"
    run_all(todo, home, workers)
    return report(out, size_name)


def report(out: Path, size_name: str) -> Path:
    """Tables, claims and pictures of whatever is finished."""
    todo, home = jobs(size_name), out / f"runs-{size_name}"
    finished = read_finished(todo, home)
    rows, claims = summarize(finished), check_claims(finished) if size_name == "full" else []
    print_table("Returns at the end: IQM over seeds, 95% stratified-bootstrap interval", rows)
    if claims:
        print_claims(claims)
    seeds = sorted({run["seed"] for run in finished})
    left = [job.folder for job in todo if not (home / job.folder / "done.json").is_file()]
    made = sorted({run["commit"] for run in finished})
    path = write_results(
        out, "control", rows, claims, seeds, agent=AGENT, action_repeat=REPEAT, runs=finished, run_commits=made,
        not_run=left,
    )  # fmt: skip
    pictures = ["control.png"]
    plot_curves(finished, out / "control.png")
    if any(run["part"] == "sweep" for run in finished):
        plot_sweep(finished, out / "sweep.png")
        pictures.append("sweep.png")
    text = f"{TEXT}{FULL if size_name == 'full' else ''} The runs themselves were made at commit {', '.join(made)}."
    if left:
        text += f" Of {len(todo)} runs {len(left)} are not in: {', '.join(left)}."
    write_page(out / "README.md", "Control: PMPO, MPO and DPO on the control suite", text, *pictures)
    return path
