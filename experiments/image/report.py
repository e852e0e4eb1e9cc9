"""The table, claims, pictures and page of `python -m experiments image`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.common.pictures import new_figure, save_figure
from experiments.common.results import Claim, mean
from experiments.common.statistics import bootstrap_interval, iqm

Rows = Sequence[Mapping[str, Any]]
BATCH, SAMPLES = 8, 4
"""Prompts per batch and images of each: 32 reward queries."""
ENOUGH = 0.9
"""Share of images that the judge must still name right."""
RATES = (3e-4, 6e-4, 1e-3, 3e-3)
"""The REBEL paper's four learning rates, with 3e-3 in place of 1e-4: our runs have fewer updates."""
VARIANTS = {"REBEL": "one epoch a batch (half of PPO's updates)", "REBEL, two epochs": "as many updates as PPO"}
VERDICTS = ("does not hold", "half holds", "holds")
EARLY = 1 / 3
"""The part of the reward queries after which "at first" is judged."""


def accuracy(point: Mapping[str, Any]) -> float:
    """The share of an evaluation's images that the judge names right."""
    known = [value for value in point["judge"] if value is not None]
    return sum(known) / len(known)


def rewards(point: Mapping[str, Any]) -> list[float]:
    """The composite rewards of an evaluation's images."""
    return [value for value in point["reward"] if value is not None]


def summed(rows: Rows, place: int) -> tuple[float, float, float]:
    """(IQM over the images of all seeds at one evaluation, low, high): 95%, images resampled within each seed."""
    strata = [rewards(row["evaluations"][place]) for row in rows]
    low, high = bootstrap_interval(strata)
    return iqm([value for part in strata for value in part]), low, high


def judged(rows: Rows, place: int) -> float:
    """The judge's share of right images over all seeds."""
    return mean([{"share": accuracy(row["evaluations"][place])} for row in rows], "share")


def early(rows: Rows) -> int:
    """The evaluation nearest a third of the way."""
    queries = [point["queries"] for point in rows[0]["evaluations"]]
    return min(range(1, len(queries)), key=lambda place: abs(queries[place] - EARLY * queries[-1]))


def table(found: Mapping[str, Rows]) -> list[dict[str, Any]]:
    """A line for the start, and lines for each method early and at the end."""
    lines = []
    for name, rows in found.items():
        for place in dict.fromkeys((0, early(rows), len(rows[0]["evaluations"]) - 1)):
            if not place and lines:
                continue
            average, low, high = summed(rows, place)
            points = [row["evaluations"][place] for row in rows]
            lines.append(
                {
                    "method": name if place else "before",
                    "learning_rate": f"{rows[0]['setting']['options']['lr']:g}" if place else "",
                    "queries": points[0]["queries"], "reward_iqm": average, "low": low, "high": high,
                    "reward_mean": mean([{"reward": one} for point in points for one in rewards(point)], "reward"),
                    "judge_percent": 100 * judged(rows, place), "kl_policy_ref": mean(points, "kl"),
                    "seconds": mean(rows, "seconds") if place else "",
                }
            )  # fmt: skip
    return lines


def check_claims(found: Mapping[str, Rows]) -> list[Claim]:
    """Whether each method improves and keeps the digits, and the paper's two claims about REBEL and PPO."""
    claims = []
    for name, rows in found.items():
        (_, _, before), (average, low, high) = summed(rows, 0), summed(rows, -1)
        right = judged(rows, -1)
        claims.append(
            Claim(
                f"{name} raises the reward beyond its interval, the judge still at {100 * ENOUGH:.0f}% or more",
                "plain images become drawings (section 5.3)" if name != "PMPO-AR" else "—",
                f"{average:.2f} [{low:.2f}, {high:.2f}], at the start up to {before:.2f}; judge {100 * right:.0f}%",
                low > before and right >= ENOUGH,
            )
        )
    for name in VARIANTS:
        if name in found and "PPO" in found:
            claims += [_faster(name, found), _level(name, found)]
    return claims


def verdict(claims: Sequence[Claim]) -> str:
    """A sentence on each form of REBEL: faster than PPO at first, and level at the end? Empty without PPO."""
    holds = {claim.claim.partition(" (")[0]: claim.holds for claim in claims}
    sentences = []
    for name, updates in VARIANTS.items():
        if f"{name} is faster than PPO at first" in holds:
            first, last = holds[f"{name} is faster than PPO at first"], holds[f"{name} and PPO are level at the end"]
            sentences.append(
                f"With {updates} REBEL is {'' if first else 'not '}faster than PPO at first, and at the end the two "
                f"are {'level' if last else 'apart'}: the paper's claim {VERDICTS[first + last]} here."
            )
    return " ".join(sentences)


def _against(mine: tuple[float, float, float], other: tuple[float, float, float]) -> str:
    return " against ".join(f"{average:.2f} [{low:.2f}, {high:.2f}]" for average, low, high in (mine, other))


def _faster(name: str, found: Mapping[str, Rows]) -> Claim:
    place = early(found[name])
    mine, other = summed(found[name], place), summed(found["PPO"], place)
    queries = found[name][0]["evaluations"][place]["queries"]
    title = f"{name} is faster than PPO at first (after {queries:,} queries, beyond both intervals)"
    return Claim(title, "yes (Fig. 3)", _against(mine, other), mine[1] > other[2])


def _level(name: str, found: Mapping[str, Rows]) -> Claim:
    mine, other = summed(found[name], -1), summed(found["PPO"], -1)
    title = f"{name} and PPO are level at the end (their intervals meet)"
    return Claim(title, "yes (Fig. 3)", _against(mine, other), mine[1] <= other[2] and other[1] <= mine[2])


def plot_curves(found: Mapping[str, Rows], path: Path) -> Any:
    """Reward, judge and KL by reward queries."""
    figure, ((left, middle, right),) = new_figure(1, 3, size=(13, 4))
    for number, (name, rows) in enumerate(found.items()):
        style: dict[str, Any] = {"markersize": 3, "color": f"C{number}", "label": name}
        queries = [point["queries"] for point in rows[0]["evaluations"]]
        places = range(len(queries))
        means, lows, highs = zip(*(summed(rows, place) for place in places), strict=True)
        left.plot(queries, means, "o-", **style)
        left.fill_between(queries, lows, highs, color=f"C{number}", alpha=0.2)
        middle.plot(queries, [100 * judged(rows, place) for place in places], "o-", **style)
        kl = [mean([row["evaluations"][place] for row in rows], "kl") for place in places]
        right.plot(queries, kl, "o-", **style)
    left.set_title("Composite reward: IQM, 95% over seeds (Fig. 3)", fontsize=9)
    middle.set_title("Images that the judge names right, %", fontsize=9)
    middle.axhline(100 * ENOUGH, color="black", linewidth=0.6)
    right.set_title("KL(π‖π_ref), nats per image", fontsize=9)
    for panel in (left, middle, right):
        panel.set_xlabel("reward queries", fontsize=8)
    return save_figure(figure, path)


def plot_grids(grids: Mapping[str, Path], path: Path) -> Any:
    """Images from the same noise before training and after it, one panel per method."""
    from matplotlib.image import imread

    figure, panels = new_figure(len(grids), 1, size=(9, 3.9 * len(grids)))
    for panel, (name, picture) in zip(panels.flat, grids.items(), strict=True):
        panel.imshow(imread(picture))
        panel.set_title(name, fontsize=10)
        panel.set_axis_off()
    return save_figure(figure, path)
