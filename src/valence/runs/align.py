"""The main job: a file of feedback in, a better language model out."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import yaml

from valence.data.collate import Encoder
from valence.errors import UserError
from valence.evaluation.card import write_model_card
from valence.evaluation.report import write_report
from valence.policies.language import LanguagePolicy
from valence.policies.loading import DTYPES, check_device, load_language_policy
from valence.protocols import Objective
from valence.runs.config import AlignConfig, align_config, check_complete, flat
from valence.runs.data import Encoded, Say, encode_feedback, read_feedback
from valence.runs.evaluation import Evaluation
from valence.runs.methods import describe, make_critic, make_objective
from valence.runs.profiling import Profiler
from valence.runs.progress import Progress
from valence.sources.offline import OfflineSource
from valence.training.checkpoint import checkpoints, load_checkpoint, save_checkpoint
from valence.training.learner import Learner, make_optimizer
from valence.training.loop import Outcome, Schedule, train
from valence.training.reference import AdaptersOff, FrozenCopy
from valence.training.reference_cache import CachedReference
from valence.training.tracking import open_trackers, read_metrics

CONFIG_FILE = "config.yaml"
MAY_CHANGE = frozenset((
    "out", "max_steps", "epochs", "tracker", "eval_every", "eval_samples", "eval_rows", "save_every", "log_every",
    "kl_budget", "threads", "device", "strict", "reference_cache", "profile",
))  # fmt: skip
"""What may differ when a run is resumed."""


@dataclass(frozen=True)
class AlignResult:
    """What a run gives back.

    Args:
        out: the folder with model/, metrics.jsonl, samples.jsonl, config.yaml and report.html.
        method: the method that was run.
        steps: optimizer steps taken.
        stopped: why it ended early, or None.
        before, after: the evaluation's figures of the reference and of the aligned model.
    """

    out: Path
    method: str
    steps: int
    stopped: str | None
    before: dict[str, float]
    after: dict[str, float]

    @property
    def model(self) -> Path:
        """Where the aligned model lies."""
        return self.out / "model"


def align(
    feedback: str | Path | Sequence[str | Path], *, model: str | Path, out: str | Path, quiet: bool = False,
    **options: Any,
) -> AlignResult:  # fmt: skip
    """Align a language model with a file of feedback.

    Args:
        feedback: one path or several; any shape (see `valence inspect`).
        model: a folder, a hub id, or "small-lm".
        out: a folder to write into.
        quiet: print nothing.
        options: any field of the run, as on the command line: method, lr, max_steps, kl_budget, …
    Raises:
        UserError: bad input, in one line that says what, where and what to do.
    """
    paths: Any = str(feedback) if isinstance(feedback, Path) else feedback
    if isinstance(paths, list | tuple):
        paths = [str(path) for path in paths]
    config = align_config(feedback=paths, model=str(model), out=str(out), **options)
    check_complete(config)
    return run_alignment(config, say=(lambda line: None) if quiet else print, show=not quiet)


def run_alignment(config: AlignConfig, *, say: Say = print, show: bool = True) -> AlignResult:
    """Run what `config` says; see `align`."""
    if config.run.threads:
        torch.set_num_threads(config.run.threads)
    torch.manual_seed(config.train.seed)
    out = _claim(config)
    feedback = read_feedback(config, say)
    policy = _load(config)
    positions = getattr(policy.core.config, "max_position_embeddings", None) or config.data.max_length
    encoder = Encoder(
        policy.tokenizer, encoder_decoder=policy.encoder_decoder, max_length=min(config.data.max_length, positions),
        separator=config.data.separator, end_token_ids=policy.end_token_ids,
    )  # fmt: skip
    data = encode_feedback(feedback, encoder, out, strict=config.data.strict, say=say)
    _limit_samples(config, policy, data, positions)
    objective, notes = make_objective(feedback.method, config.method, data.groups)
    for note in notes:
        say(note)
    learner, source, steps = _learner(config, feedback.method, policy, objective, data)
    say(_plan(config, policy, learner, data, steps))
    if config.run.resume:
        _resume(out, learner, source, say)
    (out / CONFIG_FILE).write_text(yaml.safe_dump(_kept(config), sort_keys=False))
    result = _train(config, out, feedback.method, policy, learner, source, data, steps, say, show)
    if isinstance(learner.reference, CachedReference):
        say(f"reference cache: {learner.reference.hits} rows looked up, {learner.reference.misses} measured")
    return result


def _limit_samples(config: AlignConfig, policy: LanguagePolicy, data: Encoded, positions: int) -> None:
    """How long samples may grow: as asked, else as the longest completion of the feedback (256 at most), and never
    past the model's positions."""
    longest = max(len(ids) for row in data.train for ids in row.completions)
    limit = config.network.max_new_tokens or min(256, longest)
    if not policy.encoder_decoder:
        limit = min(limit, positions - max(len(row.prompt) for row in [*data.train, *data.heldout]))
    policy.max_new_tokens = max(1, limit)


