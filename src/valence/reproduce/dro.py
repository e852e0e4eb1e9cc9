"""`valence reproduce dro`: DRO-V against KTO on scored samples, and DRO-V's ablations, with an encoder-decoder.

DRO paper, Figures 1 to 5, at the size of this machine. Every training run is `valence.align` itself. `dro_data` says
what stands for what, `dro_runs` is one run, `dro_claims` what is said of them.

Protocol. One seed sweeps: temperatures, joint and value-only learning rates, sharing; KTO's temperatures and learning
rates. Every choice is made by win rate over SFT on prompts of their own. Two other seeds compare: DRO-V untuned against
KTO with its best temperature, as the paper does, and both after six tried settings each. Figure 2 is the first of
these comparisons with a larger model, settings unchanged, as in the paper.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from valence.reproduce.dro_claims import check_claims, compare_lines, page, plot, sweep_lines
from valence.reproduce.dro_data import Stranger, split_prompts
from valence.reproduce.dro_runs import (
    BATCH,
    LR_FACTOR,
    PAPER_LRS,
    SIZES,
    SWEEP_SEED,
    TAUS,
    Setting,
    Size,
    joint,
    load_policy,
    open_bench,
    run_all,
)
from valence.reproduce.results import print_claims, print_table, write_page, write_results
from valence.reproduce.thumbs_data import read_sentences, split_sentences

DEFAULT = Setting("dro")
"""The paper's: tau 1, both learning rates 1e-4, two networks, a value for each token."""
SHARING = (("prompt", "separate"), ("token", "head"), ("prompt", "head"), ("batch", "separate"))
UNTUNED, TUNED = ("DRO-V", "KTO"), ("DRO-V, best of 6", "KTO, best of 6")
Rows = list[dict[str, Any]]


def sweeps() -> dict[str, list[Setting]]:
    """Figure -> DRO-V's settings in it, and those of KTO that are known beforehand."""
    return {
        "3 joint": [joint(DEFAULT, lr) for lr in PAPER_LRS],
        "3 value": [replace(DEFAULT, value_lr=lr) for lr in PAPER_LRS],
        "4 DRO-V": [replace(DEFAULT, tau=tau) for tau in TAUS],
        "4 KTO": [Setting("kto", tau=tau) for tau in TAUS],
        "5": [DEFAULT, *(replace(DEFAULT, value=value, network=network) for value, network in SHARING)],
    }


def best(rows: Sequence[Mapping[str, Any]]) -> Setting:
    """The setting of the highest win rate over SFT on the prompts to choose by."""
    return Setting(**max(rows, key=lambda row: row["select"])["setting"])


def sweep(size: Size, folder: Path, workers: int) -> tuple[dict[str, Rows], dict[str, Setting]]:
    """(figure -> rows, name -> the setting to compare)."""
    plan = sweeps()
    settings = list(dict.fromkeys(setting for figure in plan.values() for setting in figure))
    done = {Setting(**row["setting"]): row for row in run_all(settings, size, folder, workers)}
    found = {figure: [done[setting] for setting in mine] for figure, mine in plan.items()}
    untuned, tuned = (DEFAULT, best(found["4 KTO"])), []
    for name in ("DRO-V", "KTO"):
        # The same for both: three temperatures, then three more learning rates at the best of them.
        warm = best(found[f"4 {name}"])
        found[f"{name} lr"] = run_all([joint(warm, lr) for lr in PAPER_LRS], size, folder, workers)
        tuned.append(best([*found[f"4 {name}"], *found[f"{name} lr"]]))
    return found, dict(zip((*UNTUNED, *TUNED), (*untuned, *tuned), strict=True))


def run(out: Path, size_name: str, workers: int | None = None) -> Path:
    """The experiment; prints its tables and writes `out/results.json`, a page and a picture.

    What an interrupted run has finished lies in `out/parts`, and is not done again.
    """
    size, folder = SIZES[size_name], out / "parts"
    workers = 1 if size_name == "smoke" else workers or os.cpu_count() or 1
    data = describe(folder, size)
    print("data:", ", ".join(f"{name} {figure:,.4g}" for name, figure in data.items()))
    found: dict[str, Rows] = {}
    chosen = dict(zip(UNTUNED, (DEFAULT, Setting("kto")), strict=True))
    if size.sweeps:
        print(f"sweeps, seed {SWEEP_SEED}:")
        found, chosen = sweep(size, folder, workers)
    print("comparison:")
    compared, base = compare(chosen, size, folder, workers)
    larger: dict[str, Rows] = {}
    if size.sweeps:
        print(f"comparison with the larger model, {size.larger.layers} layers a side:")
        data["parameters_larger"] = describe(out / "larger", size.larger)["parameters"]
        larger, over = compare({name: chosen[name] for name in UNTUNED}, size.larger, out / "larger", workers)
        larger = {"SFT": over, **larger}
    return report(out, {"SFT": base, **compared}, larger, found, size, {"data": data})


