"""What a run is told of its reward and of gold at each evaluation, with hand-made judges."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from valence.evaluation.samples import Samples
from valence.evaluation.watch import BEST, FILE, Watch
from valence.rewards.functions import RewardFunction
from valence.rewards.judge import SelfPlay
from valence.sources.prompts import EncodedPrompt

ROWS = [EncodedPrompt([0], "a"), EncodedPrompt([1], "b")]


class Policy:
    def __init__(self) -> None:
        self.saved: list[Path] = []

    def save(self, folder: Path) -> None:
        self.saved.append(folder)


def numbers(prompts: Sequence[str], completions: Sequence[str]) -> list[float]:
    """Each completion is its own reward."""
    return [float(text) for text in completions]


def negative(prompts: Sequence[str], completions: Sequence[str]) -> list[float]:
    return [-float(text) for text in completions]


def samples(step: int, *values: float, index: Sequence[int] = (1, 0, 1)) -> Samples:
    return Samples(step, index, [str(value) for value in values], ["1.0"] * len(values), [step / 10] * len(values))


def watch(out: Path, gold: Any = None, **options: Any) -> Watch:
    return Watch(Policy(), ROWS, RewardFunction(numbers, name="reward"), gold, out, **options)


def test_the_figures_by_hand(tmp_path: Path) -> None:
    figures = watch(tmp_path, RewardFunction(negative, name="gold"))(samples(0, 0.0, 2.0, 1.0))
    assert figures["reward"] == 1 and figures["gold"] == -1
    # Standard deviation 1 of three values; gold prefers 0 to 1, 1 to 2, and calls 1 against 1 a tie.
    assert figures["reward_95_half_width"] == pytest.approx(1.96 / 3**0.5) == figures["gold_95_half_width"]
    assert figures["gold_win_rate"] == pytest.approx(0.5)
    assert watch(tmp_path)(samples(0, 4.0, 4.0, 4.0)) == {"reward": 4.0, "reward_95_half_width": 0.0}


def test_a_pairwise_gold_is_the_share_won_against_the_initial_policy(tmp_path: Path) -> None:
    def larger(prompts: Sequence[str], first: Sequence[str], second: Sequence[str]) -> list[float]:
        return [float(a > b) for a, b in zip(first, second, strict=True)]

    figures = watch(tmp_path, SelfPlay(larger))(samples(0, 0.0, 2.0, 3.0))
    assert figures["gold"] == pytest.approx(2 / 3) and "gold_win_rate" not in figures


def test_the_policy_is_saved_at_each_evaluation_that_is_the_best_so_far(tmp_path: Path) -> None:
    watched = watch(tmp_path, RewardFunction(negative, name="gold"))
    steps = []
    for step, value in enumerate((5.0, 4.0, 6.0, 3.0)):
        before = len(watched.policy.saved)
        watched(samples(step, value, value, value))
        steps += [step] * (len(watched.policy.saved) - before)
    assert steps == [0, 1, 3] and set(watched.policy.saved) == {tmp_path / BEST}


def test_a_divergence_and_failures_are_warned_of(tmp_path: Path) -> None:
    watched = watch(tmp_path, RewardFunction(negative, name="gold"))
    for step, value in enumerate((1.0, 2.0)):
        watched(samples(step, value, value, value))
    lines = watched.warnings("completions")
    assert len(lines) == 2 and lines[0].startswith("warning: gold is best at step 0") and "DIVERGED" in lines[0]
    assert lines[1] == f"the best policy by gold is in {tmp_path / BEST}" and "DIVERGED" in watched.section()
    watched.reward.failures["ValueError: no"] = 1234
    watched.reward.repeated = 2
    assert watched.warnings("images")[2:] == [
        "warning: the reward gave no number for 1,234 images: ValueError: no",
        "warning: 2 calls of the reward failed and were repeated row by row",
    ]
    assert watch(tmp_path / "other").warnings("images") == []


def test_evaluations_are_kept_until_the_step_that_a_run_resumes_from(tmp_path: Path) -> None:
    gold = RewardFunction(negative, name="gold")
    first = watch(tmp_path, gold)
    for step in (0, 2, 4):
        first(samples(step, float(step), 0.0, 1.0))
    saved = json.loads((tmp_path / FILE).read_text())
    assert [point["step"] for point in saved] == [0, 2, 4] and saved[1]["proxy"] == [2.0, 0.0, 1.0]
    second = watch(tmp_path, gold, resumed_at=2)
    assert second.evaluations == [type(point)(**kept) for point, kept in zip(second.evaluations, saved, strict=False)]
    second(samples(4, 4.0, 0.0, 1.0))
    assert json.loads((tmp_path / FILE).read_text()) == saved
    # Other prompts cannot be compared with these, and a run from the beginning reads nothing.
    second(samples(6, 1.0, 2.0, index=(0, 1)))
    assert [point.step for point in second.evaluations] == [6] and watch(tmp_path, gold).evaluations == []
