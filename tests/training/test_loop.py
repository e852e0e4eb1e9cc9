"""When the loop does what, with fakes that count."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from helpers import Table, table_batch
from valence.objectives.supervised import Supervised
from valence.training.checkpoint import checkpoints, load_checkpoint
from valence.training.learner import Learner
from valence.training.loop import Outcome, Schedule, train
from valence.training.reference import FrozenCopy
from valence.types import Batch, Labels


class Source:
    """Gives the same batch again and again."""

    unit = "tokens"
    num_units = 10

    def __init__(self) -> None:
        self.num_batches, self.figures = 0, {"source": 1.5}

    def next(self, policy: Any) -> Batch:
        self.num_batches += 1
        return table_batch(Labels(torch.tensor([[1, -1]]), torch.ones(1, 2, dtype=torch.bool)), [[0, 1]])

    def state_dict(self) -> dict[str, Any]:
        return {"num_batches": self.num_batches}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.num_batches = state["num_batches"]


class Tracker:
    def __init__(self) -> None:
        self.rows: list[tuple[int, dict[str, float]]] = []

    def log(self, step: int, values: dict[str, float]) -> None:
        self.rows.append((step, dict(values)))

    def close(self) -> None:
        pass


def make_learner() -> Learner:
    policy = Table(torch.zeros(1, 1, 2))
    optimizer = torch.optim.SGD(policy.parameters(), lr=0.1)
    return Learner(policy, Supervised(), FrozenCopy(policy), {"policy": optimizer})


def run(schedule: Schedule, **options: Any) -> tuple[Outcome, Learner, Tracker]:
    learner, tracker = options.pop("learner", None) or make_learner(), Tracker()
    outcome = train(learner, options.pop("source", None) or Source(), schedule, trackers=[tracker], **options)
    return outcome, learner, tracker


def test_every_step_is_taken_and_logged_once() -> None:
    source, seen = Source(), []
    outcome, learner, tracker = run(
        Schedule(7, log_every=3), source=source, on_step=lambda step, figures: seen.append((step, figures["loss"]))
    )
    assert outcome.steps == learner.step == source.num_batches == 7 and outcome.stopped is None and outcome.seconds > 0
    assert [step for step, _ in tracker.rows] == [1, 2, 3, 4, 5, 6, 7]
    assert seen == [(step, row["loss"]) for step, row in tracker.rows]
    assert all(row["tokens_per_second"] > 0 for _, row in tracker.rows)
    losses = [row["loss"] for _, row in tracker.rows]
    assert losses == sorted(losses, reverse=True) and losses[0] == pytest.approx(0.6931, abs=1e-4)
    assert all(row["source"] == 1.5 for _, row in tracker.rows)
    # Monitored at the first step, and then every third.
    assert [step for step, row in tracker.rows if "accepted_drift" in row] == [1, 3, 6]


@pytest.mark.parametrize(("every", "expected"), [(1, [0, 4, 8, 12, 16]), (10, [0, 8, 16]), (8, [0, 4, 12])])
def test_batches_of_several_steps_are_monitored_as_often(every: int, expected: list[int]) -> None:
    """With four steps per batch: monitored where a multiple of `every` lies within the batch."""
    learner, seen = make_learner(), []
    update = learner.update

    def spy(batch: Any, *, monitor: bool = False, **more: Any) -> dict[str, float]:
        if monitor:
            seen.append(learner.step)
        return update(batch, monitor=False, **more)

    learner.update = spy  # type: ignore[method-assign]
    outcome = train(learner, Source(), Schedule(20, log_every=every, num_epochs=4))
    assert outcome.steps == 20 and seen == expected


def test_log_every_0_never_monitors() -> None:
    _, _, tracker = run(Schedule(3, log_every=0))
    assert not any("accepted_drift" in row for _, row in tracker.rows)


def test_it_goes_on_from_where_the_learner_stands() -> None:
    learner = make_learner()
    learner.step = 5
    outcome, _, tracker = run(Schedule(7), learner=learner)
    assert outcome.steps == 7 and [step for step, _ in tracker.rows] == [6, 7]
    assert run(Schedule(7), learner=learner)[2].rows == []


@pytest.mark.parametrize(
    ("every", "expected"), [(0, [6]), (2, [2, 4, 6]), (3, [3, 6]), (4, [4, 6]), (6, [6]), (50, [6])]
)
def test_when_the_evaluators_run(every: int, expected: list[int]) -> None:
    asked: list[int] = []

    def evaluate(step: int) -> dict[str, float]:
        asked.append(step)
        return {"quality": step / 2}

    _, _, tracker = run(Schedule(6, eval_every=every), evaluate=evaluate)
    assert asked == expected
    logged = [(step, row) for step, row in tracker.rows if "eval/quality" in row]
    assert logged == [(step, {"eval/quality": step / 2}) for step in expected]


def test_when_checkpoints_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from valence.training import loop

    saved = []
    keep = loop.save_checkpoint
    monkeypatch.setattr(loop, "save_checkpoint", lambda *args: saved.append(args[1].step) or keep(*args))
    _, _, _ = run(Schedule(7, save_every=3), checkpoint_folder=tmp_path)
    assert saved == [3, 6]
    learner, source = make_learner(), Source()
    load_checkpoint(checkpoints(tmp_path)[-1], learner, source)
    assert learner.step == 6 and source.num_batches == 6
    saved.clear()
    run(Schedule(7), checkpoint_folder=tmp_path)
    run(Schedule(7, save_every=3))
    assert saved == []


def test_when_the_kl_budget_is_measured() -> None:
    asked: list[int] = []

    def measure(step: int) -> float:
        asked.append(step)
        return 0.0

    outcome, _, _ = run(Schedule(7, kl_budget=1.0, kl_every=3), measure_kl=measure)
    assert asked == [0, 3, 6, 7] and outcome.stopped is None
    asked.clear()
    run(Schedule(7, kl_every=3), measure_kl=measure)
    assert asked == []


def test_a_run_that_starts_over_its_budget_takes_no_step() -> None:
    """Resumed from a run with a larger budget: no weights within the budget are known, and the outcome says so."""
    outcome, _, _ = run(Schedule(7, kl_budget=1.0, kl_every=3), measure_kl=lambda step: 2.0)
    assert outcome.steps == 0
    assert outcome.stopped is not None and "no weights within it" in outcome.stopped


@pytest.mark.parametrize(("over_at", "kept"), [(2, 0), (4, 2), (7, 6)])
def test_over_the_budget_the_last_weights_within_it_are_kept(over_at: int, kept: int) -> None:
    """KL is measured at steps 2, 4, 6 and 7."""
    seen: dict[int, torch.Tensor] = {}
    learner = make_learner()
    policy = learner.policy
    assert isinstance(policy, Table)
    seen[0] = policy.logits.detach().clone()
    evaluated: list[tuple[int, torch.Tensor]] = []

    def evaluate(step: int) -> dict[str, float]:
        evaluated.append((step, policy.logits.detach().clone()))
        return {}

    outcome, _, _ = run(
        Schedule(7, kl_budget=1.5, kl_every=2), learner=learner,
        measure_kl=lambda step: 1.6 if step == over_at else 1.5, evaluate=evaluate,
        on_step=lambda step, figures: seen.update({step: policy.logits.detach().clone()}),
    )  # fmt: skip
    assert max(seen) == over_at
    assert outcome.stopped is not None and "1.60" in outcome.stopped and str(over_at) in outcome.stopped
    assert torch.equal(policy.logits, seen[kept]) and not torch.equal(policy.logits, seen[over_at])
    # The last evaluation is of the restored weights.
    assert len(evaluated) == 1 and torch.equal(evaluated[0][1], seen[kept])