def compare(
    chosen: Mapping[str, Setting], size: Size, folder: Path, workers: int
) -> tuple[dict[str, Rows], Rows]:  # fmt: skip
    """(name -> rows of its setting, a seed each; SFT's rows)."""
    plan = [replace(setting, seed=seed) for seed in size.seeds for setting in [Setting("sft"), *chosen.values()]]
    done = {Setting(**row["setting"]): row for row in run_all(list(dict.fromkeys(plan)), size, folder, workers)}
    compared = {name: [done[replace(setting, seed=seed)] for seed in size.seeds] for name, setting in chosen.items()}
    return compared, [done[Setting("sft", seed=seed)] for seed in size.seeds]


def describe(folder: Path, size: Size) -> dict[str, float]:
    """What the data are, and how far scorer and judge can be trusted."""
    folder.mkdir(parents=True, exist_ok=True)
    bench, heldout = open_bench(str(folder), size), split_sentences(read_sentences()).heldout
    texts, marks = [row["completion"] for row in heldout], [bool(row["accept"]) for row in heldout]
    spaces = [""] * len(texts)
    right = {
        name: sum((value > 0) == mark for value, mark in zip(scores(spaces, texts), marks, strict=True)) / len(marks)
        for name, scores in (("scorer_accuracy", bench.scorer), ("judge_accuracy", bench.judge))
    }
    x, y = [row["prompt"] for row in bench.rows], [row["completion"] for row in bench.rows]
    rewards, judged = [row["score"] for row in bench.rows], bench.judge(x, y)
    half = len(rewards) // 2
    agree = Stranger.verdicts(rewards[:half], rewards[half : 2 * half])
    told = Stranger.verdicts(judged[:half], judged[half : 2 * half])
    same = sum(one == two for one, two in zip(agree, told, strict=True)) / max(1, half)
    weights = sum(part.numel() for part in load_policy(bench.model).parameters())
    return {"rows": float(len(rewards)), "parameters": float(weights), **right, "judge_agrees_with_scorer": same}


def report(
    out: Path,
    compared: Mapping[str, Rows],
    larger: Mapping[str, Rows],
    found: Mapping[str, Rows],
    size: Size,
    more: Mapping[str, Any],
) -> Path:
    """Print the tables and claims, and write everything down; completions go to `out/samples`.

    Args:
        compared, larger: Figure 1's rows by name and Figure 2's, SFT's among them; `larger` may be empty.
        found: the sweeps' rows by figure.
    """
    lines = compare_lines(compared) + (compare_lines(larger, "2") if larger else [])
    swept = sweep_lines(found)
    claims = check_claims(compared, larger, found)
    print_table("Win rate on held-out prompts, percent", [*lines, *swept])
    print_claims(claims)
    samples = out / "samples"
    samples.mkdir(parents=True, exist_ok=True)
    prompts = split_prompts(size.select, size.evaluate).evaluate
    for kind, rows in [*compared.items(), *((f"larger {name}", rows) for name, rows in larger.items())]:
        texts = [prompt + text for prompt, text in zip(prompts, rows[0]["texts"], strict=True)]
        (samples / f"{kind.replace(', ', '-').replace(' ', '-')}.txt").write_text("\n".join(texts) + "\n", "utf-8")
    plot(lines, found, out / "dro.png")
    runs = {str(row["setting"]): row for rows in [*compared.values(), *found.values()] for row in rows}
    extra = {
        "runs": [_brief(row) for row in runs.values()],
        "runs_larger": [_brief(row) for rows in larger.values() for row in rows], "size": asdict(size),
        "batch_size": BATCH, "lr_factor": LR_FACTOR, "sweep_seed": SWEEP_SEED, **more,
    }  # fmt: skip
    path = write_results(out, "dro", [*lines, *swept], claims, size.seeds, **extra)
    write_page(out / "README.md", "DRO-V against KTO", page(size), "dro.png")
    return path


def _brief(row: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key not in ("texts", "judged")}
