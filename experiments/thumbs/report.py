"""The table, claims, picture and page of `python -m experiments thumbs`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.common.pictures import new_figure, save_figure
from experiments.common.results import Claim, by_name, mean, spread

KL_LIMIT = 4.0
"""Nats per sentence: how far from the reference a method may go."""


def average(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One line per name: means over seeds, and the spread of the share of positive sentences."""
    lines = []
    for name, group in by_name(rows).items():
        line: dict[str, Any] = {"method": name}
        for figure in ("positive", "kl_policy_ref", "kl_ref_policy", "distinct_2", "words"):
            line[figure] = mean(group, figure)
        line["positive_sd"] = spread(group, "positive")
        options = {name: value for name, value in group[0]["options"].items() if name not in ("method", "preset")}
        line["setting"] = " ".join(f"{name}={value:g}" for name, value in options.items())
        lines.append(line)
    return lines


def check_claims(lines: Sequence[Mapping[str, Any]]) -> list[Claim]:
    """The paper's claims, on the averaged lines; a claim about a method that was not run is left out."""
    by = {line["method"]: line for line in lines}
    base, claims = by["reference"], []
    for name, least in (("PMPO-AR", 25), ("PMPO-A", 15), ("PMPO-R", 15)):
        if name not in by:
            continue
        line = by[name]
        gain, ratio = line["positive"] - base["positive"], line["distinct_2"] / base["distinct_2"]
        holds = gain >= least and line["kl_policy_ref"] <= KL_LIMIT and ratio >= 0.8
        ours = f"{gain:+.1f} points at KL(π‖ref) {line['kl_policy_ref']:.2f}, distinct-2 ratio {ratio:.2f}"
        title = f"{name} improves by {least} points or more, KL <= {KL_LIMIT:g}"
        claims.append(Claim(title, "improves (Fig. 4)", ours, holds))
    if "shuffled labels" in by:
        gain = by["shuffled labels"]["positive"] - base["positive"]
        title = "shuffled labels change nothing (within 4 points)"
        claims.append(Claim(title, "—", f"{gain:+.1f} points", abs(gain) <= 4))
    for name in ("PMPO-R beta=1", "PMPO-R beta=0"):
        if name in by:
            kl, paper = by[name]["kl_policy_ref"], "collapses below a sufficient beta (Fig. 5)"
            claims.append(Claim(f"{name} runs away (KL > 20)", paper, f"KL(π‖ref) {kl:.1f}", kl > 20))
    return claims


def plot(lines: Sequence[Mapping[str, Any]], path: Path) -> Any:
    """Share of positive sentences against KL(pi || pi_ref): what each method gains for how far it goes."""
    figure, ((panel,),) = new_figure(size=(7.6, 4.2))
    for line in lines:
        point = (max(line["kl_policy_ref"], 1e-2), line["positive"])
        panel.errorbar(*point, yerr=line["positive_sd"], fmt="o", markersize=5, label=line["method"])
    panel.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5))
    panel.set_xscale("log")
    panel.set_xlabel("KL(π‖π_ref), nats per sentence (the reference, at 0, is shown at 0.01)")
    panel.set_ylabel("judged positive, %")
    return save_figure(figure, path)
