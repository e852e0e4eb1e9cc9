"""Reward against gold: did the two diverge, and at which evaluation was the policy best?

The policy learns from the reward (the proxy); the gold reward only measures it. Both are computed on fresh samples at
each evaluation of a run. What happens between two evaluations is not measured, and an audit finds a divergence only
after it has happened.

Source: Gao, Schulman and Hilton 2023, "Scaling laws for reward model overoptimization": both against the square root of
KL(pi || pi_0). Reward by decile of a sample's KL: REBEL paper, appendix K.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass
from operator import itemgetter
from statistics import NormalDist
from typing import Any

import numpy as np

from valence.evaluation.pictures import image_tag, png
from valence.evaluation.statistics import mean_interval

Values = Sequence[float | None]
"""One value per sample; None where the judge gave none. Sample i has the same prompt at every evaluation."""


@dataclass(frozen=True)
class EvaluationPoint:
    """The samples of one evaluation.

    Args:
        step: optimizer steps taken before it.
        kl: KL(pi || pi_0) along each sample, nats.
        proxy: the reward that the run learns from, of each sample.
        gold: the gold reward of each sample; None where the run has none.
    """

    step: int
    kl: Sequence[float]
    proxy: Values
    gold: Values | None = None
    prompt_index: Sequence[int] = ()


@dataclass(frozen=True)
class Audit:
    """Gold at its best evaluation and at the last one.

    Args:
        lost: (gold at the best less gold at the last, on the same prompts; half the width of its interval). The level
            is 95% for all evaluations together (Sidak), since the best is chosen among them.
        gained: the same for the proxy, last less best, with its own 95% interval.
        diverged: gold fell by more than its interval and the proxy did not fall.
    """

    best: EvaluationPoint
    last: EvaluationPoint
    lost: tuple[float, float]
    gained: tuple[float, float]
    diverged: bool

    def sentence(self) -> str:
        """The audit in one line."""
        assert self.best.gold is not None and self.last.gold is not None
        (best, best_half), (last, last_half) = mean_interval(self.best.gold), mean_interval(self.last.gold)
        summary = f"gold is best at step {self.best.step}, {best:.3f} ± {best_half:.3f}"
        if self.best.step == self.last.step:
            return f"{summary}, the last evaluation: no sign that reward and gold diverge"
        verdict = "DIVERGED: the policy may exploit flaws of the reward" if self.diverged else "did not diverge"
        return (
            f"{summary}, and {last:.3f} ± {last_half:.3f} at step {self.last.step}. On the same prompts gold lost "
            f"{self.lost[0]:.3f} ± {self.lost[1]:.3f} and the reward changed by {self.gained[0]:+.3f}: they {verdict}"
        )


def audit(evaluations: Sequence[EvaluationPoint]) -> Audit | None:
    """Compare gold at its best evaluation with gold at the last; None where no evaluation has gold."""
    points = [point for point in evaluations if not math.isnan(mean_interval(point.gold or ())[0])]
    if not points:
        return None
    # Of two evaluations with equal gold, the later one: what was learned in between cost nothing.
    best, last = max(points, key=lambda point: (mean_interval(point.gold or ())[0], point.step)), points[-1]
    level = 0.95 ** (1 / max(1, len(points) - 1))
    lost = _paired(best.gold or (), last.gold or (), z=NormalDist().inv_cdf(0.5 + level / 2))
    gained = _paired(last.proxy, best.proxy)
    diverged = best.step != last.step and lost[0] - lost[1] > 0 and not gained[0] < 0
    return Audit(best, last, lost, gained, diverged)


def _paired(first: Values, second: Values, *, z: float = 1.96) -> tuple[float, float]:
    """(mean of first less second where both are known, z standard errors of it)."""
    gaps = [a - b for a, b in zip(first, second, strict=True) if a is not None and b is not None]
    mean, half = mean_interval(gaps)
    return mean, half * z / 1.96


def by_decile(kl: Sequence[float], reward: Values, *, bins: int = 10) -> list[dict[str, float]]:
    """Mean reward of samples grouped by their KL into `bins` of equal size: `{"kl", "reward", "half", "count"}`."""
    known = [pair for pair in sorted(zip(kl, reward, strict=True), key=itemgetter(0)) if pair[1] is not None]
    rows = []
    for part in np.array_split(range(len(known)), min(bins, len(known))) if known else []:
        nats, values = zip(*(known[place] for place in part), strict=True)
        mean, half = mean_interval(values)
        rows.append({"kl": float(np.mean(nats)), "reward": mean, "half": half, "count": float(len(part))})
    return rows


def section(evaluations: Sequence[EvaluationPoint]) -> str:
    """The part of the report about reward and gold, as HTML."""
    result = audit(evaluations)
    text = "no gold reward was given: only the reward that the run learned from is shown"
    return (
        f"<h2>Reward against KL</h2><p>{html.escape(text if result is None else result.sentence())}</p>"
        f"{image_tag(png(figure(evaluations)), 'reward and gold against the square root of KL')}"
        "<p class=note>Left: mean and 95% interval at each evaluation, on held-out prompts where there are any. The "
        "best evaluation was chosen by these same figures, so its own figure is slightly too high. Right: the samples "
        "of the last evaluation, grouped by their KL from the initial policy.</p>"
    )


def figure(evaluations: Sequence[EvaluationPoint]) -> Any:
    """Left: reward and gold against sqrt(KL). Right: the last evaluation's reward by decile of KL."""
    from matplotlib.figure import Figure

    drawing = Figure(figsize=(10, 3.4))
    left, right = drawing.subplots(1, 2)
    _frontier(left, evaluations, "proxy", "reward learned from", "C0")
    gold = [point for point in evaluations if point.gold is not None]
    if gold:
        other = left.twinx()
        _frontier(other, gold, "gold", "gold", "C1")
        other.set_ylabel("gold", color="C1", fontsize=8)
    left.set_xlabel("√KL(π‖π_0), √nats", fontsize=8)
    left.set_ylabel("reward learned from", color="C0", fontsize=8)
    deciles = by_decile(evaluations[-1].kl, evaluations[-1].proxy)
    kl, reward, half = ([row[name] for row in deciles] for name in ("kl", "reward", "half"))
    right.errorbar(kl, reward, yerr=half, fmt="o-", markersize=4, linewidth=1)
    right.set_xlabel("KL of a sample, nats (mean of each tenth)", fontsize=8)
    right.set_ylabel("reward learned from", fontsize=8)
    for axis in (left, right):
        axis.grid(alpha=0.25)
        axis.tick_params(labelsize=8)
    drawing.tight_layout()
    return drawing


def _frontier(axis: Any, points: Sequence[EvaluationPoint], name: str, label: str, color: str) -> None:
    rows = [(math.sqrt(max(np.mean(point.kl), 0.0)), *mean_interval(getattr(point, name))) for point in points]
    distance, mean, half = zip(*rows, strict=True)
    axis.errorbar(distance, mean, yerr=half, fmt="o-", markersize=4, linewidth=1, label=label, color=color)
