"""The one life of a run: claim the folder, build or resume, train, evaluate, write.

`claim` comes first, then whatever the kind of run builds, then `resume` and `run_job`.
"""

from __future__ import annotations

import errno
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml

from valence.errors import UserError
from valence.evaluation.write import figures_of, write_run
from valence.protocols import Source
from valence.runs.options import RunOptions
from valence.runs.settings import CONFIG_FILE, read_config
from valence.training.checkpoint import PREFIX, REPLACED, checkpoints, load_checkpoint, save_checkpoint
from valence.training.interrupt import Interrupted, Signals
from valence.training.learner import Learner
from valence.training.loop import Schedule, train
from valence.training.profiling import open_profiler
from valence.training.progress import TRAINING, Busy, Column, Progress
from valence.training.tracking import open_trackers, read_metrics

Log = Callable[[str], None]
MAY_CHANGE = frozenset((
    "out", "max_steps", "epochs", "steps", "budget", "target", "tracker", "eval_every", "eval_samples", "eval_rows",
    "save_every", "log_every", "kl_budget", "threads", "device", "strict", "reference_cache", "profile", "video",
    "quiet",
))  # fmt: skip
"""Options that may differ when a run is resumed."""
PRODUCTS = ("model", "policy", "results.json", "search.json", "model.safetensors")
"""Files and folders that a finished run leaves."""


@dataclass(frozen=True)
class RunResult:
    """What a run returns.

    Args:
        out: the folder with the model and the files that describe the run.
        method: the method that was run.
        steps: optimizer steps taken.
        stopped: why it ended early, or None.
        before: figures of the first evaluation.
        after: figures of the last evaluation.
        details: what else the kind of run reports, as in its results.json.
    """

    out: Path
    method: str
    steps: int
    stopped: str | None
    before: dict[str, float] = field(default_factory=dict)
    after: dict[str, float] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def model(self) -> Path:
        """Where the model lies."""
        return self.out / "model"


def begin(threads: int, seed: int) -> None:
    """Set torch's threads and random seed."""
    if threads:
        torch.set_num_threads(threads)
    torch.manual_seed(seed)


def claim(out: Path, settings: Mapping[str, object], *, resume: bool = False, can_resume: bool = True) -> Path:
    """Make the output folder. A folder that holds a run is written to only with `resume`, and then the settings must
    be the run's own, apart from where it ends and what it reports.

    Raises:
        UserError: the folder holds a run, the settings differ, or the folder cannot be written to.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        if not os.access(out, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise UserError(f"`out` {out} cannot be written to ({error.strerror}): give another folder") from error
    metrics = out / "metrics.jsonl"
    # A run that failed before its first step left nothing to lose.
    learned = metrics.exists() and any(row.get("step") for row in read_metrics(metrics))
    holds = learned or any((out / name).exists() for name in PRODUCTS) or bool(checkpoints(out / "checkpoints"))
    if holds and not resume:
        advice = "continue it with `resume`, or " if can_resume else ""
        raise UserError(f"{out} already holds a run: {advice}give another `out`")
    if resume and (out / CONFIG_FILE).is_file():
        was = read_config(str(out / CONFIG_FILE))
        changed = [name for name, now in settings.items() if name not in MAY_CHANGE and was.get(name, now) != now]
        if changed:
            name = changed[0]
            raise UserError(
                f"`resume` needs the run's own settings, and {', '.join(changed)} changed ({name} was {was[name]!r}, "
                f"is {settings[name]!r}): give what {out / CONFIG_FILE} holds, or another `out`"
            )
    return out


def write_settings(out: Path, settings: Mapping[str, object]) -> None:
    """Write config.yaml."""
    (out / CONFIG_FILE).write_text(yaml.safe_dump(dict(settings), sort_keys=False), encoding="utf-8")


@dataclass(kw_only=True)
class Job:
    """A run that has been built: what trains, what evaluates, what is saved.

    Args:
        evaluation: step -> figures; with `kl(step)` for a KL budget, and the parts of a report where `facts` are given.
        evaluates_first: evaluate the initial policy before training.
        save: writes the trained policy into the folder.
        facts: name -> text, for the report and the model card; None writes neither.
        section: more of the report, as HTML.
        before_batch: called before each batch is collected.
        unit: what the progress line calls a step.
        columns: the figures of the progress line.
    """

    method: str
    learner: Learner
    source: Source
    schedule: Schedule
    evaluation: Any
    save: Callable[[Path], object]
    evaluates_first: bool = True
    facts: Mapping[str, str] | None = None
    section: Callable[[], str] = str
    before_batch: Callable[[Learner], None] | None = None
    show: bool = True
    unit: str = "step"
    columns: Sequence[Column] = TRAINING


def make_schedule(steps: int, run: RunOptions, **more: int) -> Schedule:
    """When the loop evaluates, saves and logs, by the run's options."""
    return Schedule(
        steps, log_every=run.log_every, eval_every=run.eval_every, save_every=run.save_every, kl_budget=run.kl_budget,
        **more,
    )  # fmt: skip


