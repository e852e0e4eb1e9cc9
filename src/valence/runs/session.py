"""What runs on language models share: the folder, the model, its reference, and the way from a learner to a report."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from valence.errors import UserError
from valence.evaluation.card import write_model_card
from valence.evaluation.report import write_report
from valence.policies.language import LanguagePolicy
from valence.policies.loading import DTYPES, check_device, load_language_policy
from valence.runs.config import ModelConfig, RunConfig, TrainConfig
from valence.runs.data import Say
from valence.runs.profiling import Profiler
from valence.runs.progress import Progress
from valence.training.checkpoint import checkpoints, load_checkpoint, save_checkpoint
from valence.training.learner import Learner, make_optimizer
from valence.training.loop import Outcome, Schedule, train
from valence.training.reference import AdaptersOff, FrozenCopy
from valence.training.tracking import open_trackers, read_metrics

CONFIG_FILE = "config.yaml"
MAY_CHANGE = frozenset((
    "out", "max_steps", "epochs", "tracker", "eval_every", "eval_samples", "eval_rows", "save_every", "log_every",
    "kl_budget", "threads", "device", "strict", "reference_cache", "profile",
))  # fmt: skip
"""What may differ when a run is resumed."""


def claim(out: Path, settings: Mapping[str, Any], *, resume: bool) -> Path:
    """The output folder, made; a folder that holds a run is only written to with --resume, and then its settings
    must be the run's own but for when it ends and what is watched.

    Raises:
        UserError: they are not, or the folder cannot be written to.
    """
    # A run that failed before its first step left nothing to lose.
    learned = (out / "metrics.jsonl").exists() and any(row["step"] for row in read_metrics(out / "metrics.jsonl"))
    if (out / CONFIG_FILE).exists() and (resume or learned or (out / "model").exists()):
        if not resume:
            raise UserError(f"{out} already holds a run: go on with --resume, or give another --out")
        was, now = yaml.safe_load((out / CONFIG_FILE).read_text()), settings
        other = [name for name in now if name not in MAY_CHANGE and was.get(name, now[name]) != now[name]]
        if other:
            name = other[0]
            raise UserError(
                f"--resume must keep the run's settings, and {', '.join(other)} changed "
                f"({name} was {was[name]!r}, is {now[name]!r}): give what {out / CONFIG_FILE} says, or another --out"
            )
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / "problems.jsonl").touch()
    except OSError as error:
        raise UserError(f"--out {out} cannot be written to ({error.strerror}): give another folder") from error
    return out


def load_policy(model: str, network: ModelConfig) -> LanguagePolicy:
    """The model as its options say."""
    device = network.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return load_language_policy(
        model, dtype=network.dtype, device=device, lora_rank=network.lora_rank, lora_alpha=network.lora_alpha,
        lora_targets=network.lora_targets, gradient_checkpointing=network.gradient_checkpointing,
        trust_remote_code=network.trust_remote_code, temperature=network.temperature, head=network.head,
        attention=network.attention, batching=network.batching,
    )  # fmt: skip


def start_reference(policy: LanguagePolicy, network: ModelConfig) -> Any:
    """The policy as it begins: its adapters off, or a copy."""
    if network.lora_rank:
        return AdaptersOff(policy)
    if network.reference_device:
        check_device(network.reference_device)
    dtype = DTYPES[network.reference_dtype] if network.reference_dtype else None
    return FrozenCopy(policy, dtype=dtype, device=network.reference_device or None)


def learning_rate(options: TrainConfig, network: ModelConfig, policy: LanguagePolicy, *, high: bool = False) -> float:
    """As given; else 1e-4 with LoRA, below 100M parameters or where `high`, and 1e-5 otherwise."""
    size = sum(part.numel() for part in policy.parameters())
    small = network.lora_rank > 0 or high or size < 100_000_000
    return options.lr or (1e-4 if small else 1e-5)


def make_optimizers(
    options: TrainConfig, policy: Any, critic: Any, lr: float, *, eps: float = 1e-8
) -> dict[str, torch.optim.Optimizer]:
    """The policy's, and where there is a critic with parameters of its own that one's."""
    if options.value_lr is not None and critic is None:
        raise UserError(f"--value-lr is {options.value_lr}, and must be left out: this method has no value network")
    optimizers = {
        "policy": make_optimizer(policy, kind=options.optimizer, lr=lr, weight_decay=options.weight_decay, eps=eps)
    }
    if critic is not None:
        optimizers["value"] = make_optimizer(
            critic, kind=options.optimizer, lr=options.value_lr or lr, weight_decay=options.weight_decay
        )
    return optimizers


def resume(out: Path, learner: Learner, source: Any, say: Say) -> None:
    """Go on from the last checkpoint in `out`, if there is one."""
    found = checkpoints(out / "checkpoints")
    if not found:
        say(f"no checkpoint in {out}: starting from the beginning")
        return
    load_checkpoint(found[-1], learner, source)
    say(f"resumed from {found[-1].name}")


@dataclass(frozen=True)
class RunResult:
    """What a run gives back.

    Args:
        out: the folder with model/, metrics.jsonl, samples.jsonl, config.yaml and report.html.
        method: the method that was run.
        steps: optimizer steps taken.
        stopped: why it ended early, or None.
        before, after: the evaluation's figures of the model as it began and as it is now.
    """

    out: Path
    method: str
    steps: int
    stopped: str | None
    before: dict[str, float]
    after: dict[str, float]

    @property
    def model(self) -> Path:
        """Where the model lies."""
        return self.out / "model"


def run_session(
    out: Path, run: RunConfig, settings: Mapping[str, Any], method: str, facts: Mapping[str, str], learner: Learner,
    source: Any, schedule: Schedule, evaluation: Any, say: Say, *, show: bool,
    before_batch: Callable[[Learner], None] | None = None, section: Callable[[], str] | None = None,
) -> RunResult:  # fmt: skip
    """Train, and write model, samples, figures, card and report to `out`.

    Args:
        settings: what trackers are told of the run.
        facts: what the report says of it.
        evaluation: an `Evaluation`, or an `ImageEvaluation`.
        show: a progress bar.
        before_batch: see `train`.
        section: a part of the report, as HTML, made at the end.
    Raises:
        UserError: the loss was no number.
    """
    trackers = open_trackers(run.tracker, out, dict(settings), keep_until=learner.step)
    progress, profiler = Progress(schedule.steps, start=learner.step, show=show), Profiler(out, on=run.profile)

    def on_step(step: int, figures: dict[str, float]) -> None:
        profiler.step()
        progress(step, figures)

    try:
        if learner.step == 0:
            figures = evaluation(0)
            for tracker in trackers:
                tracker.log(0, {f"eval/{name}": value for name, value in figures.items()})
        outcome = train(
            learner, source, schedule, trackers=trackers, evaluate=evaluation, measure_kl=evaluation.kl,
            checkpoint_folder=out / "checkpoints" if run.save_every else None, on_step=on_step,
            before_batch=before_batch,
        )  # fmt: skip
        # After a budget stop the weights were put back: the optimizer's state is of other weights, and not kept.
        if run.save_every and outcome.stopped is None:
            save_checkpoint(out / "checkpoints", learner, source, {})
    except UserError as error:
        # Within a batch there is nothing to go on from: the source is already past it.
        if not run.save_every or not learner.step or learner.step % schedule.batch_steps:
            raise
        kept = save_checkpoint(out / "checkpoints", learner, source, {})
        raise UserError(f"{error} (kept: {kept})") from error
    except FloatingPointError as error:
        kept = checkpoints(out / "checkpoints")
        raise UserError(f"{error}; " + (f"{kept[-1]} is whole" if kept else "no checkpoint was kept")) from error
    finally:
        profiler.close()
        progress.close()
        for tracker in trackers:
            tracker.close()
    evaluation.policy.save(out / "model")
    return _write(out, run, method, facts, evaluation, outcome, say, section() if section else "")


def _write(
    out: Path, run: RunConfig, method: str, facts: Mapping[str, str], evaluation: Any, outcome: Outcome,
    say: Say, section: str,
) -> RunResult:  # fmt: skip
    samples = evaluation.samples()
    if samples:
        (out / "samples.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in samples))
    rows = read_metrics(out / "metrics.jsonl")
    looks = [{key[5:]: value for key, value in row.items() if key.startswith("eval/")} for row in rows]
    looks = [look for look in looks if look]
    before, after = looks[0], looks[-1]
    told = {"method": method} | dict(facts) | {"steps": str(outcome.steps), "stopped early": outcome.stopped or "no"}
    write_model_card(out / "model", told, before, after, library=evaluation.card)
    write_report(out / "report.html", told, rows, samples, before, after, section=section)
    for name in after:
        say(f"  {name:26} {before.get(name, math.nan):9.3f} -> {after[name]:9.3f}")
    if outcome.stopped:
        say(f"stopped: {outcome.stopped}; the model kept is the last within it")
    more = ", profile.json, profile.txt" if run.profile else ""
    kept = "samples.jsonl" if samples else "grids"
    say(f"written: {out}/model, report.html, {kept}, metrics.jsonl, config.yaml{more}")
    return RunResult(out, method, outcome.steps, outcome.stopped, before, after)
