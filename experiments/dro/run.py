"""DRO-V against KTO on scored samples, and DRO-V's ablations, with an encoder-decoder.

DRO paper, Figures 1 to 5, at the size of this machine. Every training run is `valence.align` itself. `data` says what
stands for what, `training` is one run, `report` makes the tables and claims.

Protocol. One seed sweeps: temperatures, joint and value-only learning rates, sharing; KTO's temperatures and learning
rates. Every choice is made by the win rate over SFT on separate prompts. Two other seeds compare: DRO-V untuned against
KTO with its best temperature, as in the paper, and both after six tried settings each. Figure 2 is the first of these
comparisons with a larger model and unchanged settings, as in the paper.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from experiments.common.experiment import Experiment, Row, plain
from experiments.common.results import print_table
from experiments.dro.data import Judge, split_prompts
from experiments.dro.report import NOISE, PAPER_LRS, TAUS, check_claims, compare_lines, plot, sweep_lines
from experiments.dro.training import (
    BATCH,
    FOLDS,
    LARGER,
    LR_FACTOR,
    SWEEP_SEED,
    Setting,
    Size,
    load_policy,
    open_bench,
    run_setting,
)
from valence.rewards.sentences import read_sentences, split_sentences

SIZES = {
    "smoke": Size(seeds=(1,), steps=2, checkpoints=1, sft_steps=10, layers=1, select=20, evaluate=20),
    "quick": Size(seeds=(1,), steps=40, checkpoints=2, sft_steps=120, layers=2, select=128, evaluate=250),
    "full": Size(
        seeds=(1, 2), tune=True, steps=96, checkpoints=3, sft_steps=400, layers=2, select=256, evaluate=1000
    ),
}  # fmt: skip
DEFAULT = Setting("dro", SWEEP_SEED)
"""The paper's: tau 1, both learning rates 1e-4, two networks, a value for each token."""
SHARING = (("prompt", "separate"), ("token", "head"), ("prompt", "head"), ("batch", "separate"))
UNTUNED, TUNED = ("DRO-V", "KTO"), ("DRO-V, best of 6", "KTO, best of 6")
Rows = list[Row]


def list_sweeps() -> dict[str, list[Setting]]:
    """Figure -> DRO-V's settings in it, and those of KTO that are known beforehand."""
    return {
        "3 joint": [DEFAULT.with_lr(lr) for lr in PAPER_LRS],
        "3 value": [replace(DEFAULT, value_lr=lr) for lr in PAPER_LRS],
        "4 DRO-V": [replace(DEFAULT, tau=tau) for tau in TAUS],
        "4 KTO": [replace(DEFAULT, name="kto", tau=tau) for tau in TAUS],
        "5": [DEFAULT, *(replace(DEFAULT, value=value, network=network) for value, network in SHARING)],
    }


def best(rows: Sequence[Mapping[str, Any]]) -> Setting:
    """The setting with the highest win rate over SFT on the prompts to choose by."""
    return Setting(**max(rows, key=lambda row: row["select"])["setting"])


def run_all(experiment: Experiment[Size], settings: Sequence[Setting], size: Size, folder: str) -> dict[Setting, Row]:
    """The rows by setting; settings may repeat."""
    home = experiment.out / folder
    home.mkdir(parents=True, exist_ok=True)
    open_bench(home, size)
    rows = experiment.run_all(run_setting, list(dict.fromkeys(settings)), size, home, folder=folder, log=log)
    return {Setting(**row["setting"]): row for row in rows}


def log(row: Row) -> str:
    """A line about one run."""
    setting = Setting(**row["setting"])
    win = f"win {row['win']:5.1f}% (select {row['select']:5.1f}%, step {row['best_step']})" if "win" in row else ""
    figures = f"reward {row['reward']:+.2f}, KL(π‖ref) {row['kl_policy_ref']:6.2f}, distinct-2 {row['distinct_2']:.2f}"
    return f"{setting.label:58} seed {setting.seed} {win} {figures}, {row['seconds']:.0f} s"


def sweep(experiment: Experiment[Size]) -> tuple[dict[str, Rows], dict[str, Setting]]:
    """(figure -> rows, name -> the setting to compare)."""
    size, plan = experiment.size, list_sweeps()
    done = run_all(experiment, [setting for settings in plan.values() for setting in settings], size, "runs")
    found = {figure: [done[setting] for setting in settings] for figure, settings in plan.items()}
    untuned, tuned = (DEFAULT, best(found["4 KTO"])), []
    for name in ("DRO-V", "KTO"):
        # The same for both: three temperatures, then three more learning rates at the best of them.
        settings = [best(found[f"4 {name}"]).with_lr(lr) for lr in PAPER_LRS]
        done = run_all(experiment, settings, size, "runs")
        found[f"{name} lr"] = [done[setting] for setting in settings]
        tuned.append(best([*found[f"4 {name}"], *found[f"{name} lr"]]))
    return found, dict(zip((*UNTUNED, *TUNED), (*untuned, *tuned), strict=True))


