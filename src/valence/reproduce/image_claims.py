"""What `valence reproduce image` says of its runs: the table, the paper's claims, the pictures, the page."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from valence.evaluation.statistics import bootstrap_interval, iqm
from valence.reproduce.image_runs import BATCH, ENOUGH, RATES, SAMPLES, accuracy, rewards
from valence.reproduce.results import Claim

Rows = Sequence[Mapping[str, Any]]
VARIANTS = {"REBEL": "one epoch a batch (half of PPO's updates)", "REBEL, two epochs": "as many updates as PPO"}
HELD = ("does not hold", "half holds", "holds")
EARLY = 1 / 3
"""Of the reward queries: where "at first" is judged."""


def summed(rows: Rows, place: int) -> tuple[float, float, float]:
    """(IQM over the images of all seeds at one look, low, high): 95%, images drawn anew within each seed."""
    strata = [rewards(row["looks"][place]) for row in rows]
    low, high = bootstrap_interval(strata)
    return iqm([value for part in strata for value in part]), low, high


def judged(rows: Rows, place: int) -> float:
    """The judge's share of right images over all seeds."""
    return statistics.fmean(accuracy(row["looks"][place]) for row in rows)


def early(rows: Rows) -> int:
    """The look nearest a third of the way."""
    queries = [look["queries"] for look in rows[0]["looks"]]
    return min(range(1, len(queries)), key=lambda place: abs(queries[place] - EARLY * queries[-1]))


def table(found: Mapping[str, Rows]) -> list[dict[str, Any]]:
    """The start, and each method early and at the end."""
    lines = []
    for name, rows in found.items():
        for place in dict.fromkeys((0, early(rows), len(rows[0]["looks"]) - 1)):
            if not place and lines:
                continue
            mean, low, high = summed(rows, place)
            lines.append(
                {
                    "method": name if place else "before",
                    "learning_rate": f"{rows[0]['setting']['lr']:g}" if place else "",
                    "queries": rows[0]["looks"][place]["queries"], "reward_iqm": mean, "low": low, "high": high,
                    "reward_mean": statistics.fmean(value for row in rows for value in rewards(row["looks"][place])),
                    "judge_percent": 100 * judged(rows, place),
                    "kl_policy_ref": statistics.fmean(row["looks"][place]["kl"] for row in rows),
                    "seconds": statistics.fmean(row["seconds"] for row in rows) if place else "",
                }
            )  # fmt: skip
    return lines


def check_claims(found: Mapping[str, Rows]) -> list[Claim]:
    """Whether each method improves with the digits kept, and the paper's two claims of REBEL and PPO."""
    claims = []
    for name, rows in found.items():
        (_, _, before), (mean, low, high) = summed(rows, 0), summed(rows, -1)
        right = judged(rows, -1)
        claims.append(
            Claim(
                f"{name} raises the reward beyond its interval, the judge still at {100 * ENOUGH:.0f}% or more",
                "plain images become drawings (section 5.3)" if name != "PMPO-AR" else "—",
                f"{mean:.2f} [{low:.2f}, {high:.2f}], at the start up to {before:.2f}; judge {100 * right:.0f}%",
                low > before and right >= ENOUGH,
            )
        )
    for name in VARIANTS:
        if name in found and "PPO" in found:
            claims += [_faster(name, found), _level(name, found)]
    return claims


def verdict(claims: Sequence[Claim]) -> str:
    """The paper's claim, faster at first and level at the end, judged in one sentence for each form of REBEL; empty
    where it was not compared with PPO."""
    holds = {claim.claim.partition(" (")[0]: claim.holds for claim in claims}
    told = []
    for name, updates in VARIANTS.items():
        if f"{name} is faster than PPO at first" in holds:
            first, last = holds[f"{name} is faster than PPO at first"], holds[f"{name} and PPO are level at the end"]
            told.append(
                f"With {updates} REBEL is {'' if first else 'not '}faster than PPO at first, and at the end the two "
                f"are {'level' if last else 'apart'}: the paper's claim {HELD[first + last]} here."
            )
    return " ".join(told)


def _said(summary: tuple[float, float, float]) -> str:
    return f"{summary[0]:.2f} [{summary[1]:.2f}, {summary[2]:.2f}]"


def _faster(name: str, found: Mapping[str, Rows]) -> Claim:
    ours, theirs = found[name], found["PPO"]
    place = early(ours)
    mine, other = summed(ours, place), summed(theirs, place)
    queries = ours[0]["looks"][place]["queries"]
    return Claim(
        f"{name} is faster than PPO at first (after {queries:,} queries, beyond both intervals)",
        "yes (Fig. 3)", f"{_said(mine)} against {_said(other)}", mine[1] > other[2],
    )  # fmt: skip


