"""docs/results/performance/README.md and its picture, from the figures that the benchmarks kept."""

from __future__ import annotations

import json
from typing import Any

import matplotlib
from common import FOLDER

matplotlib.use("Agg")
import matplotlib.pyplot as plt

ABOUT = {
    "naive": "naive: full logits, autograd",
    "products": "the four products alone, no result (floor)",
    "ahead": "**ours**, coefficients known ahead (PMPO, supervised)",
    "recompute": "**ours**, coefficients known afterwards",
    "plain": "ours, `--head plain`",
    "trl": "TRL's two chunked functions",
    "naive, no KL": "naive, log π and log π_ref alone",
    "recompute, no KL": "**ours**, log π and log π_ref alone (DPO, KTO, REBEL, DRO)",
}
OURS = ("PMPO", "KTO", "DPO", "DRO-V")


def load(name: str) -> dict[str, Any]:
    return json.loads((FOLDER / f"{name}.json").read_text())


def machine(found: dict[str, Any]) -> str:
    told = found["machine"]
    place = told["gpu"] or f"{told['cores']} cores of {told['processor']}, {told['threads']} threads, no GPU"
    libraries = ", ".join(f"{name} {told[name]}" for name in ("torch", "transformers", "trl"))
    return f"{place}; {libraries}; commit {told['commit']}"


def aim(value: float, limit: float, *, least: bool = False) -> str:
    met = value >= limit if least else value <= limit
    return f"{'≥' if least else '≤'} {limit:g}: {'met' if met else '**missed**'}"


def head() -> list[str]:
    found = load("head")
    runs, size = found["variants"], found["size"]
    lines = [
        "## The head alone, forward and backward", "",
        f"`benchmarks/head.py`: T {size[0]:,}, H {size[1]:,}, V {size[2]:,}, on {found['device']}: log π, log π_ref "
        "and KL(π_ref‖π) of every token, and the gradient with respect to hidden states and head; the last two rows "
        "without the KL. Memory is the peak beyond inputs and gradients, time the least of some runs.",
        f"{machine(found)}.", "", "| | MiB | of naive | seconds | of naive | of TRL |", "|---|---|---|---|---|---|",
    ]  # fmt: skip
    for name, figures in runs.items():
        if isinstance(figures, str):
            lines.append(f"| {ABOUT[name]} | failed: {figures} | | | | |")
            continue
        base, peer = runs["naive, no KL" if "no KL" in name else "naive"], runs["trl"]
        against = "" if "no KL" in name or isinstance(peer, str) else f"{figures['seconds'] / peer['seconds']:.2f}"
        size, took = figures["MiB"], figures["seconds"]
        lines.append(
            f"| {ABOUT[name]} | {size:,.0f} | {size / base['MiB']:.1%} | {took:.1f} | {took / base['seconds']:.2f} | "
            f"{against} |"
        )
    naive, peer = runs["naive"], runs["trl"]
    lines += ["", "| aim | ahead | recompute |", "|---|---|---|"]
    rows = [
        ("memory against naive", "MiB", naive, 0.05), ("time against naive", "seconds", naive, 0.8),
        ("time against TRL's two functions", "seconds", peer, 0.6),
    ]  # fmt: skip
    for what, unit, base, limit in rows:
        parts = [runs[name][unit] / base[unit] for name in ("ahead", "recompute")]
        lines.append(f"| {what} | " + " | ".join(f"{part:.3f} ({aim(part, limit)})" for part in parts) + " |")
    floor = runs["products"]["seconds"]
    return [
        *lines, "",
        f"Recomputing takes six products where naive takes four: at the rate of the four alone ({floor:.1f} s) six "
        f"take {1.5 * floor:.1f} s, {1.5 * floor / naive['seconds']:.2f} of naive; the whole took "
        f"{runs['recompute']['seconds']:.1f} s. So on a CPU the aim cannot be met this way: what is left beside the "
        f"products is next to nothing. Known ahead the whole took {runs['ahead']['seconds']:.1f} s for four products "
        f"({runs['ahead']['seconds'] / floor - 1:+.0%}: tiles of fewer tokens, each adding to the head's gradient).",
    ]  # fmt: skip


