"""The REBEL paper's claims on summaries, beside what was seen here."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from valence.reproduce.results import Claim

PAPER: dict[str, dict[str, str]] = {
    "SFT": {"paper_reward": "-0.38", "paper_win": "28.2"},
    "DPO": {"paper_reward": "2.40", "paper_win": "53.7", "paper_kl": "64.3"},
    "iterative DPO": {"paper_reward": "2.37", "paper_win": "63.1", "paper_kl": "28.1"},
    "PPO": {"paper_reward": "2.37", "paper_win": "67.4", "paper_kl": "27.2"},
    "REBEL": {"paper_reward": "2.44", "paper_win": "70.2", "paper_kl": "29.0"},
    "REINFORCE": {"paper_win": "70.7 (6.9B)"}, "RLOO k=2": {"paper_win": "74.2 (6.9B)"},
    "RLOO k=4": {"paper_win": "77.9 (6.9B)"},
}  # fmt: skip
"""Table 1: the 2.8B model's, or the 6.9B model's where it has no other."""
PAPER_ETA = {"0.3": "1.37", "0.7": "1.60", "1": "2.44", "2": "1.76"}
"""Table 6: reward by eta."""


def paper_columns(method: str) -> dict[str, str]:
    """The paper's figures of a method."""
    return {name: PAPER.get(method, {}).get(name, "") for name in ("paper_reward", "paper_win", "paper_kl")}


def check_claims(
    lines: Sequence[Mapping[str, Any]], etas: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]]
) -> list[Claim]:
    """Judged on means over seeds; what was not run is not claimed."""
    by = {line["method"]: line for line in lines}
    rivals = [line for line in lines if line["method"] not in ("SFT", "REBEL")]
    if "REBEL" not in by or not rivals:
        return []
    rebel, claims = by["REBEL"], []
    for key, label, paper in (
        ("reward", "reward model's score", "2.44, best rival 2.40 (2.8B); highest at 1.4B too"),
        ("win", "win rate against humans, %", "70.2, best rival 67.4 (2.8B); 78.1, 77.9 (6.9B)"),
    ):
        best = max(rivals, key=lambda line: line[key])
        ours = f"{rebel[key]:.2f} ± {rebel[f'{key}_sd']:.2f}, best rival {best['method']} {best[key]:.2f} ± "
        claims.append(
            Claim(f"REBEL has the highest {label}", paper, f"{ours}{best[f'{key}_sd']:.2f}", rebel[key] > best[key])
        )
    if "PPO" in by:
        ours = f"REBEL {rebel['kl_policy_ref']:.2f}, PPO {by['PPO']['kl_policy_ref']:.2f}"
        more = 0.5 * rebel["kl_policy_ref"] < by["PPO"]["kl_policy_ref"] < rebel["kl_policy_ref"]
        claims.append(
            Claim("PPO stays a little closer to the start (by less than half)", "KL 29.0, PPO 27.2", ours, more)
        )
    if all("update" in by.get(name, {}) for name in ("REBEL", "PPO", "RLOO k=2", "RLOO k=4", "iterative DPO")):
        claims += _costs(by)
    claims += _curves(rows)
    if etas:
        found = {str(line["method"]).partition("=")[2]: line["reward"] for line in etas}
        ours = ", ".join(f"{eta}: {value:.2f}" for eta, value in sorted(found.items(), key=lambda item: float(item[0])))
        paper = ", ".join(f"{eta}: {value}" for eta, value in PAPER_ETA.items())
        best = max(found, key=lambda eta: found[eta])
        claims.append(
            Claim("η = 1 gives the best reward (one seed, at the rate tuned for it)", paper, ours, best == "1")
        )
    return claims


def _costs(by: Mapping[str, Mapping[str, Any]]) -> list[Claim]:
    time = {name: line["collect"] + line["update"] for name, line in by.items() if "update" in line}
    memory = {name: line["mib"] for name, line in by.items() if "mib" in line}
    said = ", ".join(f"{name} {time[name]:.1f} s" for name in ("RLOO k=2", "iterative DPO", "REBEL", "RLOO k=4", "PPO"))
    faster = time["REBEL"] < min(time["PPO"], time["RLOO k=4"])
    held = ", ".join(
        f"{name} {memory[name]:.0f} MiB" for name in ("RLOO k=2", "iterative DPO", "REBEL", "RLOO k=4", "PPO")
    )
    smaller = memory["REBEL"] < min(memory["PPO"], memory["RLOO k=4"])
    close = time["REBEL"] < 1.25 * time["iterative DPO"]
    return [
        Claim("a batch of REBEL takes less time than PPO's and RLOO k=4's", "Fig. 2", said, faster),
        Claim("it takes about as long as iterative DPO's (within a quarter)", "Fig. 2", said, close),
        Claim("a batch of REBEL needs less memory than PPO's and RLOO k=4's", "Fig. 2", held, smaller),
    ]


def _curves(rows: Sequence[Mapping[str, Any]]) -> list[Claim]:
    """Figures 5 and 6, from REBEL's and PPO's runs."""
    rebel = [row for row in rows if row["name"] == "REBEL" and len(row.get("updates", ())) >= 8]
    ppo = [row for row in rows if row["name"] == "PPO" and "deciles" in row]
    if not rebel:
        return []
    late = [update for row in rebel for update in row["updates"][-len(row["updates"]) // 4 :]]
    error = statistics.fmean(update["regression_error"] for update in late)
    variance = statistics.fmean(update["reward_gap_variance"] for update in late)
    ours = f"{error:.2f} over the last quarter's four passes, the squared gaps themselves {variance:.2f}"
    title = "the regression's error stays low beside the rewards' spread (under half of the squared gaps)"
    claims = [Claim(title, "Fig. 6", ours, error < 0.5 * variance)]
    if ppo:
        curves = [_deciles(some) for some in (rebel, ppo)]
        near = max(curve[0][0] for curve in curves)
        found = [float(np.interp(near, [far for far, _ in curve], [got for _, got in curve])) for curve in curves]
        ours = f"at {near:.1f} nats, the nearest that both have: REBEL {found[0]:.2f}, PPO {found[1]:.2f}"
        claims.append(
            Claim("REBEL scores higher where samples are near the start", "Fig. 5", ours, found[0] > found[1])
        )
    return claims


def _deciles(rows: Sequence[Mapping[str, Any]]) -> list[tuple[float, float]]:
    """(KL, reward) of each tenth by KL, means over seeds."""
    cells = zip(*(row["deciles"] for row in rows), strict=True)
    return [tuple(statistics.fmean(cell[key] for cell in some) for key in ("kl", "reward")) for some in cells]  # pyright: ignore[reportReturnType]
