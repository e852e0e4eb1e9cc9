"""Judges the samples of a run's evaluations by its reward and a gold reward, and saves the best policy by gold."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from valence.evaluation.overoptimization import EvaluationPoint, audit, section
from valence.evaluation.samples import Samples
from valence.evaluation.statistics import mean_interval
from valence.rewards.ensemble import Judge, RewardFn
from valence.rewards.judge import SelfPlay
from valence.sources.prompts import EncodedPrompt, ask, verdicts

FILE, BEST = "evaluations.json", "best-by-gold"


class Watch:
    """Judges the samples of each evaluation and records them in `out/evaluations.json`.

    Args:
        policy: saved to `out/best-by-gold` whenever gold is better than at every evaluation before.
        rows: the prompts that the samples are for.
        reward: what the run learns from.
        gold: a judge that the run does not learn from, or None. A pairwise judge compares each sample with the initial
            policy's completion of the same prompt.
        out: the run's folder.
        resumed_at: the step of the checkpoint that the run resumes from; later evaluations in the file are dropped.
    """

    def __init__(
        self, policy: Any, rows: Sequence[EncodedPrompt], reward: Judge, gold: RewardFn | None, out: Path, *,
        resumed_at: int = 0,
    ) -> None:  # fmt: skip
        self.policy, self.rows, self.reward, self.gold, self.out = policy, rows, reward, gold, out
        saved = json.loads((out / FILE).read_text()) if resumed_at and (out / FILE).is_file() else []
        self.evaluations = [EvaluationPoint(**point) for point in saved if point["step"] <= resumed_at]

    def __call__(self, samples: Samples) -> dict[str, float]:
        """The figures of one evaluation."""
        rows = [self.rows[place] for place in samples.prompt_index]
        proxy = self._judge(self.reward, rows, samples)
        gold = None if self.gold is None else self._judge(self.gold, rows, samples)
        # Samples of other prompts (the run resumed with another `eval_samples`) cannot be compared with these.
        self.evaluations = [
            point for point in self.evaluations
            if point.step < samples.step and list(point.prompt_index) == list(samples.prompt_index)
        ]  # fmt: skip
        self.evaluations.append(EvaluationPoint(samples.step, samples.kl, proxy, gold, samples.prompt_index))
        (self.out / FILE).write_text(json.dumps([asdict(point) for point in self.evaluations]))
        now = audit(self.evaluations)
        if now is not None and now.best.step == samples.step:
            self.policy.save(self.out / BEST)
        figures = _figures("reward", proxy) | _figures("gold", gold or ())
        # A pairwise gold is a win rate against the initial policy already.
        if self.gold is None or isinstance(self.gold, SelfPlay):
            return figures
        return figures | _figures("gold_win_rate", verdicts(self.gold, rows, samples.outputs, samples.initial_outputs))

    def _judge(self, judge: RewardFn, rows: Sequence[EncodedPrompt], samples: Samples) -> Sequence[float | None]:
        if isinstance(judge, SelfPlay):
            return verdicts(judge, rows, samples.outputs, samples.initial_outputs)
        return ask(judge, rows, samples.outputs)

    def section(self) -> str:
        """The part of the report about reward and gold, as HTML."""
        return section(self.evaluations)

    def warnings(self, unit: str) -> list[str]:
        """Lines to read before the model is used: gold's course, and how often the reward of `unit` ("completions" or
        "images") failed."""
        lines = []
        result = audit(self.evaluations)
        if result is not None:
            lines.append(("warning: " if result.diverged else "") + result.sentence())
            if result.best.step != result.last.step:
                lines.append(f"the best policy by gold is in {self.out / BEST}")
        for reason, count in self.reward.failures.items():
            lines.append(f"warning: the reward gave no number for {count:,} {unit}: {reason}")
        if self.reward.repeated:
            lines.append(f"warning: {self.reward.repeated:,} calls of the reward failed and were repeated row by row")
        return lines


def _figures(name: str, values: Sequence[float | None]) -> dict[str, float]:
    mean, half = mean_interval(values)
    return {} if math.isnan(mean) else {name: mean, f"{name}_95_half_width": half}