def _resume(out: Path, learner: Learner, source: OfflineSource, say: Say) -> None:
    found = checkpoints(out / "checkpoints")
    if not found:
        say(f"no checkpoint in {out}: starting from the beginning")
        return
    load_checkpoint(found[-1], learner, source)
    say(f"resumed from {found[-1].name}")


def _kept(config: AlignConfig) -> dict[str, Any]:
    """The config as config.yaml: it reruns the run, so it does not itself say resume."""
    return flat(replace(config, run=replace(config.run, resume=False)))


def _claim(config: AlignConfig) -> Path:
    """The output folder, made; a folder that holds a run is only written to with --resume, and then its settings
    must be the run's own but for when it ends and what is watched."""
    out = Path(config.out)
    if (out / CONFIG_FILE).exists():
        if not config.run.resume:
            raise UserError(f"{out} already holds a run: go on with --resume, or give another --out")
        was, now = yaml.safe_load((out / CONFIG_FILE).read_text()), _kept(config)
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


def _load(config: AlignConfig) -> LanguagePolicy:
    device = config.network.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    network = config.network
    return load_language_policy(
        config.model, dtype=network.dtype, device=device, lora_rank=network.lora_rank, lora_alpha=network.lora_alpha,
        lora_targets=network.lora_targets, gradient_checkpointing=network.gradient_checkpointing,
        trust_remote_code=network.trust_remote_code, temperature=network.temperature, head=network.head,
        attention=network.attention, batching=network.batching,
    )  # fmt: skip


