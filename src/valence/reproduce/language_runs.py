"""Runs of the language reproductions: each one setting, trained, judged and kept on disk, side by side in processes."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import statistics
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from valence.evaluation.overoptimization import by_decile
from valence.evaluation.statistics import mean_interval
from valence.evaluation.win_rate import win_rate
from valence.reproduce.pool import run_each
from valence.reproduce.results import commit
from valence.reproduce.sentences import KL_WEIGHT, MAX_NEW_TOKENS, Gold, Task
from valence.sources.prompts import higher_wins

STATUS = Path("/proc/self/status")


@dataclass(frozen=True)
class Setting:
    """One run.

    Args:
        name: the method's row.
        options: fields of `valence.improve`, or of `valence.align` where `job` is "align"; none for the start.
        job: "improve" from the reward model, "align" from the human pairs, or "start": nothing is trained.
        batches: collected batches (improve) or optimizer steps (align).
        looks: evaluations on the way, the last one apart.
        samples: completions of a look.
        prompts: only the first so many, gathered whole at each iteration where the options say so; 0 takes all.
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    job: str = "improve"
    batches: int = 48
    looks: int = 4
    samples: int = 192
    prompts: int = 0

    @property
    def key(self) -> str:
        said = json.dumps(asdict(self), sort_keys=True)
        name = "".join(letter if letter.isalnum() else "-" for letter in self.name)
        return f"{name}-{self.seed}-{hashlib.sha256(said.encode()).hexdigest()[:8]}"


def run_setting(setting: Setting, task: Task, folder: Path) -> dict[str, Any]:
    """Train and judge, or read what an earlier call kept. On one thread."""
    kept = folder / f"{setting.key}.json"
    if kept.is_file():
        return json.loads(kept.read_text(encoding="utf-8"))
    import torch

    torch.set_num_threads(1)
    out = folder / setting.key
    shutil.rmtree(out, ignore_errors=True)
    row = _improve(setting, task, out) if setting.job == "improve" else _look_only(setting, task, out)
    row = {"name": setting.name, "seed": setting.seed, "options": dict(setting.options), "commit": commit()} | row
    kept.write_text(json.dumps(row, ensure_ascii=False) + "\n", encoding="utf-8")
    for part in ("checkpoints", "best-by-gold", "model", "align"):
        shutil.rmtree(out / part, ignore_errors=True)
    return row


def _run_options(setting: Setting, steps: int, every: int) -> dict[str, Any]:
    return {
        "eval_every": every, "eval_samples": setting.samples, "save_every": 0, "tracker": "none", "threads": 1,
        "dtype": fast_dtype(), "max_steps": steps, "seed": setting.seed, "device": "cpu",
    }  # fmt: skip


def _improve(setting: Setting, task: Task, out: Path) -> dict[str, Any]:
    from valence.runs.improve import improve
    from valence.runs.improve_config import improve_config
    from valence.training.tracking import read_metrics

    told = dict(setting.options)
    online = improve_config(**told).online
    contexts = setting.prompts if told.get("whole") else told.get("batch_size", 32)
    size = told.get("minibatch_size", 0)
    per_batch = online.epochs * math.ceil(contexts / (size or contexts))
    every = per_batch * max(1, setting.batches // setting.looks) if setting.looks else 0
    watched = per_batch if setting.looks else 10**6
    result = improve(
        _prompts(setting, task, out), model="small-lm", out=out, reward=str(task.reward), gold=Gold(), quiet=True,
        eval_feedback=str(task.heldout), max_new_tokens=MAX_NEW_TOKENS,
        **(_run_options(setting, setting.batches * per_batch, every) | {"log_every": watched} | told),
    )  # fmt: skip
    rows = read_metrics(out / "metrics.jsonl")
    looks = json.loads((out / "watch.json").read_text(encoding="utf-8"))
    updates = [row for row in rows if "seconds" in row]
    return _judged(looks[-1], out, task) | {
        "steps": result.steps, "figures": result.after, "start": result.before,
        "curve": [{"step": row["step"]} | {k[5:]: v for k, v in row.items() if k.startswith("eval/")}
                  for row in rows if "eval/reward" in row],
        "updates": [{name: row[name] for name in
                     ("step", "reward", "regression_error", "reward_gap_variance", "kl_policy_start", "ended")
                     if name in row} for row in updates],
    }  # fmt: skip


def _look_only(setting: Setting, task: Task, out: Path) -> dict[str, Any]:
    """The start as it is, or after learning from the human pairs."""
    model = "small-lm"
    if setting.job == "align":
        model = str(_align(setting, task, out / "align"))
    figures, look = look_at(model, task, out, samples=setting.samples, seed=setting.seed)
    return _judged(look, out, task) | {"figures": figures}


def _prompts(setting: Setting, task: Task, out: Path) -> Path:
    """The task's file of prompts, or its first lines."""
    if not setting.prompts:
        return task.prompts
    lines = task.prompts.read_text(encoding="utf-8").splitlines(keepends=True)[: setting.prompts]
    out.mkdir(parents=True, exist_ok=True)
    path = out / "prompts.jsonl"
    path.write_text("".join(lines), encoding="utf-8")
    return path


def _align(setting: Setting, task: Task, out: Path) -> Path:
    from valence.runs.align import align

    options = _run_options(setting, setting.batches, 0) | {"eval_samples": 1, "log_every": 10**6}
    return align(task.pairs, model="small-lm", out=out, quiet=True, **(options | dict(setting.options))).model


def _timed(out: Path) -> dict[str, float]:
    """Median seconds of a batch, the first apart."""
    from valence.training.tracking import read_metrics

    rows = [row for row in read_metrics(out / "metrics.jsonl") if "seconds" in row]
    rows = rows[1:] or rows
    return {
        "collect": statistics.median(row["seconds_collecting"] for row in rows),
        "update": statistics.median(row["seconds"] - row["seconds_collecting"] for row in rows),
    }


def look_at(model: str, task: Task, out: Path, *, samples: int, seed: int) -> tuple[dict[str, float], dict[str, Any]]:
    """The figures of a model's samples on the held-out prompts, against small-lm, as a run's last look has them."""
    from valence.policies.loading import load_language_policy
    from valence.rewards import load_reward
    from valence.runs.config import RunConfig
    from valence.runs.evaluation import Evaluation
    from valence.runs.watch import Watch
    from valence.sources.prompts import EncodedPrompt
    from valence.training.reference import FrozenCopy

    out.mkdir(parents=True, exist_ok=True)
    policy, start = (
        load_language_policy(path, max_new_tokens=MAX_NEW_TOKENS, dtype=fast_dtype()) for path in (model, "small-lm")
    )
    reference = FrozenCopy(start)
    rows = [EncodedPrompt(policy.tokenizer(prompt)["input_ids"], prompt) for prompt in task.references()]
    watch = Watch(policy, rows, load_reward(str(task.reward)), Gold(), out)
    config = RunConfig(eval_samples=samples)
    evaluation = Evaluation(policy, reference, [row.ids for row in rows], config=config, seed=seed, judge=watch)
    figures = evaluation(0)
    (out / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in evaluation.samples()))
    return figures, json.loads((out / "watch.json").read_text())[-1]


