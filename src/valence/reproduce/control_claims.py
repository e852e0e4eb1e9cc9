"""What the paper and the issue claim of control, judged on finished runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from valence.evaluation.statistics import bootstrap_interval, iqm
from valence.reproduce.control_report import PUBLISHED_MPO, final, groups
from valence.reproduce.results import Claim


def check_claims(finished: Sequence[Mapping[str, Any]]) -> list[Claim]:
    """Every claim whose runs are there."""
    main: dict[tuple[str, str], list[float]] = {}
    sweep: dict[str, float] = {}
    for (part, task, name), runs in groups(finished).items():
        if part == "main":
            main[task, name] = [final(run) for run in runs]
        else:
            sweep[name] = iqm([final(run) for run in runs])
    claims = _published(finished) + _not_below(main)
    return claims + _rejections(main, sweep) + _dpo(main)


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


def _not_below(main: Mapping[tuple[str, str], list[float]]) -> list[Claim]:
    """A method is not below MPO if its interval reaches up to MPO's."""
    claims = []
    for (task, name), scores in main.items():
        kind = ", categorical" if name.endswith(", categorical") else ""
        rival = main.get((task, f"MPO{kind}"))
        plain = name.removesuffix(", categorical")
        if rival is None or plain not in ("PMPO-AR", "PMPO-A", "PMPO-R"):
            continue
        top = bootstrap_interval([scores])[1] if len(scores) > 1 else scores[0]
        bottom = bootstrap_interval([rival])[0] if len(rival) > 1 else rival[0]
        title = f"{name} is not below MPO within intervals, {task}"
        said = f"{_said(scores)} against {_said(rival)}"
        claims.append(Claim(title, "matches or outperforms MPO (Fig. 2)", said, top >= bottom))
    return claims


def _rejections(main: Mapping[tuple[str, str], list[float]], sweep: Mapping[str, float]) -> list[Claim]:
    claims = []
    for (task, name), scores in main.items():
        rival = main.get((task, "MPO"))
        if name == "PMPO-R" and rival is not None:
            share = iqm(scores) / iqm(rival)
            said = f"{_said(scores)}, {100 * share:.0f}% of MPO's"
            claims.append(
                Claim(f"PMPO-R with β = 2 learns (half of MPO's return), {task}", "good (Fig. 2)", said, share >= 0.5)
            )
    enough = sweep.get("PMPO-R beta=2")
    low = [sweep[name] for name in ("PMPO-R beta=0", "PMPO-R beta=0.5", "PMPO-R beta=1") if name in sweep]
    if enough is not None and low:
        said = f"β = 2: {enough:.0f}; best of β ≤ 1: {max(low):.0f}"
        claims.append(Claim("PMPO-R is worse with β ≤ 1", "needs β > 1 (Fig. 3)", said, enough > max(low)))
    accepts = [value for name, value in sweep.items() if name.startswith("PMPO-A ")]
    if len(accepts) > 1:
        said = f"{min(accepts):.0f} to {max(accepts):.0f}"
        holds = min(accepts) >= 0.8 * max(accepts)
        claims.append(Claim("PMPO-A hardly depends on β (worst ≥ 80% of best)", "insensitive (Fig. 3)", said, holds))
    return claims


def _dpo(main: Mapping[tuple[str, str], list[float]]) -> list[Claim]:
    claims = []
    for (task, name), scores in main.items():
        rival = main.get((task, "PMPO-AR best/worst"))
        if name == "DPO" and rival is not None:
            said = f"DPO {_said(scores)}; PMPO-AR best/worst {_said(rival)}"
            title = f"DPO with Gaussian policies (β = 20) is slower than PMPO on the same labels, {task}"
            claims.append(Claim(title, "slow and suboptimal (Fig. 2)", said, iqm(scores) < iqm(rival)))
    return claims