def _level(name: str, found: Mapping[str, Rows]) -> Claim:
    mine, other = summed(found[name], -1), summed(found["PPO"], -1)
    return Claim(
        f"{name} and PPO are level at the end (their intervals meet)", "yes (Fig. 3)",
        f"{_said(mine)} against {_said(other)}", mine[1] <= other[2] and other[1] <= mine[2],
    )  # fmt: skip


def plot_curves(found: Mapping[str, Rows], path: Path) -> None:
    """Reward, judge and KL by reward queries."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(13, 4))
    for color, (name, rows) in enumerate(found.items()):
        queries = [look["queries"] for look in rows[0]["looks"]]
        curve = [summed(rows, place) for place in range(len(queries))]
        means, lows, highs = zip(*curve, strict=True)
        axes[0].plot(queries, means, "o-", markersize=3, color=f"C{color}", label=name)
        axes[0].fill_between(queries, lows, highs, color=f"C{color}", alpha=0.2)
        right = [100 * judged(rows, place) for place in range(len(queries))]
        axes[1].plot(queries, right, "o-", markersize=3, color=f"C{color}", label=name)
        far = [statistics.fmean(row["looks"][place]["kl"] for row in rows) for place in range(len(queries))]
        axes[2].plot(queries, far, "o-", markersize=3, color=f"C{color}", label=name)
    axes[0].set_title("Composite reward: IQM, 95% over seeds (Fig. 3)", fontsize=9)
    axes[1].set_title("Images that the judge names right, %", fontsize=9)
    axes[1].axhline(100 * ENOUGH, color="black", linewidth=0.6)
    axes[2].set_title("KL(π‖π_ref), nats an image", fontsize=9)
    for axis in axes:
        axis.set_xlabel("reward queries", fontsize=8)
        axis.grid(alpha=0.25)
        axis.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def plot_grids(grids: Mapping[str, Path], path: Path) -> None:
    """The same noise before and after, one panel each."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(len(grids), 1, figsize=(9, 3.9 * len(grids)), squeeze=False)
    for axis, (name, picture) in zip(axes.flat, grids.items(), strict=True):
        axis.imshow(plt.imread(picture))
        axis.set_title(name, fontsize=10)
        axis.set_axis_off()
    figure.tight_layout()
    figure.savefig(path, dpi=90)
    plt.close(figure)


TRIED = ", ".join(f"{rate:g}" for rate in RATES)
PAGE = f"""\
What stands for what. The policy is `small-digits`, the consistency model of handwritten digits that Valence carries
(32 × 32 pixels, latents of D = 256, 8 steps of which 7 draw), for the latent consistency model of Dreamshaper; adapters
of rank 8 learn, as in the paper. Ten prompts, one a digit, for 45 animals. The reward is a classifier's log-probability
of the digit asked for plus ten times minus the size as JPEG in kB, for the aesthetic score; another classifier, of
another half of the scans and of other features, is the judge, which no one learns from.

REBEL and PPO have the paper's settings for images: log π is divided by D (`log_prob_scale`), η = 1, clip 1e-4,
rewards standardised prompt by prompt over the last 32 (from 16 on), clipped at 10, gradient norm 5, horizon 8; PPO,
without a critic, learns twice from each batch and REBEL once, so PPO takes twice as many updates; as the paper
compares equal numbers of updates too, REBEL is also run with two epochs. (One update of a batch, at π = π_t and under
Adam, is RLOO's: REBEL's gradient there is a multiple of it, whatever η. Its regression begins with the second.)
PMPO-AR has α = 0.5, β = 0.5, the better half of each prompt's images accepted, its reference copied every four
updates. A batch is {BATCH} prompts × {SAMPLES} images. Each method's learning rate is the best of the same four,
{TRIED} (the paper's, but for 0.003 in place of 0.0001), by the reward at the end of as long a run on a seed not
reported, among those where the judge surely (by the lower end of its 95% interval) still names nine images in ten. A
first look at REBEL and PPO with 0.006 and 0.01 on that seed lost the digits.

`reward_iqm` is the interquartile mean of the reward of fresh images over all seeds, `low` and `high` its 95% bootstrap
interval stratified by seed; `judge_percent` how many images the judge names right; `kl_policy_ref` KL(π‖π_ref), exact
at each step, nats an image. Every run is `valence.improve_images`."""
READING = """

How to read it. The four lie near one curve of reward against KL: who is ahead is who goes further in as many queries,
and that is who was allowed the largest rate that still keeps the digits. The clip holds PPO at a rate at which REBEL on
the tuning seed went too far for the judge, and the four rates are a factor of 1.7 to 3 apart. What is learned is to
lower contrast and colour, which makes files smaller; a larger rate goes on until the classifier that is learned from
still names the digits and the judge no longer does. Nothing is level yet at the end: 40 batches are the beginning of
the paper's curves."""
