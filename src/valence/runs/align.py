"""The main job: a file of feedback in, a better language model out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import tyro

from valence.data.groups.adjust import count_classes
from valence.data.inspect import choose_method
from valence.data.load import Loaded
from valence.data.prepare import Encoded, encode_feedback
from valence.data.stored import Lazy
from valence.errors import UserError
from valence.evaluation.samples import Evaluation
from valence.policies.language import LanguagePolicy
from valence.runs.data import convert, load_rows
from valence.runs.language import (
    LanguageConfig,
    initial_reference,
    learning_rate,
    load_policy,
    make_encoder,
    make_learner,
    positions_of,
)
from valence.runs.methods import ALIGN, describe
from valence.runs.options import CachedReferenceOptions, FeedbackOptions
from valence.runs.run import Job, Log, RunResult, begin, claim, make_schedule, resume, run_job
from valence.runs.settings import configure, settings_of, to_words
from valence.sources.offline import OfflineSource
from valence.training.learner import Learner
from valence.training.progress import Busy
from valence.training.reference_cache import CachedHidden, CachedLogProbs, cache_reference


@dataclass(frozen=True)
class AlignConfig(LanguageConfig):
    """Make a language model better from feedback of any shape. `valence inspect` shows what a file holds."""

    command: ClassVar[str] = "align"
    required: ClassVar[tuple[str, ...]] = ("feedback", "model", "out")
    usage: ClassVar[str] = "valence align FEEDBACK --model MODEL --out DIR"

    feedback: tyro.conf.Positional[tuple[str, ...]] = ()
    """Files or folders of feedback."""
    method: str = "auto"
    """The method; auto chooses by the feedback. Its options: valence align --method NAME --help."""
    preset: str | None = None
    """pmpo: ar (accepted and rejected), a (accepted only) or r (rejected only), with the paper's alpha and beta."""
    data: FeedbackOptions = field(default_factory=FeedbackOptions)
    reference: CachedReferenceOptions = field(default_factory=CachedReferenceOptions)


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
        options: any option of the command line: method, lr, max_steps, kl_budget, …
    Raises:
        UserError: bad input, in one line that says what, where and what to do.
    """
    log: Log = (lambda line: None) if quiet else print
    words, positional = to_words(AlignConfig, {"feedback": feedback, "model": model, "out": out} | options)
    return align_from_words(words, positional, log=log, show=not quiet)


def align_from_words(words: Sequence[str], positional: dict[str, Any], *, log: Log, show: bool) -> RunResult:
    """Run what the words describe. With the method "auto" the feedback is read first."""
    loaded: list[Loaded] = []

    def choose(config: AlignConfig) -> str:
        loaded.append(load_rows(config.feedback, config.data, log, describe=True, show=show))
        chosen, why = choose_method(loaded[0])
        if chosen is None:
            raise UserError(why)
        log(f"method: {chosen} ({why})")
        return chosen

    config = configure(AlignConfig, words, positional, choose=choose)
    return run_alignment(config, loaded[0] if loaded else None, log=log, show=show)


def run_alignment(
    config: AlignConfig, loaded: Loaded | None = None, *, log: Log = print, show: bool = True
) -> RunResult:
    """Run what `config` describes; `loaded` is its feedback where it has been read already."""
    row, options, data = ALIGN[config.method], config.options, config.data
    begin(config.run.threads, config.train.seed)
    settings = settings_of(config)
    out = claim(Path(config.out), settings, resume=config.run.resume)
    if loaded is None:
        loaded = load_rows(config.feedback, data, log, describe=True, show=show)
        log(f"method: {config.method} (asked for)")
    objective = row.make(options)
    feedback = convert(loaded, row, options, objective, data, config.train.seed, log, show=show)
    policy = load_policy(config.model, config.network, temperature=config.sampling.temperature)
    with Busy("turning text into tokens", show=show, unit="contexts") as progress:
        rows = encode_feedback(
            feedback, make_encoder(policy, data), out, strict=data.strict, log=log, progress=progress
        )  # fmt: skip
    policy.max_new_tokens = _longest_sample(config, policy, rows)
    if row.fit is not None:
        objective, notes = row.fit(objective, count_classes(rows.groups))
        for note in notes:
            log(note)
    learner, source, steps = _build(config, policy, objective, rows)
    log(_plan(config, policy, learner, rows, steps))
    schedule = make_schedule(steps, config.run)
    if config.run.resume:
        resume(out, learner, source, schedule, log)
    pool = rows.heldout or rows.train
    assert learner.reference is not None
    with Busy("sampling from the initial policy", show=show):
        evaluation = Evaluation(
            policy, learner.reference, Lazy(len(pool), lambda place: pool[place].prompt), rows=rows.heldout,
            num_samples=config.run.eval_samples, num_rows=config.run.eval_rows, seed=config.train.seed,
        )  # fmt: skip
    facts = {
        "objective": describe(objective), "model": config.model,
        "feedback": ", ".join(Path(path).name for path in config.feedback),
        **{f"read as {side}": example for side, example in loaded.tally.examples.items()},
    }  # fmt: skip
    job = Job(
        method=config.method, learner=learner, source=source, schedule=schedule, evaluation=evaluation, facts=facts,
        save=lambda folder: policy.save(folder / "model"), show=show,
    )  # fmt: skip
    result = run_job(out, job, config.run, settings, log)
    if isinstance(learner.reference, CachedLogProbs | CachedHidden):
        log(f"reference cache: {learner.reference.hits} rows looked up, {learner.reference.misses} measured")
    return result


def _longest_sample(config: AlignConfig, policy: LanguagePolicy, rows: Encoded) -> int:
    """Tokens of the longest sample: as asked, else those of the longest completion of the feedback, at most 256; never
    past the model's positions."""
    prompt = completion = 0
    for row in rows.train:
        prompt, completion = max(prompt, len(row.prompt)), max(completion, *map(len, row.completions))
    limit = config.sampling.max_new_tokens or min(256, completion)
    if not policy.encoder_decoder:
        positions = positions_of(policy, config.data.max_length)
        limit = min(limit, positions - max((len(row.prompt) for row in rows.heldout), default=0), positions - prompt)
    return max(1, limit)


