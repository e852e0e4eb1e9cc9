"""The table, claims, picture and page of `python -m experiments best-worst`."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.common.pictures import new_figure, save_figure
from experiments.common.results import Claim

ITERATIONS = 3
PAPER = {
    "start": {"paper_mt": "8.10", "paper_lc_win": "22.9", "paper_mmlu": "65.8"},
    "DPO": {"paper_mt": "8.11", "paper_lc_win": "44.9", "paper_mmlu": "66.1"},
    "REBEL (1)": {"paper_mt": "8.13", "paper_lc_win": "48.3", "paper_mmlu": "66.3"},
    "REBEL (2)": {"paper_mt": "8.07", "paper_lc_win": "50.0", "paper_mmlu": "65.9"},
    "REBEL (3)": {"paper_mt": "8.01", "paper_lc_win": "49.7", "paper_mmlu": "66.0"},
}
"""Table 3: MT-Bench, AlpacaEval 2.0 length-controlled win rate and MMLU."""


COLUMNS = (
    ("reward", "reward", 1), ("gold_win_rate", "win_against_start", 100), ("gold", "judge", 1),
    ("kl_policy_ref", "kl_policy_ref", 1), ("ordinary_text_nll", "ordinary_nll", 1), ("distinct_2", "distinct_2", 1),
)  # fmt: skip
"""(figure of an evaluation, column of the table, factor)."""


def table(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One line for the start, for DPO, and for each of REBEL's iterations; means over seeds."""
    found: dict[str, list[Mapping[str, Any]]] = {"start": [], "DPO": []}
    for row in rows:
        initial, *later = row["curve"]
        if row["name"] == "DPO":
            found["start"].append(initial)
            found["DPO"].append(later[-1])
        else:
            for place, point in enumerate(later, 1):
                found.setdefault(f"REBEL ({place})", []).append(point)
    lines = []
    for name, points in found.items():
        line: dict[str, Any] = {"method": name, "seeds": len(points)}
        for figure, column, factor in COLUMNS:
            values = [factor * point[figure] for point in points]
            line[column] = sum(values) / len(values)
            if figure in ("reward", "gold_win_rate"):
                line[f"{column}_sd"] = statistics.stdev(values) if len(values) > 1 else 0.0
        lines.append(line | PAPER.get(name, {}))
    return lines


def check_claims(lines: Sequence[Mapping[str, Any]]) -> list[Claim]:
    """The claims of Table 3, on means over seeds."""
    by = {line["method"]: line for line in lines}
    start, dpo = by["start"], by["DPO"]
    rebel = [by[f"REBEL ({place})"] for place in range(1, ITERATIONS + 1)]
    wins = [line["win_against_start"] for line in rebel]
    lost = rebel[-1]["ordinary_nll"] - start["ordinary_nll"]
    return [
        Claim(
            "one iteration of REBEL beats DPO on the same pairs (win rate against the start, %)", "48.3 against 44.9",
            f"{wins[0]:.1f} ± {rebel[0]['win_against_start_sd']:.1f} against {dpo['win_against_start']:.1f} ± "
            f"{dpo['win_against_start_sd']:.1f}", wins[0] > dpo["win_against_start"],
        ),
        Claim(
            "and by the reward it learns from", "—", f"{rebel[0]['reward']:.2f} against {dpo['reward']:.2f}",
            rebel[0]["reward"] > dpo["reward"],
        ),
        Claim(
            "the third iteration does not help (win rate)", "48.3, 50.0, 49.7",
            ", ".join(f"{win:.1f}" for win in wins), wins[2] <= wins[1],
        ),
        Claim(
            "little capability is lost over three iterations (0.1 nats a token of prose or less)",
            "MMLU 65.8 to 66.0", f"{start['ordinary_nll']:.3f} to {rebel[-1]['ordinary_nll']:.3f}", lost <= 0.1,
        ),
    ]  # fmt: skip


def plot(lines: Sequence[Mapping[str, Any]], path: Path) -> Any:
    """Reward, win rate and prose by method."""
    figure, panels = new_figure(1, 3, size=(12, 3.6))
    names = [line["method"] for line in lines]
    shown = {
        "reward": "reward of the fitted model", "win_against_start": "win against the start, %",
        "ordinary_nll": "prose, nats per token",
    }  # fmt: skip
    for panel, (column, title) in zip(panels[0], shown.items(), strict=True):
        deviations = [line.get(f"{column}_sd", 0.0) for line in lines]
        panel.errorbar(names, [line[column] for line in lines], yerr=deviations, fmt="o")
        panel.set_title(title, fontsize=9)
        panel.tick_params(labelsize=8)
    return save_figure(figure, path)