def _learner(
    config: AlignConfig, method: str, policy: LanguagePolicy, objective: Objective, data: Encoded
) -> tuple[Learner, OfflineSource, int]:
    options = config.train
    source = OfflineSource(
        data.train, batch_size=options.batch_size, pad=policy.pad_token_id, seed=options.seed,
        mismatched="mismatched" in objective.frozen_needs, device=policy.device,
    )  # fmt: skip
    steps = options.max_steps or max(1, math.ceil(options.epochs * source.batches_per_epoch))
    size = sum(part.numel() for part in policy.parameters())
    small = config.network.lora_rank > 0 or method == "dro" or size < 100_000_000
    lr = options.lr or (1e-4 if small else 1e-5)
    critic = make_critic(objective, config.method, policy)
    optimizers = {"policy": make_optimizer(policy, kind=options.optimizer, lr=lr, weight_decay=options.weight_decay)}
    if critic is not None:
        optimizers["value"] = make_optimizer(
            critic, kind=options.optimizer, lr=options.value_lr or lr, weight_decay=options.weight_decay
        )
    warmup = min(150, steps // 10) if options.warmup_steps is None else options.warmup_steps
    network = config.network
    if network.lora_rank:
        reference: Any = AdaptersOff(policy)
    else:
        if network.reference_device:
            check_device(network.reference_device)
        dtype = DTYPES[network.reference_dtype] if network.reference_dtype else None
        reference = FrozenCopy(policy, dtype=dtype, device=network.reference_device or None)
    if config.network.reference_cache:
        asked = objective.needs | objective.frozen_needs
        if not asked & {"ref_log_prob", "ref_kl", "mismatched"}:
            raise UserError(f"--reference-cache keeps what the reference says, and {method} does not ask: leave it out")
        keeps = "hidden" if "ref_kl" in asked else "log_prob"
        reference = CachedReference(reference, config.network.reference_cache, keeps=keeps)
    learner = Learner(
        policy, objective, reference, optimizers, critic=critic, warmup_steps=warmup,
        total_steps=steps if options.lr_schedule == "linear" else None, max_grad_norm=options.max_grad_norm,
        micro_batch_size=options.micro_batch_size, micro_batch_tokens=options.micro_batch_tokens,
    )  # fmt: skip
    return learner, source, steps


def _plan(config: AlignConfig, policy: LanguagePolicy, learner: Learner, data: Encoded, steps: int) -> str:
    trained = sum(part.numel() for part in policy.trainable().values())
    lr = learner.base_lrs["policy"]
    return (
        f"model: {config.model}, {trained / 1e6:.1f}M trainable parameters on {policy.device}\n"
        f"run: {steps} steps of {config.train.batch_size} contexts, {describe(learner.objective)}, lr {lr:g}, "
        f"{len(data.train):,} training and {len(data.heldout):,} held-out contexts"
    )


def _train(
    config: AlignConfig, out: Path, method: str, policy: LanguagePolicy, learner: Learner, source: OfflineSource,
    data: Encoded, steps: int, say: Say, show: bool,
) -> AlignResult:  # fmt: skip
    evaluation = Evaluation(config, policy, learner, data)
    trackers = open_trackers(config.run.tracker, out, flat(config), keep_until=learner.step)
    schedule = Schedule(
        steps, log_every=config.run.log_every, eval_every=config.run.eval_every, save_every=config.run.save_every,
        kl_budget=config.run.kl_budget,
    )  # fmt: skip
    progress = Progress(steps, start=learner.step, show=show)
    profiler = Profiler(out, on=config.run.profile)

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
            checkpoint_folder=out / "checkpoints" if config.run.save_every else None, on_step=on_step,
        )  # fmt: skip
        # After a budget stop the weights were put back: the optimizer's state is of other weights, and not kept.
        if config.run.save_every and outcome.stopped is None:
            save_checkpoint(out / "checkpoints", learner, source, {})
    except FloatingPointError as error:
        kept = checkpoints(out / "checkpoints")
        raise UserError(f"{error}; " + (f"{kept[-1]} is whole" if kept else "no checkpoint was kept")) from error
    finally:
        profiler.close()
        progress.close()
        for tracker in trackers:
            tracker.close()
    return _write(config, out, method, policy, evaluation, outcome, learner, say)


def _write(
    config: AlignConfig, out: Path, method: str, policy: LanguagePolicy, evaluation: Evaluation, outcome: Outcome,
    learner: Learner, say: Say,
) -> AlignResult:  # fmt: skip
    policy.save(out / "model")
    samples = evaluation.samples()
    (out / "samples.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in samples))
    rows = read_metrics(out / "metrics.jsonl")
    looks = [{key[5:]: value for key, value in row.items() if key.startswith("eval/")} for row in rows]
    looks = [look for look in looks if look]
    before, after = looks[0], looks[-1]
    result = AlignResult(out, method, outcome.steps, outcome.stopped, before, after)
    facts = {
        "method": method, "objective": describe(learner.objective), "model": config.model,
        "feedback": ", ".join(Path(path).name for path in config.feedback), "steps": str(outcome.steps),
        "stopped early": outcome.stopped or "no",
    }  # fmt: skip
    write_model_card(out / "model", facts, before, after)
    write_report(out / "report.html", facts, rows, samples, before, after)
    for name in after:
        say(f"  {name:26} {before.get(name, math.nan):9.3f} -> {after[name]:9.3f}")
    if outcome.stopped:
        say(f"stopped: {outcome.stopped}; the model kept is the last within it")
    say(f"written: {out}/model, report.html, samples.jsonl, metrics.jsonl, config.yaml")
    return result