def compare(experiment: Experiment[Size], chosen: Mapping[str, Setting], size: Size, folder: str) -> dict[str, Rows]:
    """ "SFT" and each name -> the rows of its setting, one per seed."""
    names = {"SFT": Setting("sft"), **chosen}
    settings = [replace(setting, seed=seed) for seed in size.seeds for setting in names.values()]
    done = run_all(experiment, settings, size, folder)
    return {name: [done[replace(setting, seed=seed)] for seed in size.seeds] for name, setting in names.items()}


def describe(folder: Path, size: Size) -> dict[str, float]:
    """The size of the data and the model, and how accurate scorer and judge are."""
    folder.mkdir(parents=True, exist_ok=True)
    bench, heldout = open_bench(folder, size), split_sentences(read_sentences()).heldout
    texts, marks = [row["completion"] for row in heldout], [bool(row["accept"]) for row in heldout]
    accuracy = {
        name: sum((value > 0) == mark for value, mark in zip(scorer([""] * len(texts), texts), marks, strict=True))
        / len(marks)
        for name, scorer in (("scorer_accuracy", bench.scorer), ("judge_accuracy", bench.judge))
    }
    x, y = [row["prompt"] for row in bench.rows], [row["completion"] for row in bench.rows]
    half = len(x) // 2
    by_scorer, by_judge = (
        Judge.verdicts(scores[:half], scores[half : 2 * half])
        for scores in ([row["score"] for row in bench.rows], bench.judge(x, y))
    )
    same = sum(one == two for one, two in zip(by_scorer, by_judge, strict=True)) / max(1, half)
    weights = sum(part.numel() for part in load_policy(bench.model).parameters())
    return {"rows": float(len(x)), "parameters": float(weights), **accuracy, "judge_agrees_with_scorer": same}


def run(experiment: Experiment[Size]) -> Path:
    """The experiment; prints its tables and writes `results.json`, a page, a picture and the completions."""
    size, out = experiment.size, experiment.out
    data = describe(out / "runs", size)
    print("data:", ", ".join(f"{name} {figure:,.4g}" for name, figure in data.items()))
    found: dict[str, Rows] = {}
    chosen = dict(zip(UNTUNED, (DEFAULT, replace(DEFAULT, name="kto")), strict=True))
    if size.tune:
        print(f"sweeps, seed {SWEEP_SEED}:")
        found, chosen = sweep(experiment)
    print("comparison:")
    compared = compare(experiment, chosen, size, "runs")
    larger: dict[str, Rows] = {}
    if size.tune:
        print(f"comparison with the larger model, {size.larger.layers} layers a side:")
        data["parameters_larger"] = describe(out / "larger", size.larger)["parameters"]
        larger = compare(experiment, {name: chosen[name] for name in UNTUNED}, size.larger, "larger")
    return report(experiment, compared, larger, found, data)


def report(
    experiment: Experiment[Size], compared: Mapping[str, Rows], larger: Mapping[str, Rows], found: Mapping[str, Rows],
    data: Mapping[str, float],
) -> Path:  # fmt: skip
    """Print the table and write everything down.

    Args:
        compared, larger: the rows of Figure 1 and of Figure 2 by name; `larger` may be empty.
        found: the rows of the sweeps by figure.
    """
    size, out = experiment.size, experiment.out
    lines = compare_lines(compared) + (compare_lines(larger, "2") if larger else [])
    swept = sweep_lines(found)
    print_table("Win rate on held-out prompts, percent", [*lines, *swept])
    write_samples(out / "samples", {**compared, **{f"larger {name}": rows for name, rows in larger.items()}}, size)
    plot(lines, found, out / "dro.png")
    runs = {str(row["setting"]): row for rows in [*compared.values(), *found.values()] for row in rows}
    return experiment.write(
        [*lines, *swept], check_claims(compared, larger, found), ["dro.png"],
        page={
            "seeds": len(size.seeds), "fold": size.evaluate // FOLDS, "folds": FOLDS, "noise": NOISE, "batch": BATCH,
            "lr_factor": LR_FACTOR, "larger": LARGER,
        },
        runs=[without_texts(row) for row in runs.values()],
        runs_larger=[without_texts(row) for rows in larger.values() for row in rows], size=asdict(size),
        batch_size=BATCH, lr_factor=LR_FACTOR, sweep_seed=SWEEP_SEED, data=dict(data),
    )  # fmt: skip


def write_samples(folder: Path, compared: Mapping[str, Rows], size: Size) -> None:
    """Write the completions of each method's first seed to a text file."""
    folder.mkdir(parents=True, exist_ok=True)
    prompts = split_prompts(size.select, size.evaluate).evaluate
    for name, rows in compared.items():
        texts = [prompt + text for prompt, text in zip(prompts, rows[0]["texts"], strict=True)]
        (folder / f"{plain(name)}.txt").write_text("\n".join(texts) + "\n", "utf-8")


def without_texts(row: Row) -> Row:
    """A run without its completions and their judgements."""
    return {name: value for name, value in row.items() if name not in ("texts", "judged")}
