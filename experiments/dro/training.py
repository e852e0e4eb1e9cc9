"""One run of `python -m experiments dro`: train in legs, keep the checkpoint that wins most over SFT, evaluate it."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from experiments.common import experiment as common
from experiments.common.experiment import SILENT, Row, cached, fast_dtype
from experiments.dro.data import NEW_TOKENS, Judge, Prompts, Scorer, make_base, make_rows, split_prompts, write_feedback
from valence.evaluation.statistics import win_rate
from valence.rewards.sentences import read_sentences, split_sentences

BATCH = 32
"""The paper's batch size."""
FOLDS = 5
LR_FACTOR = 30
"""Our learning rates over the paper's: Adafactor's are relative to each weight's size, and we take far fewer steps."""
LARGER = 3
"""Layers of Figure 2's model over Figure 1's."""
KL_SAMPLES = 256
SWEEP_SEED = 0


@dataclass(frozen=True, kw_only=True)
class Size(common.Size):
    """How large the experiment is; with `tune` there are sweeps, and the comparison again with a larger model.

    Args:
        steps: optimizer steps, each of 32 rows; no row is used twice.
        checkpoints: checkpoints that are compared, evenly spaced.
        sft_steps, layers: optimizer steps and layers of the SFT model.
        select, evaluate: prompts to choose a checkpoint by, and to evaluate on.
    """

    steps: int
    checkpoints: int
    sft_steps: int
    layers: int
    select: int
    evaluate: int

    @property
    def rows(self) -> int:
        return BATCH * self.steps

    @property
    def larger(self) -> Size:
        """The same comparison with the larger model (Figure 2)."""
        return replace(self, layers=LARGER * self.layers, tune=False)


@dataclass(frozen=True)
class Setting(common.Setting):
    """One run of the method "dro", "kto" or "sft" (no training); learning rates are the paper's, before `LR_FACTOR`.

    Args:
        tau: the method's temperature; KTO calls it beta.
        value, network: DRO's options `value` and `value_network`.
    """

    tau: float = 1.0
    lr: float = 1e-4
    value_lr: float = 1e-4
    value: str = "token"
    network: str = "separate"

    def options(self) -> dict[str, Any]:
        """Options of `valence.align`."""
        if self.name == "kto":
            return {"method": "kto", "beta": self.tau, "lr": LR_FACTOR * self.lr}
        return {
            "method": "dro", "tau": self.tau, "lr": LR_FACTOR * self.lr, "value_lr": LR_FACTOR * self.value_lr,
            "value": self.value, "value_network": self.network,
        }  # fmt: skip

    def with_lr(self, lr: float) -> Setting:
        """The same with this learning rate for policy and value."""
        return replace(self, lr=lr, value_lr=lr)

    @property
    def label(self) -> str:
        """The setting in words, with the paper's learning rates."""
        if self.name == "sft":
            return "SFT"
        if self.name == "kto":
            return f"KTO tau={self.tau:g} lr={self.lr:g}"
        kind = "" if (self.value, self.network) == ("token", "separate") else f" {self.value}/{self.network}"
        return f"DRO-V tau={self.tau:g} lr={self.lr:g} value_lr={self.value_lr:g}{kind}"


@dataclass(frozen=True)
class Bench:
    """What all runs of one model share."""

    model: Path
    rows: list[dict[str, Any]]
    prompts: Prompts
    scorer: Scorer = field(compare=False)
    judge: Judge = field(compare=False)


@cache
def open_bench(folder: Path, size: Size) -> Bench:
    """Made in the first process that asks, read from `folder` by the others."""
    prompts = split_prompts(size.select, size.evaluate)
    scorer = Scorer(split_sentences(read_sentences()).feedback)
    model = make_base(folder / "sft", prompts=prompts, steps=size.sft_steps, layers=size.layers)
    rows = make_rows(folder / "rows.jsonl", model, scorer, prompts.train, size.rows)
    return Bench(model, rows, prompts, scorer, Judge())


def load_policy(model: Path) -> Any:
    """The policy in a folder."""
    from valence.policies.loading import load_language_policy

    return load_language_policy(str(model), max_new_tokens=NEW_TOKENS)


