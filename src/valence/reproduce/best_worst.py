"""`valence reproduce best-worst`: REBEL over the whole data set, best of five against worst of five, beside DPO.

REBEL paper, section 5.2's ablation, Table 3: each iteration samples five completions of every prompt, keeps the best
and the worst by the reward model, and regresses once over them, with eta 1e6, 1e4, 1e2 and no KL in the reward. DPO
learns from the first iteration's very pairs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from valence.reproduce.language_runs import Setting, fast_dtype, run_all, workers_for
from valence.reproduce.language_table import commits_of, spread, tune
from valence.reproduce.results import Claim, print_claims, print_table, write_page, write_results
from valence.reproduce.sentences import UNFINISHED, TaskSize, prepare


@dataclass(frozen=True)
class Size:
    """How large the experiment is.

    Args:
        prompts: the whole data set of an iteration.
    """

    task: TaskSize
    seeds: tuple[int, ...]
    prompts: int
    minibatch: int
    samples: int
    tune: bool


SIZES = {
    "smoke": Size(TaskSize(1, 8), (0,), 4, 2, 8, False),
    "quick": Size(TaskSize(25, 96), (0,), 96, 16, 96, False),
    "full": Size(TaskSize(200, 256), (0, 1), 384, 32, 256, True),
}
TUNE_SEED = 100
ITERATIONS = 3
SHARED = {
    "whole": True, "num_samples": 5, "pairs": "best-worst", "inner_epochs": 1, "kl_weight": 0.0,
    "unfinished_reward": UNFINISHED, "warmup_steps": 1,
}  # fmt: skip
METHODS: dict[str, dict[str, Any]] = {
    "REBEL": SHARED | {"method": "rebel", "eta": "1e6,1e4,1e2"},
    "DPO": SHARED | {"method": "iterative-dpo", "beta": 0.1},
}
RATES = (3e-4, 1e-3)
PAPER = {
    "start": {"paper_mt": "8.10", "paper_lc_win": "22.9", "paper_mmlu": "65.8"},
    "DPO": {"paper_mt": "8.11", "paper_lc_win": "44.9", "paper_mmlu": "66.1"},
    "REBEL (1)": {"paper_mt": "8.13", "paper_lc_win": "48.3", "paper_mmlu": "66.3"},
    "REBEL (2)": {"paper_mt": "8.07", "paper_lc_win": "50.0", "paper_mmlu": "65.9"},
    "REBEL (3)": {"paper_mt": "8.01", "paper_lc_win": "49.7", "paper_mmlu": "66.0"},
}
"""Table 3: MT-Bench, AlpacaEval 2.0 length-controlled win rate and MMLU."""


def setting_of(name: str, size: Size, seed: int, more: Mapping[str, Any], iterations: int) -> Setting:
    """One run, looked at after each iteration."""
    options = METHODS[name] | {"minibatch_size": size.minibatch} | dict(more)
    return Setting(
        name, options, seed, batches=iterations, looks=iterations, samples=size.samples, prompts=size.prompts
    )


def table(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One line for the start, DPO, and each of REBEL's iterations; means over seeds."""
    found: dict[str, list[Mapping[str, Any]]] = {"start": [], "DPO": []}
    for row in rows:
        looks = row["curve"]
        if row["name"] == "DPO":
            found["start"].append(looks[0])
            found["DPO"].append(looks[-1])
        else:
            for place, look in enumerate(looks[1:], 1):
                found.setdefault(f"REBEL ({place})", []).append(look)
    lines = []
    for name, looks in found.items():
        line: dict[str, Any] = {"method": name, "seeds": len(looks)}
        for key, label, scale in (
            ("reward", "reward", 1), ("gold_win_rate", "win_against_start", 100), ("gold", "judge", 1),
            ("kl_policy_ref", "kl_policy_ref", 1), ("ordinary_text_nll", "ordinary_nll", 1),
            ("distinct_2", "distinct_2", 1),
        ):  # fmt: skip
            values = [scale * look[key] for look in looks]
            line[label] = sum(values) / len(values)
            if key in ("reward", "gold_win_rate"):
                line[f"{label}_sd"] = spread(values)
        lines.append(line | PAPER.get(name, {}))
    return lines


