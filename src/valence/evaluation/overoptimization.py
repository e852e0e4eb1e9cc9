"""Proxy against gold: did the reward that a run learns from part from another one, and when was the policy best?

An audit of what has happened, on fresh samples of held-out prompts, not a warning ahead of time: the gold reward is
read at the looks of the run, and what lies between two looks is not seen.

Source: Gao, Schulman and Hilton 2023, "Scaling laws for reward model overoptimization": both against the square root of
KL(pi || pi_0). Reward by decile of a sample's KL: REBEL paper, appendix K.
"""

from __future__ import annotations

import base64
import html
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

from valence.evaluation.statistics import mean_interval

Values = Sequence[float | None]
"""One for each sample; None where the judge had no number. Samples of one place are of one prompt at every look."""


@dataclass(frozen=True)
class Look:
    """What was seen of the policy after `step` optimizer steps.

    Args:
        kl: KL(pi || pi_0) along each sample, nats.
        proxy: the reward that is learned from, of each sample.
        gold: the other one; None where the run has none.
        picked: which prompt each sample is of.
    """

    step: int
    kl: Sequence[float]
    proxy: Values
    gold: Values | None = None
    picked: Sequence[int] = ()

    @property
    def mean_kl(self) -> float:
        return float(np.mean(self.kl))


@dataclass(frozen=True)
class Audit:
    """Gold at its best look and at the last one.

    Args:
        best, last: the looks.
        lost: gold at the best less gold at the last, on the same prompts, and the half width of its interval: 95% for
            all looks together (Sidak), since the best one is picked among them.
        gained: the same of the proxy, last less best, its own 95%.
        parted: gold fell by more than its interval while the proxy did not fall.
    """

    best: Look
    last: Look
    lost: tuple[float, float]
    gained: tuple[float, float]
    parted: bool

    def sentence(self) -> str:
        """For a reader of the run."""
        assert self.best.gold is not None and self.last.gold is not None
        (best, half), (last, other) = mean_interval(self.best.gold), mean_interval(self.last.gold)
        said = f"gold is best at step {self.best.step}, {best:.3f} ± {half:.3f}"
        if self.best.step == self.last.step:
            return f"{said}, the last look: no sign that reward and gold part"
        said += f", and {last:.3f} ± {other:.3f} at step {self.last.step}"
        moved = f"{self.lost[0]:.3f} ± {self.lost[1]:.3f} lost on the same prompts, the reward {self.gained[0]:+.3f}"
        told = "they PARTED: the reward may be gamed, or stands for less than gold" if self.parted else "not parted"
        return f"{said} ({moved}): {told}"


def audit(looks: Sequence[Look]) -> Audit | None:
    """None where no look has gold."""
    seen = [look for look in looks if look.gold is not None and not math.isnan(mean_interval(look.gold)[0])]
    if not seen:
        return None
    # Of looks that gold likes as well, the later one: what was learned since cost nothing.
    best, last = max(seen, key=lambda look: (mean_interval(look.gold or ())[0], look.step)), seen[-1]
    level = 0.95 ** (1 / max(1, len(seen) - 1))
    lost = _paired(best.gold or (), last.gold or (), z=NormalDist().inv_cdf(0.5 + level / 2))
    gained = _paired(last.proxy, best.proxy)
    parted = best.step != last.step and lost[0] - lost[1] > 0 and not gained[0] < 0
    return Audit(best, last, lost, gained, parted)


def _paired(first: Values, second: Values, *, z: float = 1.96) -> tuple[float, float]:
    """Mean of first less second over what both know, and z of its standard errors."""
    gaps = [a - b for a, b in zip(first, second, strict=True) if a is not None and b is not None]
    mean, half = mean_interval(gaps)
    return mean, half * z / 1.96


def by_decile(kl: Sequence[float], reward: Values, *, bins: int = 10) -> list[dict[str, float]]:
    """Mean reward of samples grouped by their KL into `bins` of equal size: `{"kl", "reward", "half", "count"}`."""
    known = [(far, value) for far, value in zip(kl, reward, strict=True) if value is not None]
    order = np.argsort([far for far, _ in known], kind="stable")
    rows = []
    for part in np.array_split(order, min(bins, len(order))) if len(order) else []:
        mean, half = mean_interval([known[place][1] for place in part])
        far = float(np.mean([known[place][0] for place in part]))
        rows.append({"kl": far, "reward": mean, "half": half, "count": float(len(part))})
    return rows


def section(looks: Sequence[Look]) -> str:
    """The report's part on it, as HTML."""
    found = audit(looks)
    said = "no gold reward was given (--gold): only the reward that the run learned from is shown"
    picture = base64.b64encode(plot(looks)).decode()
    return (
        f"<h2>Reward against KL</h2><p>{html.escape(said if found is None else found.sentence())}</p>"
        f'<img alt="reward and gold against the square root of KL" src="data:image/png;base64,{picture}">'
        "<p class=note>Left: means and 95% intervals at each look, on held-out prompts where there are any; the best "
        "look was chosen by these same figures, so it flatters itself a little. An audit, not an early warning. "
        "Right: the last look's samples by how far each is from the start.</p>"
    )


def plot(looks: Sequence[Look]) -> bytes:
    """Proxy and gold against sqrt(KL), and the last look's reward by decile of KL, as one PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.4))
    _frontier(left, looks, "proxy", "reward learned from", "C0")
    if any(look.gold is not None for look in looks):
        other = left.twinx()
        _frontier(other, [look for look in looks if look.gold is not None], "gold", "gold", "C1")
        other.set_ylabel("gold", color="C1", fontsize=8)
    left.set_xlabel("√KL(π‖π_0), √nats", fontsize=8)
    left.set_ylabel("reward learned from", color="C0", fontsize=8)
    deciles = by_decile(looks[-1].kl, looks[-1].proxy)
    right.errorbar(
        [row["kl"] for row in deciles], [row["reward"] for row in deciles], yerr=[row["half"] for row in deciles],
        fmt="o-", markersize=4, linewidth=1,
    )  # fmt: skip
    right.set_xlabel("KL of a sample, nats (mean of each tenth)", fontsize=8)
    right.set_ylabel("reward learned from", fontsize=8)
    for axis in (left, right):
        axis.grid(alpha=0.25)
        axis.tick_params(labelsize=8)
    figure.tight_layout()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    plt.close(figure)
    return buffer.getvalue()


def _frontier(axis: Any, looks: Sequence[Look], name: str, label: str, color: str) -> None:
    points = [(math.sqrt(max(look.mean_kl, 0.0)), *mean_interval(getattr(look, name))) for look in looks]
    far, mean, half = zip(*points, strict=True)
    axis.errorbar(far, mean, yerr=half, fmt="o-", markersize=4, linewidth=1, label=label, color=color)
