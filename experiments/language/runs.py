"""Runs on the text task: each trains one setting, and judges samples of the policy on held-out prompts."""

from __future__ import annotations

import json
import math
import shutil
import statistics
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from experiments.common import experiment as common
from experiments.common.experiment import SILENT, Experiment, Row, cached, fast_dtype, key
from experiments.common.results import read_lines, write_lines
from experiments.language.table import choose
from experiments.language.task import KL_WEIGHT, MAX_NEW_TOKENS, SeparateJudge, Task
from valence.evaluation.overoptimization import by_decile
from valence.evaluation.statistics import mean_interval, win_rate
from valence.sources.prompts import higher_wins

STATUS = Path("/proc/self/status")
UPDATE_FIGURES = ("step", "reward", "regression_error", "reward_gap_variance", "kl_policy_initial", "ended")


@dataclass(frozen=True)
class Setting(common.Setting):
    """One run.

    Args:
        options: options of `valence.improve`, or of `valence.align` where `job` is "align".
        job: "improve" learns from the reward model, "align" from the human pairs; "initial" trains nothing.
        batches: collected batches (improve) or optimizer steps (align).
        evaluations: evaluations before the last one.
        samples: completions per evaluation.
        prompts: only the first so many prompts are used; 0 takes all.
    """

    options: Mapping[str, Any] = field(default_factory=dict)
    job: str = "improve"
    batches: int = 48
    evaluations: int = 4
    samples: int = 192
    prompts: int = 0


def run_settings(experiment: Experiment[Any], settings: Sequence[Setting], task: Task, folder: str) -> list[Row]:
    """The rows of all settings."""
    return experiment.run_all(run_setting, settings, task, experiment.out / folder, folder=folder, log=log)


def tune(
    experiment: Experiment[Any], task: Task, grids: Mapping[str, Sequence[Mapping[str, Any]]],
    make: Callable[[str, Mapping[str, Any]], Setting],
) -> tuple[list[Row], dict[str, dict[str, Any]]]:  # fmt: skip
    """(the rows of tuning, the chosen options of each method).

    Args:
        grids: the options to choose from, by method.
        make: the setting that tries one of them.
    """
    settings = [make(name, option) for name, grid in grids.items() for option in grid]
    tried = run_settings(experiment, settings, task, "tuning") if experiment.size.tune else []
    return tried, choose(tried, grids)


def log(row: Row) -> str:
    """A line about one run."""
    return (
        f"{row['name']:16} seed {row['seed']:<4} reward {row['reward']:+.3f}, judged {row['judge']:+.3f}, wins "
        f"{row['win']:.0f}%, KL(π‖π_0) {row['kl']:.2f}  {row['options']}"
    )


def run_setting(setting: Setting, task: Task, folder: Path) -> Row:
    """Train and judge; the run's metrics and samples stay in `folder`."""
    out = folder / key(setting, task)
    shutil.rmtree(out, ignore_errors=True)
    if setting.job == "improve":
        row = _improve(setting, task, out)
    else:
        model = str(_align(setting, task, out / "align")) if setting.job == "align" else "small-lm"
        row = evaluate(model, task, out, samples=setting.samples, seed=setting.seed)
    for part in ("checkpoints", "best-by-gold", "model", "align"):
        shutil.rmtree(out / part, ignore_errors=True)
    return {"options": dict(setting.options)} | row


