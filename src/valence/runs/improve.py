"""Improvement from a reward of the policy's own samples: draw, judge, learn, repeat. Text and images differ only in
what their adapters build (`valence.runs.improve_language`, `valence.runs.improve_images`)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from valence.errors import UserError
from valence.evaluation.watch import Watch
from valence.feedback.running import RunningStandard
from valence.objectives.scaled import ScaledLogProb
from valence.protocols import Policy, Reference
from valence.rewards.ensemble import Judge
from valence.rewards.functions import name_of
from valence.rewards.judge import SelfPlay
from valence.runs.language import make_learner
from valence.runs.methods import METHODS, Method, describe
from valence.runs.options import EtaSchedule, GivenCompletions, Refreshing, Reuse, Shaping
from valence.runs.run import Job, Log, RunResult, make_schedule, resume, run_job
from valence.sources.modality import Modality, OnlineSettings
from valence.sources.online import OnlineSource
from valence.sources.prompts import EncodedPrompt
from valence.training.learner import Learner
from valence.training.loop import Schedule
from valence.training.progress import Busy
from valence.training.reference import FrozenCopy


@dataclass(kw_only=True)
class Adapter:
    """What a kind of sample brings to an improvement run.

    Args:
        initial_policy: pi_0 as a reference.
        prompts: the prompts to learn on.
        pool: the prompts to evaluate on.
        modality: how prompts are completed.
        gold: a judge that the run does not learn from, or None.
        evaluation: makes the evaluation from a `Watch`.
        contexts: prompts in a collected batch.
        settings: fields of `OnlineSettings` that the kind of sample has.
        standard: standardises rewards prompt by prompt, or None.
        log_prob_scale: multiplies log pi within the objective.
        micro_batch_tokens: tokens measured at a time; 0 sets no limit.
        facts: name -> text, for the report.
        describe: the log's first lines, from a sentence about the run.
    """

    policy: Policy
    initial_policy: Reference
    prompts: Sequence[EncodedPrompt]
    pool: Sequence[EncodedPrompt]
    modality: Modality
    judge: Judge
    gold: Judge | None
    evaluation: Callable[[Watch], Any]
    lr: float
    contexts: int
    settings: Mapping[str, Any]
    standard: RunningStandard | None = None
    log_prob_scale: float = 1.0
    micro_batch_tokens: int = 0
    facts: Mapping[str, str] = field(default_factory=dict)
    describe: Callable[[str], str] = str


def steps_per_batch(
    place: str, method: str, *, batch_size: int, num_epochs: int | None = None, minibatch_size: int = 0,
    preset: str | None = None,
) -> int:  # fmt: skip
    """Optimizer steps that a collected batch takes; `num_epochs` of None is the method's own default."""
    row = METHODS[place][method]
    defaults = {"num_epochs": Reuse.num_epochs} | dict(row.defaults) | dict(row.preset_options.get(preset or "", {}))
    return Schedule(0, num_epochs=num_epochs or defaults["num_epochs"], minibatch_size=minibatch_size).steps_of(
        batch_size
    )


def own_judges(reward: Any, gold: Any) -> tuple[dict[str, Any], dict[str, str]]:
    """(those that are no names, the names of both)."""
    judges = {"reward": reward, "gold": gold}
    own = {key: judge for key, judge in judges.items() if not isinstance(judge, str | Path)}
    return own, {key: name_of(judge) if key in own else str(judge) for key, judge in judges.items()}


def check_samples(row: Method, config: Any) -> None:
    """Raise UserError where a method that compares samples has only one of a prompt."""
    given = row.part(GivenCompletions, config.options).num_given
    if row.compares and config.judging.num_samples + given < 2:
        raise UserError(
            f"`num_samples` is {config.judging.num_samples}, and must be at least 2: {config.method} compares samples"
        )


