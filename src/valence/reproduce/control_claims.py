"""What the paper and the issue claim of control, judged on finished runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from valence.evaluation.statistics import bootstrap_interval, iqm
from valence.reproduce.control_report import PUBLISHED_MPO, final, groups
from valence.reproduce.results import Claim

NOT_BELOW = (
    "PMPO-AR", "PMPO-AR coupled", "PMPO-AR beta=0.5", "PMPO-AR beta=0.5 coupled", "PMPO-A", "PMPO-R",
)  # fmt: skip
"""β at the design's bound, and the paper's 0.5 beside it, each with mean and spread apart and together."""
MARGIN = 1.2


def check_claims(finished: Sequence[Mapping[str, Any]]) -> list[Claim]:
    """Every claim whose runs are there."""
    main: dict[tuple[str, str], list[float]] = {}
    sweep: dict[str, list[float]] = {}
    for (part, task, name), runs in groups(finished).items():
        if part == "main":
            main[task, name] = [final(run) for run in runs]
        else:
            sweep[name] = [final(run) for run in runs]
    claims = _published(finished) + _not_below(main, _shares(finished))
    return claims + _rejections(main) + _sweep(sweep) + _dpo(main)


def _said(scores: Sequence[float]) -> str:
    if len(scores) < 2:
        return f"{iqm(scores):.0f} (1 seed)"
    low, high = bootstrap_interval([scores])
    return f"{iqm(scores):.0f} [{low:.0f}, {high:.0f}] ({len(scores)} seeds)"


def _published(finished: Sequence[Mapping[str, Any]]) -> list[Claim]:
    claims = []
    for (part, task, name), runs in groups(finished).items():
        goal = PUBLISHED_MPO.get(task, {}).get(runs[0]["steps"])
        if part == "main" and name == "MPO" and goal is not None:
            scores = [final(run) for run in runs]
            share = iqm(scores) / goal
            title = f"MPO reaches 90% of its published return on {task} at {runs[0]['steps']:,} steps"
            claims.append(Claim(title, f"{goal:g}", f"{_said(scores)}: {100 * share:.0f}%", share >= 0.9))
    return claims


def _shares(finished: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """By task, our MPO's share of its published return."""
    shares = {}
    for (part, task, name), runs in groups(finished).items():
        goal = PUBLISHED_MPO.get(task, {}).get(runs[0]["steps"])
        if part == "main" and name == "MPO" and goal is not None:
            shares[task] = iqm([final(run) for run in runs]) / goal
    return shares


def _not_below(main: Mapping[tuple[str, str], list[float]], shares: Mapping[str, float]) -> list[Claim]:
    """A method is not below MPO if its interval reaches up to MPO's."""
    claims = []
    for (task, name), scores in main.items():
        kind = ", categorical" if name.endswith(", categorical") else ""
        rival = main.get((task, f"MPO{kind}"))
        if rival is None or name.removesuffix(", categorical") not in NOT_BELOW:
            continue
        top = bootstrap_interval([scores])[1] if len(scores) > 1 else scores[0]
        bottom = bootstrap_interval([rival])[0] if len(rival) > 1 else rival[0]
        title = f"{name} is not below MPO within intervals, {task}"
        share = f", which has {100 * shares[task]:.0f}% of its published return" if task in shares and not kind else ""
        said = f"{_said(scores)} against {_said(rival)}{share}"
        claims.append(Claim(title, "matches or outperforms MPO (Fig. 2)", said, top >= bottom))
    return claims


def _rejections(main: Mapping[tuple[str, str], list[float]]) -> list[Claim]:
    claims = []
    for (task, name), scores in main.items():
        rival = main.get((task, "MPO"))
        if name == "PMPO-R" and rival is not None:
            share = iqm(scores) / iqm(rival)
            said = f"{_said(scores)}, {100 * share:.0f}% of MPO's"
            title = f"PMPO-R with β = 2 learns (half of MPO's return), {task}"
            claims.append(Claim(title, "good (Fig. 2)", said, share >= 0.5))
    return claims


def _sweep(sweep: Mapping[str, list[float]]) -> list[Claim]:
    """Figure 3, with a margin: one or two seeds are few."""
    claims = []
    middles = {name: iqm(scores) for name, scores in sweep.items()}
    seeds = f"({min(map(len, sweep.values()))} seed(s))" if sweep else ""
    low = [middles[name] for name in ("PMPO-R beta=0", "PMPO-R beta=0.5", "PMPO-R beta=1") if name in middles]
    if "PMPO-R beta=2" in middles and low:
        enough = middles["PMPO-R beta=2"]
        said = f"β = 2: {enough:.0f}; best of β ≤ 1: {max(low):.0f} {seeds}"
        holds = enough >= MARGIN * max(low)
        claims.append(Claim("PMPO-R is worse with β ≤ 1, by a fifth", "needs β > 1 (Fig. 3)", said, holds))
    accepts = [value for name, value in middles.items() if name.startswith("PMPO-A ")]
    if len(accepts) > 1:
        said = f"{min(accepts):.0f} to {max(accepts):.0f} {seeds}"
        holds = min(accepts) >= 0.8 * max(accepts)
        claims.append(Claim("PMPO-A hardly depends on β (worst ≥ 80% of best)", "insensitive (Fig. 3)", said, holds))
    return claims


def _dpo(main: Mapping[tuple[str, str], list[float]]) -> list[Claim]:
    """DPO learns mean and spread together, so it is held against PMPO that does ("coupled") on the same labels."""
    claims = []
    for (task, name), scores in main.items():
        for rival_name in ("PMPO-AR best/worst coupled", "PMPO-AR best/worst"):
            rival = main.get((task, rival_name))
            if name == "DPO" and rival is not None:
                said = f"DPO {_said(scores)}; {rival_name} {_said(rival)}"
                title = f"DPO with a Gaussian policy (β = 20) ends a tenth or more below {rival_name}, {task}"
                claims.append(Claim(title, "slow and suboptimal (Fig. 2)", said, iqm(scores) <= 0.9 * iqm(rival)))
    return claims