def resume(out: Path, learner: Learner, source: Source, schedule: Schedule, log: Log) -> None:
    """Continue from the last checkpoint in `out`, where there is one.

    Raises:
        UserError: the checkpoint is of another run, or lies behind the end of this one.
    """
    found = checkpoints(out / "checkpoints")
    if not found:
        log(f"no checkpoint in {out}: starting from the beginning")
        return
    step = int(found[-1].name.removeprefix(PREFIX).removesuffix(REPLACED))
    if step > schedule.steps:
        raise UserError(
            f"the checkpoint {found[-1]} is of update {step:,}, behind the end of this run "
            f"({schedule.steps:,} updates): give more steps"
        )
    load_checkpoint(found[-1], learner, source)
    log(f"resumed from {found[-1].name}")


def run_job(out: Path, job: Job, run: RunOptions, settings: Mapping[str, object], log: Log) -> RunResult:
    """Train, evaluate, and write policy, samples, metrics, card and report to `out`.

    Args:
        settings: written to config.yaml, and handed to trackers.
    Raises:
        UserError: the loss is not finite, or the source failed; what can be kept is.
    """
    write_settings(out, settings)
    learner = job.learner
    trackers = open_trackers(run.tracker, out, dict(settings), keep_until=learner.step)
    profiler, folder = open_profiler(out) if run.profile else None, out / "checkpoints"
    progress = Progress(job.schedule.steps, start=learner.step, show=job.show, unit=job.unit, columns=job.columns)

    def on_step(step: int, figures: dict[str, float]) -> None:
        if profiler is not None:
            profiler.step()
        progress(step, figures)

    def evaluate(step: int) -> dict[str, float]:
        with Busy(f"evaluating at {job.unit} {step:,}", show=job.show):
            figures = job.evaluation(step)
        progress.note({f"eval/{name}": value for name, value in figures.items()})
        return figures

    try:
        with Signals() as signals:
            if learner.step == 0 and job.evaluates_first:
                figures = evaluate(0)
                for tracker in trackers:
                    tracker.log(0, {f"eval/{name}": value for name, value in figures.items()})
            outcome = train(
                learner, job.source, job.schedule, trackers=trackers, evaluate=evaluate,
                measure_kl=job.evaluation.kl if run.kl_budget is not None else None, signals=signals,
                checkpoint_folder=folder if run.save_every else None, on_step=on_step, before_batch=job.before_batch,
            )  # fmt: skip
            # After a budget stop the weights were restored: the optimizer's state belongs to other weights.
            if run.save_every and outcome.stopped is None:
                with signals.unbroken():
                    save_checkpoint(folder, learner, job.source)
    except Interrupted as error:
        if not learner.step:
            raise Interrupted(error.number, "before the first step: there is nothing to save") from None
        saved = save_checkpoint(folder, learner, job.source)
        raise Interrupted(error.number, f"step {learner.step:,} is saved in {saved}: go on with `resume`") from None
    except UserError as error:
        # Within a batch there is nothing to continue from: the source is already past it.
        if not run.save_every or not learner.step or learner.step % job.schedule.batch_steps:
            raise
        raise UserError(f"{error} (saved: {save_checkpoint(folder, learner, job.source)})") from error
    except FloatingPointError as error:
        found = checkpoints(folder)
        raise UserError(f"{error}; " + (f"{found[-1]} is whole" if found else "no checkpoint was saved")) from error
    finally:
        if profiler is not None:
            profiler.stop()
        progress.close()
        for tracker in trackers:
            tracker.close()
    job.save(out)
    rows = read_metrics(out / "metrics.jsonl")
    evaluations = figures_of(rows)
    result = RunResult(
        out, job.method, outcome.steps, outcome.stopped, evaluations[0], evaluations[-1], {"seconds": outcome.seconds}
    )
    if job.facts is not None:
        facts = {"method": job.method, **job.facts, "steps": str(result.steps), "stopped early": result.stopped or "no"}
        write_run(out, facts, rows, job.evaluation, job.section() + job.evaluation.section(learner.step))
        for name in result.after:
            log(f"  {name:26} {result.before.get(name, math.nan):9.3f} -> {result.after[name]:9.3f}")
        stopped = f"stopped: {result.stopped}; the saved model is the last within it\n" if result.stopped else ""
        log(f"{stopped}written: {out}/model, report.html, metrics.jsonl, config.yaml and samples")
    return result