def steps() -> list[str]:
    found = load("step")
    runs = found["variants"]
    lines = [
        "", "## Whole offline steps", "",
        f"`benchmarks/step.py`: a Llama of H {found['width']}, {found['layers']} layers, V {found['vocabulary']:,}, "
        f"all weights learn, {found['steps']} steps of {found['batch']} rows after two that do not count, real "
        "prompt and completion tokens of labelled rows a second, the reference's pass included; medians of "
        f"{len(next(iter(runs.values()))['rounds'])} rounds (least to most). Memory is the steps' peak beyond what was "
        "there before: gradients and the optimizer's state are in it.",
        f"{machine(found)}.", "",
        "| | tokens/s | rounds | of naive PMPO | of TRL KTO | of TRL DPO | MiB |", "|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    bases = [runs[name]["tokens_per_second"] for name in ("naive PMPO", "TRL KTO", "TRL DPO")]
    for name, figures in runs.items():
        speed, ours = figures["tokens_per_second"], name.split(",")[0] in OURS
        shares = " | ".join(f"{speed / base:.2f}" for base in bases)
        rounds = f"{min(figures['rounds']):,.0f} to {max(figures['rounds']):,.0f}"
        lines.append(
            f"| {'**ours**, ' if ours else ''}{name} | {speed:,.0f} | {rounds} | {shares} | {figures['MiB']:,.0f} |"
        )
    pmpo = runs["PMPO"]["tokens_per_second"]
    names = ("naive PMPO", "TRL `KTOTrainer`", "TRL `DPOTrainer`")
    said = [
        f"{name} {pmpo / base:.1f} ({aim(pmpo / base, limit, least=True)})"
        for name, base, limit in zip(names, bases, (1.5, 5, 5), strict=True)
    ]
    peers = [figures for name, figures in runs.items() if name.startswith(("TRL", "naive"))]
    own = [runs[name] for name in OURS]
    ahead = max(peer["tokens_per_second"] for peer in peers) > min(mine["tokens_per_second"] for mine in own)
    smaller = min(peer["MiB"] for peer in peers) < max(mine["MiB"] for mine in own)
    better = " and ".join(word for word, is_so in (("faster", ahead), ("smaller", smaller)) if is_so)
    rest = f"Some peer is {better} than some method of ours: see the table." if better else (
        "No peer is faster or smaller than any method of ours here."
    )  # fmt: skip
    return [*lines, "", "PMPO with its exact KL, how many times as fast: " + "; ".join(said) + f". {rest}"]


def growth() -> list[str]:
    found = load("growth")
    runs, names = found["runs"], {"naive": "naive", "ahead": "known ahead", "recompute": "recompute"}
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4))
    for name, label in names.items():
        mine = [run for run in runs if run["variant"] == name]
        wide = sorted((run["vocabulary"], run["MiB"]) for run in mine if run["tokens"] == found["tokens"])
        long = sorted((run["tokens"], run["seconds"]) for run in mine if run["vocabulary"] == found["vocabulary"])
        left.plot(*zip(*wide, strict=True), marker="o", label=label)
        right.plot(*zip(*long, strict=True), marker="o", label=label)
    for axis in (left, right):
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        axis.grid(alpha=0.3)
        axis.legend()
    left.set(xlabel="vocabulary", ylabel="MiB beyond inputs and gradients", title=f"{found['tokens']:,} tokens")
    right.set(xlabel="tokens", ylabel="seconds", title=f"vocabulary of {found['vocabulary']:,}")
    figure.tight_layout()
    figure.savefig(FOLDER / "growth.png", dpi=120)

    def grown(name: str, unit: str, by: str, kept: str) -> tuple[float, float]:
        some = [run for run in runs if run["variant"] == name and run[kept] == found[kept]]
        some.sort(key=lambda run: run[by])
        return some[-1][by] / some[0][by], some[-1][unit] / some[0][unit]

    sentences = []
    for name, label in names.items():
        wider, larger = grown(name, "MiB", "vocabulary", "tokens")
        longer, slower = grown(name, "seconds", "tokens", "vocabulary")
        sentences.append(
            f"| {label} | {larger:.1f} (vocabulary × {wider:.0f}) | {slower:.1f} (tokens × {longer:.0f}) |"
        )
    return [
        "", "## How it grows", "",
        f"`benchmarks/growth.py`, the head at H {found['width']}. {machine(found)}.", "",
        "| | memory times | time times |", "|---|---|---|", *sentences, "",
        "Known ahead, what is held grows until it is a fixed number of logits, then no more.", "",
        "![growth](growth.png)",
    ]  # fmt: skip


def main() -> None:
    lines = [
        "# Performance", "",
        "Written by `make bench` (benchmarks/report.py) from the figures beside this page. Ratios within one run; "
        "timings on a shared machine are noisy. Nothing has been measured on a GPU: the Triton kernels, packing under "
        "flash attention and Liger (whose kernels are for GPUs alone) wait for one.", "",
        *head(), *steps(), *growth(),
    ]  # fmt: skip
    (FOLDER / "README.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
