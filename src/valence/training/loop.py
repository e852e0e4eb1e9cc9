"""The training loop: collect a batch, update, log, and at times evaluate and save."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch

from valence.protocols import Source
from valence.training.checkpoint import save_checkpoint
from valence.training.interrupt import Signals
from valence.training.learner import Learner
from valence.training.tracking import Tracker


@dataclass(frozen=True)
class Schedule:
    """When the loop does what. A step is one optimizer step; "every" 0 steps means never.

    Args:
        steps: the step at which the loop ends.
        log_every: how often the monitored figures (exact KL, drift) are measured.
        eval_every: how often the policy is evaluated; it is also evaluated at the end.
        save_every: how often a checkpoint is written.
        kl_budget: stop when KL(pi || pi_ref) on fresh samples exceeds this many nats; None: no budget.
        kl_every: how often that KL is measured.
        track_every: how often the trackers get a step's figures; where steps are fast, writing each one takes longer.
        num_epochs: how often each batch is learned from.
        minibatch_size: contexts per optimizer step; 0 takes the full batch.
        batch_steps: optimizer steps that a batch of the usual size takes.
    """

    steps: int
    log_every: int = 5
    eval_every: int = 0
    save_every: int = 0
    kl_budget: float | None = None
    kl_every: int = 10
    track_every: int = 1
    num_epochs: int = 1
    minibatch_size: int = 0
    batch_steps: int = 1

    def steps_of(self, contexts: int) -> int:
        """Optimizer steps that a batch of so many contexts takes."""
        return self.num_epochs * -(-contexts // (self.minibatch_size or contexts))


@dataclass(frozen=True)
class Outcome:
    """How a run ended: after how many optimizer steps in all, why early (None if not), and the time spent on collecting
    and updating in this process."""

    steps: int
    stopped: str | None
    seconds: float


def train(
    learner: Learner,
    source: Source,
    schedule: Schedule,
    *,
    trackers: Sequence[Tracker] = (),
    evaluate: Callable[[int], dict[str, float]] | None = None,
    measure_kl: Callable[[int], float] | None = None,
    checkpoint_folder: Path | None = None,
    on_step: Callable[[int, dict[str, float]], None] | None = None,
    before_batch: Callable[[Learner], None] | None = None,
    signals: Signals | None = None,
) -> Outcome:
    """Train until `schedule.steps`, from the present state of `learner` and `source`.

    With a KL budget, the policy ends with the last weights that were measured within it.

    Args:
        evaluate: step -> figures, which are written to the trackers as "eval/NAME".
        measure_kl: step -> KL(pi || pi_ref) on fresh samples, nats; needed for a budget.
        on_step: called after each batch with the step and its figures.
        before_batch: called before each batch is collected, to change the learner from one batch to the next.
        signals: a batch is learned from, and a checkpoint written, as a whole.
    """
    unbroken = nullcontext if signals is None else signals.unbroken
    budget = _Budget(schedule.kl_budget, measure_kl) if schedule.kl_budget is not None and measure_kl else None
    # A resumed run may already exceed a smaller budget.
    stopped = None if budget is None else budget.exceeded(learner)
    seconds = 0.0
    while learner.step < schedule.steps and stopped is None:
        before = learner.step
        with unbroken():
            if before_batch is not None:
                before_batch(learner)
            figures = _update(learner, source, schedule)
            seconds += figures["seconds"]
            step = learner.step
            if _due(before, step, schedule.track_every, schedule.steps):
                _log(trackers, step, figures)
            if on_step is not None:
                on_step(step, figures)
        more = step < schedule.steps
        save_to = checkpoint_folder if more and _due(before, step, schedule.save_every) else None
        if budget is not None and (save_to or _due(before, step, schedule.kl_every, schedule.steps)):
            stopped = budget.exceeded(learner)
            if stopped is not None:
                break
        if evaluate is not None and more and _due(before, step, schedule.eval_every):
            _log(trackers, step, evaluate(step), "eval/")
        if save_to is not None:
            with unbroken():
                save_checkpoint(save_to, learner, source)
    if evaluate is not None:
        _log(trackers, learner.step, evaluate(learner.step), "eval/")
    return Outcome(learner.step, stopped, seconds)


def _update(learner: Learner, source: Source, schedule: Schedule) -> dict[str, float]:
    began, before = time.perf_counter(), learner.step
    batch = source.next(learner.policy)
    collecting = time.perf_counter() - began
    after = before + schedule.steps_of(batch.num_contexts)
    monitor = bool(schedule.log_every) and (before == 0 or _due(before, after, schedule.log_every))
    figures = learner.update(
        batch, monitor=monitor, num_epochs=schedule.num_epochs, minibatch_size=schedule.minibatch_size
    )
    seconds = time.perf_counter() - began
    times = {f"{source.unit}_per_second": source.num_units / seconds, "seconds": seconds}
    return figures | times | {"seconds_collecting": collecting} | source.figures


def _due(before: int, step: int, every: int, last: int | None = None) -> bool:
    """Whether a multiple of `every` lies in (before, step], or `last` is reached; a batch may take several steps."""
    return bool(every) and (step // every > before // every or (last is not None and step >= last))


def _log(trackers: Sequence[Tracker], step: int, figures: dict[str, float], prefix: str = "") -> None:
    for tracker in trackers:
        tracker.log(step, {f"{prefix}{name}": value for name, value in figures.items()})


class _Budget:
    """Measures KL(pi || pi_ref), and stores the last weights within the budget."""

    def __init__(self, budget: float, measure: Callable[[int], float]) -> None:
        self.budget, self.measure = budget, measure
        self.weights: list[torch.Tensor] = []

    @torch.no_grad()
    def exceeded(self, learner: Learner) -> str | None:
        """Why the run must stop, after the stored weights were restored; None while it is within the budget."""
        parameters = [part for part in learner.policy.parameters() if part.requires_grad]
        kl = self.measure(learner.step)
        if kl <= self.budget:
            self.weights = [part.detach().clone() for part in parameters]
            return None
        for part, stored in zip(parameters, self.weights, strict=False):
            part.copy_(stored)
        reason = f"KL(pi || pi_ref) was {kl:.2f} nats at step {learner.step}, over the budget of {self.budget:g}"
        return reason if self.weights else f"{reason} from the start, so there are no weights within it to restore"
