"""`valence reproduce summarize`: REBEL against its rivals on a text task with a fitted reward model and another judge.

REBEL paper, Table 1, Figures 2, 5 and 6, Table 6, with the settings of its appendix H.1.5 where they do not depend on
the model's size. The task stands in for TL;DR summaries: see `valence.reproduce.sentences`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from valence.reproduce.language_runs import Setting, costs, fast_dtype, run_all, workers_for
from valence.reproduce.language_table import KL_LIMIT, average, commits_of, tune
from valence.reproduce.results import print_claims, print_table, write_page, write_results
from valence.reproduce.sentences import KL_WEIGHT, MAX_NEW_TOKENS, UNFINISHED, TaskSize, prepare
from valence.reproduce.summarize_claims import check_claims, paper_columns
from valence.reproduce.summarize_plot import plot


@dataclass(frozen=True)
class Size:
    """How large the experiment is.

    Args:
        batches: collected by each online method, of `batch` prompts.
        pair_steps: of DPO, as many human pairs each.
    """

    task: TaskSize
    seeds: tuple[int, ...]
    batches: int
    pair_steps: int
    looks: int
    samples: int
    tune: bool
    methods: tuple[str, ...] = ()
    etas: tuple[float, ...] = ()
    costs: bool = True
    batch: int = 32


SIZES = {
    "smoke": Size(TaskSize(1, 8), (0,), 1, 1, 0, 8, False, ("REBEL", "RLOO k=2"), costs=False, batch=4),
    "quick": Size(TaskSize(25, 96), (0,), 5, 10, 1, 96, False, costs=False),
    "full": Size(TaskSize(200, 256), (0, 1, 2), 24, 48, 3, 256, True, etas=(0.3, 0.7, 2.0)),
}
TUNE_SEED = 100
ONLINE = {
    "lr_schedule": "linear", "batch_size": 32, "num_samples": 2, "kl_weight": KL_WEIGHT,
    "unfinished_reward": UNFINISHED,
}  # fmt: skip
METHODS: dict[str, dict[str, Any]] = {
    "DPO": {"method": "dpo", "beta": 0.05, "lr_schedule": "linear", "batch_size": 32},
    "iterative DPO": ONLINE | {"method": "iterative-dpo", "beta": 0.05},
    "REINFORCE": ONLINE | {"method": "reinforce"},
    "RLOO k=2": ONLINE | {"method": "rloo"},
    "RLOO k=4": ONLINE | {"method": "rloo", "num_samples": 4},
    "PPO": ONLINE | {"method": "ppo"},
    "REBEL": ONLINE | {"method": "rebel", "eta": 1.0},
}
ONCE = ("REINFORCE", "RLOO k=2", "RLOO k=4")
"""They go over a batch once, and take larger steps."""


def settings_of(names: Sequence[str], size: Size, seed: int, more: Mapping[str, Mapping[str, Any]]) -> list[Setting]:
    """One run of each method; `more` holds what was tuned."""
    return [
        Setting(
            name, METHODS[name] | {"batch_size": size.batch} | dict(more[name]), seed,
            job="align" if name == "DPO" else "improve",
            batches=size.pair_steps if name == "DPO" else size.batches, looks=size.looks, samples=size.samples,
        )
        for name in names
    ]  # fmt: skip


def rates_of(name: str) -> tuple[float, ...]:
    """The three learning rates that a method is tuned over."""
    return (3e-4, 6e-4, 1e-3) if name in ONCE else (1e-4, 3e-4, 6e-4)


def run(out: Path, size_name: str, workers: int | None = None) -> Path:
    """The experiment; prints its tables and writes results.json, a picture and a page."""
    size, count = SIZES[size_name], workers_for(size_name, workers)
    task = prepare(out / "task", size.task)
    facts = task.facts()
    print(
        f"reward model: {100 * facts['reward_model'].get('accuracy', float('nan')):.1f}% of held-out pairs right; "
        f"separate judge: {100 * facts['judge_accuracy']:.1f}% of held-out sentences"
    )
    names = size.methods or tuple(METHODS)
    grids = {name: [{"lr": lr} for lr in rates_of(name)] for name in names}
    candidates = [
        setting for name in names for option in grids[name]
        for setting in settings_of([name], replace(size, looks=0, samples=128), TUNE_SEED, {name: option})
    ]  # fmt: skip
    tried = run_all(candidates, task, out / "tuning", count) if size.tune else []
    chosen = tune(tried, grids)
    settings = [Setting("SFT", seed=seed, job="start", samples=size.samples) for seed in size.seeds[:1]]
    settings += [setting for seed in size.seeds for setting in settings_of(names, size, seed, chosen)]
    rows = run_all(settings, task, out / "runs", count)
    sweep = [
        Setting(f"REBEL eta={eta:g}", METHODS["REBEL"] | chosen["REBEL"] | {"eta": eta}, size.seeds[0],
                batches=size.batches, looks=size.looks, samples=size.samples)
        for eta in size.etas
    ]  # fmt: skip
    swept = run_all(sweep, task, out / "runs", count)
    measured: dict[str, dict[str, float]] = {}
    if size.costs:
        few = [
            replace(setting, batches=4, looks=0, samples=1)
            for setting in settings_of(names, size, size.seeds[0], chosen)
        ]
        measured = costs(few, task, out / "costs")
    lines = average(rows)
    for line in lines:
        line |= measured.get(line["method"], {})
        line |= paper_columns(line["method"])
    etas = average(
        [row | {"name": "REBEL eta=1"} for row in rows if row["name"] == "REBEL" and row["seed"] == 0] + swept
    )
    claims = check_claims(lines, etas if size.etas else [], rows)
    print_table("Means over seeds; reward by the fitted model, win % against humans by a separate judge", lines)
    if size.etas:
        print_table("REBEL's eta, one seed", etas)
    print_claims(claims)
    plot(rows, lines, out / "summarize.png")
    path = write_results(
        out, "summarize", lines, claims, size.seeds, eta_sweep=etas, per_seed=rows, tuning=tried, task=facts,
        commits=commits_of(rows),
        dtype=fast_dtype(), batches=size.batches, chosen=chosen,
    )  # fmt: skip
    write_page(out / "README.md", "REBEL and its rivals on a text task", PAGE, "summarize.png")
    return path


PAGE = f"""\
The carried 3M-parameter model finishes movie-review sentences from their first four words, in at most
{MAX_NEW_TOKENS} tokens. A Bradley-Terry reward model of the same size, fitted on pairs of one half of the sentences, is
what the methods learn from; win rates against the human's own rest of the sentence are by another kind of judge
(TF-IDF and logistic regression) fitted on the other half. Settings of the paper's appendix H.1.5: γ {KL_WEIGHT:g},
Γ {UNFINISHED:g}, four inner epochs for REBEL, iterative DPO and PPO, η 1, β 0.05, linear decay, AdamW; batches of 32
prompts in place of 512. All online methods draw two completions a prompt, RLOO k=4 four. DPO learns offline from the
human pairs that the reward model was fitted on, sentences without a prompt: another task than its rivals', with
knowledge that they have through the reward model alone.

Every method was tuned over three learning rates (3e-4, 6e-4, 1e-3 where a batch is gone over once, else 1e-4, 3e-4,
6e-4) on a seed that is not reported, by reward − γ·KL(π‖π_0) of the fitted model, among those that went no further than
{KL_LIMIT:g} nats a completion, or else by the least KL. (The paper's 29 nats over 53 tokens are 11 over our 20.)

`reward_sd` and `win_sd` are over seeds; `collect` and `update` are seconds a batch, `mib` the peak of a process beyond
what it held before the run (libraries and models are in it: compare differences), of single runs one after another on
a machine that was not quiet; `ordinary_nll` is nats a token of prose, a rise is capability lost; `win_at_length` is the
win rate at equal lengths. The paper's columns are its 2.8B model's, for REINFORCE and RLOO its 6.9B model's. Reward
models of this size are gamed early: read `judge` and `distinct_2` beside the reward."""