def _judged(look: Mapping[str, Any], out: Path, task: Task) -> dict[str, Any]:
    """A look's figures: reward, the judge's, and how often the judge prefers the sample to the human's own rest."""
    rests = task.references()
    rows = [json.loads(line) for line in (out / "samples.jsonl").read_text(encoding="utf-8").splitlines()]
    gold = Gold()
    prompts = [row["prompt"].strip() for row in rows]
    ours = gold(prompts, [row["after"] for row in rows])
    theirs = gold(prompts, [rests[prompt] for prompt in prompts])
    verdicts = [verdict for verdict in higher_wins(ours, theirs) if verdict is not None]
    lengths = [
        (len(row["after"].split()), len(rests[prompt].split())) for row, prompt in zip(rows, prompts, strict=True)
    ]
    won = win_rate(verdicts, lengths)
    reward, half = mean_interval(look["proxy"])
    same = won.rate if won.length_controlled is None else won.length_controlled
    kl = statistics.fmean(look["kl"])
    return {
        "reward": reward, "reward_half": half, "kl": kl, "objective": reward - KL_WEIGHT * kl,
        "judge": mean_interval(look["gold"])[0], "win": 100 * won.rate, "win_low": 100 * won.low,
        "win_high": 100 * won.high, "win_at_equal_length": 100 * same,
        "deciles": by_decile(look["kl"], look["proxy"]),
    }  # fmt: skip


def run_all(settings: Sequence[Setting], task: Task, folder: Path, workers: int) -> list[dict[str, Any]]:
    """All settings, in processes side by side; each row is printed when it is there."""
    folder.mkdir(parents=True, exist_ok=True)
    return run_each(run_setting, settings, task, folder, workers=workers, say=_say)


def _say(row: dict[str, Any]) -> None:
    print(
        f"  {row['name']:16} seed {row['seed']:<4} reward {row['reward']:+.3f}, judged {row['judge']:+.3f}, wins "
        f"{row['win']:.0f}%, KL(π‖π_0) {row['kl']:.2f}  {row['options']}", flush=True,
    )  # fmt: skip


def cost(setting: Setting, task: Task, folder: Path) -> dict[str, float]:
    """Seconds to collect and to update a batch, and MiB at the peak of a short run beyond what the process held before
    it (libraries and models are in it); to be called in a process of its own."""
    kept = folder / f"cost-{setting.key}.json"
    if kept.is_file():
        return json.loads(kept.read_text())
    import torch

    torch.set_num_threads(1)
    from valence.rewards import load_reward

    load_reward(str(task.reward))
    before = _memory("VmRSS")
    # From here on the peak is this run's own: a process begins with its parent's.
    if STATUS.exists():
        Path("/proc/self/clear_refs").write_text("5")
    out = folder / f"cost-{setting.key}"
    shutil.rmtree(out, ignore_errors=True)
    (_align if setting.job == "align" else _improve)(setting, task, out)
    found = _timed(out) | {"mib": _memory("VmHWM") - before}
    kept.write_text(json.dumps(found) + "\n")
    return found


def _memory(name: str) -> float:
    """A figure of this process from Linux's own account, MiB; NaN elsewhere."""
    if not STATUS.exists():
        return math.nan
    (line,) = (line for line in STATUS.read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) / 1024


def costs(settings: Sequence[Setting], task: Task, folder: Path) -> dict[str, dict[str, float]]:
    """One after another, so that they can be compared."""
    folder.mkdir(parents=True, exist_ok=True)
    found = {}
    for setting in settings:
        # A process each: a peak is of its whole life. (max_tasks_per_child of one pool hangs in Python 3.11.)
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            found[setting.name] = pool.submit(cost, setting, task, folder).result()
    return found


def fast_dtype() -> str:
    """Mixed precision for training where the processor has it."""
    import torch

    return "bfloat16" if torch.cpu._is_avx512_bf16_supported() else "float32"


def workers_for(size_name: str, workers: int | None) -> int:
    """Processes side by side."""
    return 1 if size_name == "smoke" else workers or os.cpu_count() or 1