def _build(
    config: AlignConfig, policy: LanguagePolicy, objective: Any, rows: Encoded
) -> tuple[Learner, OfflineSource, int]:
    """(learner, source, optimizer steps)."""
    row, train = ALIGN[config.method], config.train
    source = OfflineSource(
        rows.train, batch_size=train.batch_size, pad=policy.pad_token_id, seed=train.seed,
        mismatched="mismatched" in objective.frozen_needs, device=policy.device,
    )  # fmt: skip
    steps = train.max_steps or max(1, math.ceil(train.epochs * source.batches_per_epoch))
    reference = initial_reference(policy, config.network, config.reference)
    if config.reference.reference_cache:
        asked = objective.needs | objective.frozen_needs
        if not asked & {"ref_log_prob", "ref_kl", "mismatched"}:
            raise UserError(f"`reference_cache` must be left out: {config.method} does not use the reference")
        reference = cache_reference(reference, config.reference.reference_cache, asked)
    learner = make_learner(
        config, row, policy, objective, reference, lr=learning_rate(train, config.network, policy, high=row.high_lr),
        steps=steps, micro_batch_tokens=config.network.micro_batch_tokens,
    )  # fmt: skip
    return learner, source, steps


def _plan(config: AlignConfig, policy: LanguagePolicy, learner: Learner, rows: Encoded, steps: int) -> str:
    trained = sum(part.numel() for part in policy.trainable().values())
    return (
        f"model: {config.model}, {trained / 1e6:.1f}M trainable parameters on {policy.device}\n"
        f"run: {steps} steps of {config.train.batch_size} contexts, {describe(learner.objective)}, "
        f"lr {learner.base_lrs['policy']:g}, {len(rows.train):,} training and {len(rows.heldout):,} held-out contexts"
    )