def _improve(setting: Setting, task: Task, out: Path) -> Row:
    """The row of a run of `valence.improve`."""
    from valence import improve
    from valence.runs.improve import steps_per_batch
    from valence.training.tracking import read_metrics

    options = dict(setting.options)
    contexts = setting.prompts if options.get("full_batch") else options.get("batch_size", 32)
    per_batch = steps_per_batch(
        "improve", options["method"], batch_size=contexts, num_epochs=options.get("num_epochs"),
        minibatch_size=options.get("minibatch_size", 0),
    )  # fmt: skip
    shared = _options(setting, setting.batches * per_batch)
    if setting.evaluations:
        every = per_batch * max(1, setting.batches // setting.evaluations)
        shared |= {"eval_every": every, "log_every": per_batch}
    result = improve(
        _prompts(setting, task, out), model="small-lm", out=out, reward=str(task.reward), gold=SeparateJudge(),
        eval_feedback=str(task.heldout), max_new_tokens=MAX_NEW_TOKENS, **(shared | options),
    )  # fmt: skip
    metrics = read_metrics(out / "metrics.jsonl")
    return _judged(out, task) | {
        "steps": result.steps, "figures": result.after, "start": result.before,
        "curve": [{"step": row["step"]} | {name[5:]: value for name, value in row.items() if name.startswith("eval/")}
                  for row in metrics if "eval/reward" in row],
        "updates": [{name: row[name] for name in UPDATE_FIGURES if name in row} for row in metrics if "seconds" in row],
    }  # fmt: skip


def _options(setting: Setting, steps: int) -> dict[str, Any]:
    return SILENT | {
        "eval_samples": setting.samples, "dtype": fast_dtype(), "max_steps": steps, "seed": setting.seed,
        "device": "cpu", "separator": "",
    }  # fmt: skip


def _align(setting: Setting, task: Task, out: Path) -> Path:
    """The model after `valence.align` on the human pairs."""
    from valence import align

    options: dict[str, Any] = {**_options(setting, setting.batches), "eval_samples": 1, **setting.options}
    return align(task.pairs, model="small-lm", out=out, **options).model


def _prompts(setting: Setting, task: Task, out: Path) -> Path:
    """The task's file of prompts, or a file of the first ones."""
    if not setting.prompts:
        return task.prompts
    return write_lines(out / "prompts.jsonl", read_lines(task.prompts)[: setting.prompts])


def evaluate(model: str, task: Task, out: Path, *, samples: int, seed: int) -> Row:
    """The row of a model that was not trained by `valence.improve`: one evaluation, like the last one of a run."""
    from valence.evaluation.samples import Evaluation
    from valence.evaluation.watch import Watch
    from valence.policies.loading import load_language_policy
    from valence.rewards.loading import load_reward
    from valence.sources.prompts import EncodedPrompt
    from valence.training.reference import FrozenCopy

    out.mkdir(parents=True, exist_ok=True)
    policy, initial = (
        load_language_policy(path, max_new_tokens=MAX_NEW_TOKENS, dtype=fast_dtype()) for path in (model, "small-lm")
    )
    rows = [EncodedPrompt(policy.tokenizer(prompt)["input_ids"], prompt) for prompt in task.references()]
    evaluation = Evaluation(
        policy, FrozenCopy(initial), [row.ids for row in rows], num_samples=samples, num_rows=0, seed=seed,
        judge=Watch(policy, rows, load_reward(str(task.reward)), SeparateJudge(), out),
    )  # fmt: skip
    figures = evaluation(0)
    write_lines(out / "samples.jsonl", evaluation.samples())
    return _judged(out, task) | {"figures": figures}


def _judged(out: Path, task: Task) -> Row:
    """Figures of the last evaluation: the reward, the judge's score, and how often the judge prefers the sample to
    the human's own ending."""
    last = json.loads((out / "evaluations.json").read_text(encoding="utf-8"))[-1]
    rests = task.references()
    rows = read_lines(out / "samples.jsonl")
    judge, prompts = SeparateJudge(), [row["prompt"].strip() for row in rows]
    ours = judge(prompts, [row["after"] for row in rows])
    theirs = judge(prompts, [rests[prompt] for prompt in prompts])
    verdicts = [verdict for verdict in higher_wins(ours, theirs) if verdict is not None]
    lengths = [
        (len(row["after"].split()), len(rests[prompt].split())) for row, prompt in zip(rows, prompts, strict=True)
    ]
    won = win_rate(verdicts, lengths)
    reward, half = mean_interval(last["proxy"])
    kl = statistics.fmean(last["kl"])
    return {
        "reward": reward, "reward_half": half, "kl": kl, "objective": reward - KL_WEIGHT * kl,
        "judge": mean_interval(last["gold"])[0], "win": 100 * won.rate, "win_low": 100 * won.low,
        "win_high": 100 * won.high,
        "win_at_equal_length": 100 * (won.rate if won.length_controlled is None else won.length_controlled),
        "deciles": by_decile(last["kl"], last["proxy"]),
    }  # fmt: skip


def measure_costs(experiment: Experiment[Any], settings: Sequence[Setting], task: Task) -> dict[str, dict[str, float]]:
    """The cost of each method: one run after another, so that they can be compared."""
    costs, folder = {}, experiment.out / "costs"
    for setting in settings:
        # A process each: a process keeps the memory of its earlier runs. (max_tasks_per_child hangs in Python 3.11.)
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            row = pool.submit(cached, folder, measure_cost, setting, task, folder).result()
        costs[setting.name] = {name: row[name] for name in ("collect", "update", "mib")}
    return costs


def measure_cost(setting: Setting, task: Task, folder: Path) -> dict[str, float]:
    """Median seconds to collect and to update a batch, and the peak memory of a short run in MiB.

    Memory that the process held before the run, libraries among it, does not count.
    """
    from valence.rewards.loading import load_reward
    from valence.training.tracking import read_metrics

    load_reward(str(task.reward))
    before = _memory("VmRSS")
    # Resets the peak: a process begins with its parent's.
    if STATUS.exists():
        Path("/proc/self/clear_refs").write_text("5")
    out = folder / key(setting, task)
    shutil.rmtree(out, ignore_errors=True)
    (_align if setting.job == "align" else _improve)(setting, task, out)
    peak = _memory("VmHWM")
    rows = [row for row in read_metrics(out / "metrics.jsonl") if "seconds" in row]
    # The first batch also warms up.
    rows = rows[1:] or rows
    return {
        "collect": statistics.median(row["seconds_collecting"] for row in rows),
        "update": statistics.median(row["seconds"] - row["seconds_collecting"] for row in rows), "mib": peak - before,
    }  # fmt: skip


def _memory(name: str) -> float:
    """A figure of this process from Linux's own account, MiB; NaN on other systems."""
    if not STATUS.exists():
        return math.nan
    (line,) = (line for line in STATUS.read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) / 1024
