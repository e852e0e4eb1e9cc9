"""gsm8k's rows for `valence improve`, and the figures of its runs: see gsm8k.sh beside this file."""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path
from typing import Any

import yaml

from experiments.common.results import write_page, write_results
from valence.training.tracking import read_metrics

RUNS = {"plain": "as it is", "after-form": "after the form of an answer"}
TEXT = """\
# A verifier on gsm8k's training problems

REBEL with `--reward number` on gsm8k's training problems, 5% of them held out: the reward is 1 where the last number of
a completion is the answer, else 0. Rewards are in percent. `drawn` is over all completions of the run. `before` and
`after` are on fresh completions of held-out problems, with half widths of 95% intervals (normal ones: 0 where nothing
was right). `batches with a signal` are those in which two completions of one problem had different rewards. No gain is
to be expected at 3M parameters, and a right number is a lucky guess. The test problems are not touched."""


def prepare(problems: Path, out: Path) -> int:
    """Write the training problems as rows that `align` and `improve` both read; returns their number.

    Every 20th row is marked as held out, so that all runs hold out the same.
    """
    opened: Any = gzip.open if problems.suffix == ".gz" else open
    with opened(problems, "rt", encoding="utf-8") as lines:
        rows = [row for row in map(json.loads, lines) if row.get("split", "train") == "train"]
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("w", encoding="utf-8") as file:
        for number, row in enumerate(rows):
            answer = row["answer"].split("####")[-1].strip()
            one = {
                "prompt": row.get("prompt", row.get("question")) + "\n", "completion": f"#### {answer}", "label": True,
                "answer": answer, "split": "train" if number % 20 else "heldout",
            }  # fmt: skip
            file.write(json.dumps(one) + "\n")
    return len(rows)


def figures(folder: Path) -> dict[str, Any]:
    """The row of one run, from its metrics.jsonl."""
    rows = read_metrics(folder / "metrics.jsonl")
    evaluations = [row for row in rows if "eval/reward" in row]
    steps = [row for row in rows if "reward" in row]
    drawn = yaml.safe_load((folder / "config.yaml").read_text())
    return {
        "run": RUNS[folder.name], "steps": steps[-1]["step"],
        "completions": len(steps) * drawn["batch_size"] * drawn["num_samples"],
        "drawn": 100 * sum(row["reward"] for row in steps) / len(steps),
        "batches with a signal": sum(row["reward_std"] > 0 for row in steps),
        **{
            f"{name}{part}": 100 * point[f"eval/{key}"]
            for name, point in (("before", evaluations[0]), ("after", evaluations[-1]))
            for part, key in (("", "reward"), (" ±", "reward_95_half_width"))
        },
        "kl_policy_ref": evaluations[-1]["eval/kl_policy_ref"], "seconds": sum(row["seconds"] for row in steps),
    }  # fmt: skip


def results(runs: Path, out: Path) -> Path:
    """Write results.json and README.md into `out`."""
    rows = [figures(runs / name) for name in RUNS]
    seeds = [yaml.safe_load((runs / name / "config.yaml").read_text())["seed"] for name in RUNS]
    command = "sh examples/gsm8k.sh ../shared/data/gsm8k/problems.jsonl.gz"
    write_results(out, "gsm8k", rows, [], sorted(set(seeds)), command=command)
    write_page(out / "README.md", TEXT)
    return out / "README.md"


if __name__ == "__main__":
    what, source, target = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    if what == "prepare":
        print(f"{prepare(source, target):,} problems: {target}")
    else:
        print(results(source, target))
