"""One run of `valence reproduce dro`: align in legs, keep the best checkpoint by win rate over SFT, look at it."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from valence.evaluation.win_rate import win_rate
from valence.reproduce.dro_data import (
    NEW_TOKENS,
    Prompts,
    Scorer,
    Stranger,
    fast_dtype,
    make_base,
    make_rows,
    split_prompts,
    write_feedback,
)
from valence.reproduce.pool import kept_row, run_each
from valence.reproduce.thumbs_data import read_sentences, split_sentences

BATCH = 32
"""The paper's."""
FOLDS = 5
LR_FACTOR = 30
"""Our learning rates over the paper's: Adafactor's are relative to each weight's size, and we take far fewer steps."""
PAPER_LRS = (1e-5, 5e-5, 1e-4, 5e-4)
TAUS = (0.1, 1.0, 5.0)
LARGER = 3
"""Layers of Figure 2's model over Figure 1's."""
KL_SAMPLES = 256


@dataclass(frozen=True)
class Size:
    """How large the experiment is.

    Args:
        steps: optimizer steps, each of 32 rows; no row is seen twice.
        checkpoints: how many are looked at, evenly spaced.
        sft_steps, layers: of the SFT model.
        select, evaluate: prompts.
        seeds: of the comparison; the sweeps have a seed of their own.
        sweeps: whether there are any, and the comparison again with a larger model.
    """

    steps: int
    checkpoints: int
    sft_steps: int
    layers: int
    select: int
    evaluate: int
    seeds: tuple[int, ...]
    sweeps: bool

    @property
    def rows(self) -> int:
        return BATCH * self.steps

    @property
    def larger(self) -> Size:
        """The same comparison with the larger model (Figure 2)."""
        return replace(self, layers=LARGER * self.layers, sweeps=False)


SIZES = {
    "smoke": Size(2, 1, 10, 1, 20, 20, (1,), False),
    "quick": Size(40, 2, 120, 2, 128, 250, (1,), False),
    "full": Size(96, 3, 400, 2, 256, 1000, (1, 2), True),
}
SWEEP_SEED = 0


@dataclass(frozen=True)
class Setting:
    """One run: the method, its temperature, and the paper's learning rates, before `LR_FACTOR`.

    Args:
        method: dro, kto, or sft (none).
        value, network: DRO's `--value` and `--value-network`.
    """

    method: str
    tau: float = 1.0
    lr: float = 1e-4
    value_lr: float = 1e-4
    value: str = "token"
    network: str = "separate"
    seed: int = SWEEP_SEED

    def options(self) -> dict[str, Any]:
        """Fields of `valence.align`."""
        if self.method == "kto":
            return {"method": "kto", "beta": self.tau, "lr": LR_FACTOR * self.lr}
        return {
            "method": "dro", "tau": self.tau, "lr": LR_FACTOR * self.lr, "value_lr": LR_FACTOR * self.value_lr,
            "value": self.value, "value_network": self.network,
        }  # fmt: skip


def joint(setting: Setting, lr: float) -> Setting:
    """The same with this learning rate for policy and value."""
    return replace(setting, lr=lr, value_lr=lr)


@dataclass(frozen=True)
class Bench:
    """What every run of an experiment shares."""

    model: Path
    rows: list[dict[str, Any]]
    prompts: Prompts
    scorer: Scorer = field(compare=False)
    judge: Stranger = field(compare=False)


@cache
def open_bench(folder: str, size: Size) -> Bench:
    """Made in the first process that asks, read from `folder` by the others."""
    prompts = split_prompts(size.select, size.evaluate)
    scorer = Scorer(split_sentences(read_sentences()).feedback)
    model = make_base(Path(folder) / "sft", prompts=prompts, steps=size.sft_steps, layers=size.layers)
    rows = make_rows(Path(folder) / "rows.jsonl", model, scorer, prompts.train, size.rows)
    return Bench(model, rows, prompts, scorer, Stranger())


def run_setting(setting: Setting, size: Size, folder: str) -> dict[str, Any]:
    """One row of figures with its texts; from an earlier start of the same experiment where it is there."""
    of = [asdict(setting), asdict(replace(size, seeds=(), sweeps=False)), LR_FACTOR]
    return kept_row(Path(folder), f"{setting.method}-{setting.seed}", of, lambda: _run(setting, size, folder))


def _run(setting: Setting, size: Size, folder: str) -> dict[str, Any]:
    """Runs in a process of its own, on one thread."""
    import torch

    torch.set_num_threads(1)
    began, bench = time.perf_counter(), open_bench(folder, size)
    sft = load_policy(bench.model)
    if setting.method == "sft":
        return _look(sft, sft, bench, setting, base=None) | {"checkpoints": [], "seconds": 0.0}
    base = _judged(sft, bench, seed=500)
    best, looks = sft, []
    for step, policy, value in _train(setting, size, bench):
        judged = _judged(policy, bench, seed=600 + setting.seed)
        win = 100 * statistics.fmean(bench.judge.verdicts(judged, base))
        looks.append({"step": step, "win": win, "value": value})
        if win >= max(look["win"] for look in looks):
            best = policy
    trained = time.perf_counter() - began
    base_row = run_setting(Setting("sft", seed=setting.seed), size, folder)
    row = _look(best, sft, bench, setting, base=base_row)
    chosen = max(looks, key=lambda look: (look["win"], look["step"]))
    last = {"value": looks[-1]["value"], "checkpoints": looks, "seconds": trained}
    return row | last | {"best_step": chosen["step"], "select": chosen["win"]}


