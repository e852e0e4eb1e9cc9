"""The loop: next batch, update, now and then look, save. It reads top to bottom."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from valence.training.checkpoint import save_checkpoint
from valence.training.learner import Learner
from valence.training.tracking import Tracker

Evaluator = Callable[[int], dict[str, float]]


@dataclass(frozen=True)
class Schedule:
    """When the loop does what; a step is one optimizer step, 0 means never.

    Args:
        steps: where it ends.
        log_every: how often the watched figures (exact KL, drift) are measured and written.
        eval_every: how often the evaluators run; they also run at the end.
        save_every: how often a checkpoint is written.
        kl_budget: stop when KL(pi || pi_ref) on fresh samples passes this many nats.
        kl_every: how often that is looked at.
        track_every: how often the trackers are given a step's figures; where updates are fast, writing each would
            take longer than they do.
        epochs: how often each batch is learned from.
        minibatch_size: contexts an optimizer step; 0 takes the batch whole.
        batch_steps: optimizer steps that a batch of the usual size takes.
    """

    steps: int
    log_every: int = 5
    eval_every: int = 0
    save_every: int = 0
    kl_budget: float | None = None
    kl_every: int = 10
    track_every: int = 1
    epochs: int = 1
    minibatch_size: int = 0
    batch_steps: int = 1

    def steps_of(self, contexts: int) -> int:
        """Optimizer steps that a batch takes."""
        return self.epochs * -(-contexts // (self.minibatch_size or contexts))


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Args:
        steps: optimizer steps taken in all.
        stopped: why it ended before its time; None if it did not.
        seconds: in the updates alone, of this process.
    """

    steps: int
    stopped: str | None
    seconds: float


def train(
    learner: Learner,
    source: Any,
    schedule: Schedule,
    *,
    trackers: Sequence[Tracker] = (),
    evaluate: Evaluator | None = None,
    measure_kl: Callable[[int], float] | None = None,
    checkpoint_folder: Path | None = None,
    on_step: Callable[[int, dict[str, float]], None] | None = None,
    before_batch: Callable[[Learner], None] | None = None,
) -> Outcome:
    """Run until `schedule.steps`, from wherever `learner` and `source` stand.

    With a KL budget the policy that is kept is the last one measured within it.

    Args:
        evaluate: step -> figures, written by the trackers.
        measure_kl: step -> KL(pi || pi_ref) on fresh samples, nats; needed for a budget.
        on_step: called after each step with that step's figures, for a progress bar.
        before_batch: called before each batch is collected: what changes from one to the next.
    """
    stopped, seconds = None, 0.0
    budget = _Budget(schedule.kl_budget, measure_kl) if schedule.kl_budget is not None and measure_kl else None
    if budget is not None:
        # A checkpoint may be of a run with a larger budget.
        stopped = budget.passed(learner)
    while learner.step < schedule.steps and stopped is None:
        if before_batch is not None:
            before_batch(learner)
        began = time.perf_counter()
        before = learner.step
        batch = source.next(learner.policy)
        collected = time.perf_counter() - began
        coming = before + schedule.steps_of(batch.num_contexts)
        watch = bool(schedule.log_every) and (before == 0 or _due(before, coming, schedule.log_every))
        figures = learner.update(batch, monitor=watch, num_epochs=schedule.epochs, minibatch_size=schedule.minibatch_size)
        took = time.perf_counter() - began
        seconds += took
        figures |= {
            f"{source.unit}_per_second": source.num_units / took,
            "seconds": took,
            "seconds_collecting": collected,
        }
        figures |= getattr(source, "figures", {})
        step = learner.step
        if _due(before, step, schedule.track_every, schedule.steps):
            _log(trackers, step, figures)
        if on_step is not None:
            on_step(step, figures)
        save = checkpoint_folder is not None and step < schedule.steps and _due(before, step, schedule.save_every)
        if budget is not None and (save or _due(before, step, schedule.kl_every, schedule.steps)):
            stopped = budget.passed(learner)
            if stopped is not None:
                break
        if evaluate is not None and step < schedule.steps and _due(before, step, schedule.eval_every):
            _log(trackers, step, evaluate(step), "eval/")
        if save and checkpoint_folder is not None:
            save_checkpoint(checkpoint_folder, learner, source, {})
    if evaluate is not None:
        _log(trackers, learner.step, evaluate(learner.step), "eval/")
    return Outcome(learner.step, stopped, seconds)


def _due(before: int, step: int, every: int, last: int | None = None) -> bool:
    """Whether a multiple of `every` was reached on the way to `step`; a batch may take several steps."""
    return bool(every) and (step // every > before // every or (last is not None and step >= last))


def _log(trackers: Sequence[Tracker], step: int, figures: dict[str, float], prefix: str = "") -> None:
    for tracker in trackers:
        tracker.log(step, {f"{prefix}{name}": value for name, value in figures.items()})


class _Budget:
    """Looks at KL(pi || pi_ref), and keeps the last weights that were within the budget."""

    def __init__(self, budget: float, measure: Callable[[int], float]) -> None:
        self.budget, self.measure = budget, measure
        self.kept: list[torch.Tensor] = []

    @torch.no_grad()
    def passed(self, learner: Learner) -> str | None:
        """Why the run must stop, its policy put back within the budget; None while it is within."""
        live = [part for part in learner.policy.parameters() if part.requires_grad]
        kl = self.measure(learner.step)
        if kl <= self.budget:
            self.kept = [part.detach().clone() for part in live]
            return None
        for part, kept in zip(live, self.kept, strict=False):
            part.copy_(kept)
        over = f"KL(pi || pi_ref) was {kl:.2f} nats at step {learner.step}, over the budget of {self.budget:g}"
        return over if self.kept else f"{over} from the start: nothing within it was there to keep"