def check_claims(lines: Sequence[Mapping[str, Any]]) -> list[Claim]:
    """Table 3's, on means over seeds."""
    by = {line["method"]: line for line in lines}
    start, dpo = by["start"], by["DPO"]
    rebel = [by[f"REBEL ({place})"] for place in range(1, ITERATIONS + 1)]
    wins = [line["win_against_start"] for line in rebel]
    said = ", ".join(f"{value:.1f}" for value in wins)
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
        Claim("the third iteration does not help (win rate)", "48.3, 50.0, 49.7", said, wins[2] <= wins[1]),
        Claim(
            "little capability is lost over three iterations (0.1 nats a token of prose or less)",
            "MMLU 65.8 to 66.0", f"{start['ordinary_nll']:.3f} to {rebel[-1]['ordinary_nll']:.3f}", lost <= 0.1,
        ),
    ]  # fmt: skip


def run(out: Path, size_name: str, workers: int | None = None) -> Path:
    """The experiment; prints its tables and writes results.json, a picture and a page."""
    size, count = SIZES[size_name], workers_for(size_name, workers)
    task = prepare(out / "task", size.task)
    grids = {name: [{"lr": lr} for lr in RATES] for name in METHODS}
    candidates = [setting_of(name, size, TUNE_SEED, option, 1) for name in METHODS for option in grids[name]]
    tried = run_all(candidates, task, out / "tuning", count) if size.tune else []
    chosen = tune(tried, grids)
    rows = run_all(
        [setting_of(name, size, seed, chosen[name], ITERATIONS if name == "REBEL" else 1)
         for seed in size.seeds for name in METHODS],
        task, out / "runs", count,
    )  # fmt: skip
    lines = table(rows)
    claims = check_claims(lines)
    print_table("Means over seeds; win % against the start by the separate judge", lines)
    print_claims(claims)
    plot(lines, out / "best-worst.png")
    path = write_results(
        out, "best-worst", lines, claims, size.seeds, per_seed=rows, tuning=tried, chosen=chosen, task=task.facts(),
        commits=commits_of(rows),
        prompts=size.prompts, dtype=fast_dtype(),
    )  # fmt: skip
    write_page(
        out / "README.md", "Best of five against worst of five", PAGE.format(prompts=size.prompts), "best-worst.png"
    )
    return path


PAGE = """\
Each iteration samples five completions of all {prompts} prompts from the policy as it stands, keeps each prompt's best
and worst by the fitted reward model, and goes over them once in small batches; REBEL's η is 1e6, 1e4, 1e2, there is no
KL in the reward (γ = 0), and each η begins with a fresh AdamW whose ε is 1e-8/1e6: at η = 1e6 the loss's gradient is a
millionth of its usual size, and the common ε would swallow it. The learning rate is constant after one step (the paper:
a tenth of warm-up, then a cosine's fall; minibatches of 128). DPO (β 0.1) learns from the first iteration's pairs.
Both were tuned over two learning rates for one iteration, on a seed that is not reported, by the fitted reward less
0.05 a nat of KL(π‖π_0), among those within 12 nats. The task, the reward model and the separate judge are those of
`summarize`. `ordinary_nll`, nats a token of held-out prose, stands for the paper's academic benchmarks: a rise is
capability lost. Columns of the paper: MT-Bench, length-controlled AlpacaEval 2.0 (win rate against GPT-4) and MMLU of
Llama-3-8B; they show the order, not the scale."""


def plot(lines: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Reward, win rate and prose by method."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(12, 3.6))
    names = [line["method"] for line in lines]
    for axis, (key, label) in zip(
        axes,
        (("reward", "reward of the fitted model"), ("win_against_start", "win against the start, %"),
         ("ordinary_nll", "prose, nats a token")),
        strict=True,
    ):  # fmt: skip
        axis.errorbar(
            names, [line[key] for line in lines], yerr=[line.get(f"{key}_sd", 0.0) for line in lines], fmt="o"
        )
        axis.set_title(label, fontsize=9)
        axis.tick_params(labelsize=8)
        axis.grid(alpha=0.25)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