def load_policy(model: Path) -> Any:
    """The policy that lies in a folder."""
    from valence.policies.loading import load_language_policy

    return load_language_policy(str(model), max_new_tokens=NEW_TOKENS)


def _train(setting: Setting, size: Size, bench: Bench) -> Iterator[tuple[int, Any, float | None]]:
    """(step, policy, mean V of the leg's last half) at each checkpoint: one run of `valence.align`, in legs that each
    go on from the last. KTO has no V."""
    from valence.runs.align import align
    from valence.training.tracking import read_metrics

    leg = size.steps // size.checkpoints
    with tempfile.TemporaryDirectory() as name:
        out = Path(name)
        feedback = write_feedback(
            out / "feedback.jsonl", bench.rows, method=setting.method, batch_size=BATCH, seed=setting.seed
        )
        for step in range(leg, size.steps + 1, leg):
            done = align(
                feedback, model=bench.model, out=out / "run", quiet=True, resume=step > leg, max_steps=step,
                batch_size=BATCH, optimizer="adafactor", warmup_steps=size.steps // 10, seed=setting.seed,
                eval_every=0, eval_samples=8, eval_fraction=0.0, save_every=10**6, log_every=10**6, tracker="none",
                threads=1, max_new_tokens=NEW_TOKENS, dtype=fast_dtype(), **setting.options(),
            )  # fmt: skip
            known = [row["value"] for row in read_metrics(done.out / "metrics.jsonl") if "value" in row]
            yield step, load_policy(done.model), statistics.fmean(known[-(leg + 1) // 2 :]) if known else None


def _judged(policy: Any, bench: Bench, *, seed: int) -> list[float]:
    """The judge's log-odds of one sample for each of the prompts to choose by."""
    texts, _ = _draw(policy, bench.prompts.select, seed)
    return bench.judge(bench.prompts.select, texts)


def _draw(policy: Any, prompts: Sequence[str], seed: int) -> tuple[list[str], Any]:
    from valence.data.collate import Encoder
    from valence.evaluation.language import sample_texts

    encoder = Encoder(policy.tokenizer, encoder_decoder=True)
    return sample_texts(policy, [encoder.prompt(prompt) for prompt in prompts], seed=seed, pad=policy.pad_token_id)


def _look(
    policy: Any, sft: Any, bench: Bench, setting: Setting, *, base: Mapping[str, Any] | None
) -> dict[str, Any]:  # fmt: skip
    """Figures on the evaluation prompts; the win rate over `base`'s texts where there is one."""
    import torch

    from valence.evaluation import language as measures
    from valence.training.reference import FrozenCopy

    prompts = bench.prompts.evaluate
    texts, chunks = _draw(policy, prompts, 1000 + 10 * setting.seed + (base is not None))
    judged = bench.judge(prompts, texts)
    few = chunks[: max(1, KL_SAMPLES // measures.CHUNK)]
    row: dict[str, Any] = {
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
    """The first's win rate over the second on the same prompts, percent, and that of each fold."""
    verdicts = Stranger.verdicts(first["judged"], second["judged"])
    lengths = [(len(a.split()), len(b.split())) for a, b in zip(first["texts"], second["texts"], strict=True)]
    found = win_rate(verdicts, lengths)
    controlled = found.length_controlled
    return {
        "win": 100 * found.rate, "win_same_length": None if controlled is None else 100 * controlled,
        "folds": [100 * statistics.fmean(verdicts[fold::FOLDS]) for fold in range(FOLDS)],
    }  # fmt: skip


def run_all(settings: Sequence[Setting], size: Size, folder: Path, workers: int) -> list[dict[str, Any]]:
    """All settings, in processes side by side; each row is printed when it is there."""
    folder.mkdir(parents=True, exist_ok=True)
    open_bench(str(folder), size)
    return run_each(run_setting, settings, size, str(folder), workers=workers, say=_say)


def _say(row: dict[str, Any]) -> None:
    setting = Setting(**row["setting"])
    win = f"win {row['win']:5.1f}% (select {row['select']:5.1f}%, step {row['best_step']})" if "win" in row else ""
    figures = f"reward {row['reward']:+.2f}, KL(π‖ref) {row['kl_policy_ref']:6.2f}, distinct-2 {row['distinct_2']:.2f}"
    print(f"  {label(setting):58} seed {setting.seed} {win} {figures}, {row['seconds']:.0f} s", flush=True)


def label(setting: Setting) -> str:
    """A setting in words, its learning rates as the paper has them."""
    if setting.method == "sft":
        return "SFT"
    if setting.method == "kto":
        return f"KTO tau={setting.tau:g} lr={setting.lr:g}"
    kind = "" if (setting.value, setting.network) == ("token", "separate") else f" {setting.value}/{setting.network}"
    return f"DRO-V tau={setting.tau:g} lr={setting.lr:g} value_lr={setting.value_lr:g}{kind}"
