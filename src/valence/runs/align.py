"""The main job: a file of feedback in, a better language model out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import yaml

from valence.data.collate import Encoder
from valence.errors import UserError
from valence.policies.language import LanguagePolicy
from valence.protocols import Objective
from valence.runs.config import AlignConfig, align_config, check_complete, flat
from valence.runs.data import Encoded, Say, encode_feedback, read_feedback
from valence.runs.evaluation import Evaluation
from valence.runs.methods import describe, make_critic, make_objective
from valence.runs.session import (
    CONFIG_FILE,
    RunResult,
    claim,
    learning_rate,
    load_policy,
    make_optimizers,
    resume,
    run_session,
    start_reference,
)
from valence.sources.offline import OfflineSource
from valence.training.learner import Learner
from valence.training.loop import Schedule
from valence.training.reference_cache import CachedReference


def align(
    feedback: str | Path | Sequence[str | Path], *, model: str | Path, out: str | Path, quiet: bool = False,
    **options: Any,
) -> RunResult:  # fmt: skip
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
    config = align_config(feedback=feedback, model=str(model), out=str(out), **options)
    check_complete(config)
    return run_alignment(config, say=(lambda line: None) if quiet else print, show=not quiet)


def run_alignment(config: AlignConfig, *, say: Say = print, show: bool = True) -> RunResult:
    """Run what `config` says; see `align`."""
    if config.run.threads:
        torch.set_num_threads(config.run.threads)
    torch.manual_seed(config.train.seed)
    out = claim(Path(config.out), _kept(config), resume=config.run.resume)
    feedback = read_feedback(config, say)
    policy = load_policy(config.model, config.network)
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
        resume(out, learner, source, say)
    (out / CONFIG_FILE).write_text(yaml.safe_dump(_kept(config), sort_keys=False))
    pool = list(data.heldout or data.train)
    evaluation = Evaluation(
        policy, learner.reference, [row.prompt for row in pool], rows=data.heldout, config=config.run,
        seed=config.train.seed,
    )  # fmt: skip
    facts = {
        "objective": describe(learner.objective), "model": config.model,
        "feedback": ", ".join(Path(path).name for path in config.feedback),
    }  # fmt: skip
    schedule = Schedule(
        steps, log_every=config.run.log_every, eval_every=config.run.eval_every, save_every=config.run.save_every,
        kl_budget=config.run.kl_budget,
    )  # fmt: skip
    done = run_session(
        out, config.run, flat(config), feedback.method, facts, learner, source, schedule, evaluation, say, show=show
    )
    if isinstance(learner.reference, CachedReference):
        say(f"reference cache: {learner.reference.hits} rows looked up, {learner.reference.misses} measured")
    return done


def _limit_samples(config: AlignConfig, policy: LanguagePolicy, data: Encoded, positions: int) -> None:
    """How long samples may grow: as asked, else as the longest completion of the feedback (256 at most), and never
    past the model's positions."""
    longest = max(len(ids) for row in data.train for ids in row.completions)
    limit = config.network.max_new_tokens or min(256, longest)
    if not policy.encoder_decoder:
        limit = min(limit, positions - max(len(row.prompt) for row in [*data.train, *data.heldout]))
    policy.max_new_tokens = max(1, limit)


def _kept(config: AlignConfig) -> dict[str, Any]:
    """The config as config.yaml: it reruns the run, so it does not itself say resume."""
    return flat(replace(config, run=replace(config.run, resume=False)))


def _learner(
    config: AlignConfig, method: str, policy: LanguagePolicy, objective: Objective, data: Encoded
) -> tuple[Learner, OfflineSource, int]:
    options = config.train
    source = OfflineSource(
        data.train, batch_size=options.batch_size, pad=policy.pad_token_id, seed=options.seed,
        mismatched="mismatched" in objective.frozen_needs, device=policy.device,
    )  # fmt: skip
    steps = options.max_steps or max(1, math.ceil(options.epochs * source.batches_per_epoch))
    lr = learning_rate(options, config.network, policy, high=method == "dro")
    critic = make_critic(objective, config.method, policy)
    optimizers = make_optimizers(options, policy, critic, lr)
    warmup = min(150, steps // 10) if options.warmup_steps is None else options.warmup_steps
    reference = start_reference(policy, config.network)
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