def run_improvement(
    config: Any, out: Path, settings: Mapping[str, object], adapter: Adapter, log: Log, *, show: bool
) -> RunResult:
    """Build the learner and its source, train, and report.

    Args:
        config: an `ImproveConfig` or `ImagesConfig`.
    """
    row = METHODS[config.command][config.method]
    learner, source, schedule = _build(config, row, adapter)
    plan = (
        f"{schedule.steps} optimizer steps, {describe(learner.objective)}, {config.judging.num_samples} "
        f"{adapter.modality.unit} of {config.train.batch_size} prompts at a time, each learned from "
        f"{schedule.num_epochs}×, KL weight {source.settings.kl_weight:g}, lr {learner.base_lrs['policy']:g}, "
        f"{len(adapter.prompts):,} prompts"
    )
    log(adapter.describe(plan))
    asked = config.train.max_steps
    if asked and asked < schedule.steps:
        log(
            f"note: {schedule.steps} steps and not {asked}: a collected batch is learned from as a whole, which takes "
            f"{schedule.batch_steps} (`num_epochs={schedule.num_epochs}`)"
        )
    if config.run.resume:
        resume(out, learner, source, schedule, log)
    watch = Watch(adapter.policy, adapter.pool, adapter.judge, adapter.gold, out, resumed_at=learner.step)
    facts = {
        "objective": describe(learner.objective), "reward": adapter.judge.name,
        "gold": adapter.gold.name if adapter.gold else "none",
    }  # fmt: skip
    with Busy("sampling from the initial policy", show=show):
        evaluation = adapter.evaluation(watch)
    job = Job(
        method=config.method, learner=learner, source=source, schedule=schedule,
        evaluation=evaluation, facts=facts | dict(adapter.facts), section=watch.section,
        before_batch=_eta_changes(learner.objective, _etas(row, config.options), schedule.batch_steps),
        save=lambda folder: adapter.policy.save(folder / "model"), show=show,
    )  # fmt: skip
    result = run_job(out, job, config.run, settings, log)
    for line in watch.warnings(adapter.modality.unit):
        log(line)
    if source.no_spread and config.judging.num_samples > 1:
        log(
            f"warning: in {source.no_spread:,} of {source.batches:,} batches the reward was equal for all "
            f"{adapter.modality.unit} of each prompt: there was nothing to learn from them"
        )
    return result


def _etas(row: Method, options: Any) -> tuple[float, ...]:
    """The step size of each collected batch in turn, for methods whose step size may change; else (1.0,)."""
    if EtaSchedule not in row.parts:
        return (1.0,)
    return row.part(EtaSchedule, options).eta_schedule or (options.eta,)


def _eta_changes(objective: Any, etas: tuple[float, ...], per_batch: int) -> Callable[[Learner], None] | None:
    """Sets eta for the next batch. A new eta rescales the loss, so the optimizer's state is reset."""
    if len(etas) == 1:
        return None

    def change(learner: Learner) -> None:
        collected = learner.step // per_batch
        eta, before = (etas[min(max(place, 0), len(etas) - 1)] for place in (collected, collected - 1))
        learner.objective = replace(objective, eta=eta)
        # Compared with the batch before, not with the learner: a resumed learner holds the first batch's eta.
        if eta != before:
            learner.optimizers["policy"].state.clear()

    return change


def _build(config: Any, row: Method, adapter: Adapter) -> tuple[Learner, OnlineSource, Schedule]:
    options, train, contexts = config.options, config.train, adapter.contexts
    etas, reuse = _etas(row, options), row.part(Reuse, options)
    objective = row.make(options)
    if EtaSchedule in row.parts:
        objective = replace(objective, eta=etas[0])
    if adapter.log_prob_scale != 1:
        objective = ScaledLogProb(objective=objective, log_prob_scale=adapter.log_prob_scale)
    per_batch = reuse.num_epochs * math.ceil(contexts / (reuse.minibatch_size or contexts))
    # Whole batches: a batch is learned from to its end, and its reference stays while it is.
    batches = max(1, math.ceil(train.epochs * len(adapter.prompts) / contexts))
    steps = per_batch * (math.ceil(train.max_steps / per_batch) if train.max_steps else batches)
    refreshed = row.anchor == "refreshed"
    every = per_batch * math.ceil(row.part(Refreshing, options).refresh_every / per_batch)
    reference = FrozenCopy(adapter.policy, refresh_every=every) if refreshed else adapter.initial_policy
    source = OnlineSource(
        adapter.prompts, adapter.judge,
        OnlineSettings(
            batch_size=contexts, num_samples=config.judging.num_samples,
            kl_weight=row.part(Shaping, options).kl_weight, from_reference=refreshed, **adapter.settings,
        ),
        adapter.modality, initial_policy=adapter.initial_policy, reference=reference, seed=train.seed,
        convert=row.part(row.convert, options).converter(isinstance(adapter.judge, SelfPlay)),
        standard=adapter.standard,
    )  # fmt: skip
    learner = make_learner(
        config, row, adapter.policy, objective, reference, lr=adapter.lr, steps=steps, eps=1e-8 / max(1.0, *etas),
        micro_batch_tokens=adapter.micro_batch_tokens,
    )  # fmt: skip
    schedule = make_schedule(
        steps, config.run, num_epochs=reuse.num_epochs, minibatch_size=reuse.minibatch_size, batch_steps=per_batch
    )
    return learner, source, schedule