def run_setting(setting: Setting, size: Size, folder: Path) -> Row:
    """Figures of the best checkpoint on the evaluation prompts, with its completions."""
    began, bench = time.perf_counter(), open_bench(folder, size)
    sft = load_policy(bench.model)
    if setting.name == "sft":
        return _evaluate(sft, sft, bench, setting, base=None) | {"checkpoints": [], "seconds": 0.0}
    base = _judged(sft, bench, seed=500)
    best, checkpoints = sft, []
    for step, policy, value in _train(setting, size, bench):
        judged = _judged(policy, bench, seed=600 + setting.seed)
        win = 100 * statistics.fmean(bench.judge.verdicts(judged, base))
        checkpoints.append({"step": step, "win": win, "value": value})
        if win >= max(one["win"] for one in checkpoints):
            best = policy
    seconds = time.perf_counter() - began
    base_row = cached(folder, run_setting, Setting("sft", setting.seed), size, folder)
    row = _evaluate(best, sft, bench, setting, base=base_row)
    chosen = max(checkpoints, key=lambda one: (one["win"], one["step"]))
    return row | {
        "value": checkpoints[-1]["value"], "checkpoints": checkpoints, "seconds": seconds,
        "best_step": chosen["step"], "select": chosen["win"],
    }  # fmt: skip


def _train(setting: Setting, size: Size, bench: Bench) -> Iterator[tuple[int, Any, float | None]]:
    """(step, policy, mean V over the leg's last half) at each checkpoint; KTO has no V.

    It is one run of `valence.align` in legs, each of which resumes the last.
    """
    from valence import align
    from valence.training.tracking import read_metrics

    leg = size.steps // size.checkpoints
    options = SILENT | {
        "batch_size": BATCH, "optimizer": "adafactor", "warmup_steps": size.steps // 10, "seed": setting.seed,
        "eval_samples": 8, "eval_fraction": 0.0, "save_every": 10**6, "max_new_tokens": NEW_TOKENS,
        "dtype": fast_dtype(), "separator": "",
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as name:
        out = Path(name)
        feedback = write_feedback(
            out / "feedback.jsonl", bench.rows, method=setting.name, batch_size=BATCH, seed=setting.seed
        )
        for step in range(leg, size.steps + 1, leg):
            legs: dict[str, Any] = {"resume": step > leg, "max_steps": step}
            result = align(
                feedback, model=bench.model, out=out / "run", **(options | legs | setting.options())
            )  # fmt: skip
            values = [row["value"] for row in read_metrics(result.out / "metrics.jsonl") if "value" in row]
            yield step, load_policy(result.model), statistics.fmean(values[-(leg + 1) // 2 :]) if values else None


def _judged(policy: Any, bench: Bench, *, seed: int) -> list[float]:
    """The judge's log-odds of one sample for each of the prompts to choose by."""
    texts, _ = _sample(policy, bench.prompts.select, seed)
    return bench.judge(bench.prompts.select, texts)


def _sample(policy: Any, prompts: Sequence[str], seed: int) -> tuple[list[str], Any]:
    from valence.data.collate import Encoder
    from valence.evaluation.language import sample_texts

    encoder = Encoder(policy.tokenizer, encoder_decoder=True)
    return sample_texts(policy, [encoder.prompt(prompt) for prompt in prompts], seed=seed)


def _evaluate(policy: Any, sft: Any, bench: Bench, setting: Setting, *, base: Mapping[str, Any] | None) -> Row:
    """Figures on the evaluation prompts, with the win rate over the completions of `base` where there is one."""
    import torch

    from valence.evaluation import language as measures
    from valence.training.reference import FrozenCopy

    prompts = bench.prompts.evaluate
    texts, chunks = _sample(policy, prompts, 1000 + 10 * setting.seed + (base is not None))
    judged = bench.judge(prompts, texts)
    few = chunks[: max(1, KL_SAMPLES // measures.CHUNK)]
    row: Row = {
        "setting": asdict(setting), "reward": statistics.fmean(standard(bench, bench.scorer(prompts, texts))),
        "judge": 100 * float(torch.tensor(judged).sigmoid().mean()),
        "kl_policy_ref": measures.sampled_kl(policy, FrozenCopy(sft), few, "policy_kl"),
        "distinct_2": measures.distinct_n(texts), "words": measures.mean_words(texts), "texts": texts,
        "judged": judged,
    }  # fmt: skip
    return row if base is None else row | side_by_side(row, base)


def standard(bench: Bench, scores: Sequence[float]) -> list[float]:
    """Rewards as DRO sees them: mean 0 and variance 1 over the training rows."""
    known = [row["score"] for row in bench.rows]
    mean, deviation = statistics.fmean(known), statistics.pstdev(known)
    return [(score - mean) / deviation for score in scores]


def side_by_side(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """The first run's win rate over the second on the same prompts, in percent, over all and in each fold."""
    verdicts = Judge.verdicts(first["judged"], second["judged"])
    lengths = [(len(a.split()), len(b.split())) for a, b in zip(first["texts"], second["texts"], strict=True)]
    found = win_rate(verdicts, lengths)
    controlled = found.length_controlled
    return {
        "win": 100 * found.rate, "win_same_length": None if controlled is None else 100 * controlled,
        "folds": [100 * statistics.fmean(verdicts[fold::FOLDS]) for fold in range(FOLDS)],
    }  # fmt: skip
