"""What a run with a reward watches besides: its reward and a gold one on fresh samples, and the best policy by gold."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from valence.evaluation.overoptimization import Look, audit
from valence.evaluation.statistics import mean_interval
from valence.rewards.judge import SelfPlay
from valence.runs.evaluation import Sampled
from valence.sources.prompts import EncodedPrompt, ask, verdicts

FILE, BEST = "watch.json", "best-by-gold"


class Watch:
    """Judges the samples of every look; kept in watch.json, so that a run that goes on goes on with it.

    Args:
        rows: the prompts that looks are taken on.
        reward: what the run learns from.
        gold: what it does not learn from, or None. A pairwise judge compares each sample with the same prompt's
            completion by the policy as it began.
        policy: saved to `out/best-by-gold` at each look that gold says is better than all before.
        resumed_at: looks after this step, of a run that was cut off, are forgotten.
    """

    def __init__(
        self, policy: Any, rows: Sequence[EncodedPrompt], reward: Any, gold: Any | None, out: Path, *,
        resumed_at: int = 0,
    ) -> None:  # fmt: skip
        self.policy, self.rows, self.reward, self.gold, self.out = policy, rows, reward, gold, out
        known = json.loads((out / FILE).read_text()) if resumed_at and (out / FILE).is_file() else []
        self.looks = [Look(**look) for look in known if look["step"] <= resumed_at]

    def __call__(self, sampled: Sampled) -> dict[str, float]:
        """The figures of a look."""
        rows = [self.rows[place] for place in sampled.picked]
        proxy = self._asked(self.reward, rows, sampled)
        gold = None if self.gold is None else self._asked(self.gold, rows, sampled)
        # Samples of other prompts (another --eval-samples) cannot be compared with these: the watch begins again.
        self.looks = [
            look for look in self.looks if look.step < sampled.step and list(look.picked) == list(sampled.picked)
        ]
        before = audit(self.looks)
        self.looks.append(Look(sampled.step, sampled.kl, proxy, gold, sampled.picked))
        (self.out / FILE).write_text(json.dumps([asdict(look) for look in self.looks]))
        figures = _named("reward", proxy)
        if gold is None:
            return figures
        found = audit(self.looks)
        if found is not None and found.best.step == sampled.step and (before is None or before.best is not found.best):
            self.policy.save(self.out / BEST)
        return figures | _named("gold", gold) | self._wins(rows, sampled)

    def _asked(self, judge: Any, rows: Sequence[EncodedPrompt], sampled: Sampled) -> Sequence[float | None]:
        if isinstance(judge, SelfPlay):
            return verdicts(judge, rows, sampled.texts, sampled.before)
        return ask(judge, rows, sampled.texts)

    def _wins(self, rows: Sequence[EncodedPrompt], sampled: Sampled) -> dict[str, float]:
        """How often gold finds a sample better than the start's of the same prompt."""
        if isinstance(self.gold, SelfPlay):
            return {}
        rate, half = mean_interval(verdicts(self.gold, rows, sampled.texts, sampled.before))
        return {} if math.isnan(rate) else {"gold_win_rate": rate, "gold_win_rate_95_half_width": half}


def _named(name: str, values: Sequence[float | None]) -> dict[str, float]:
    mean, half = mean_interval(values)
    return {} if math.isnan(mean) else {name: mean, f"{name}_95_half_width": half}
