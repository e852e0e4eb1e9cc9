"""The reward or preference model's job: comparisons or scores in, a judge for `valence improve` out."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
import yaml

from valence.data.formats import load_feedback
from valence.data.records import Record
from valence.errors import UserError
from valence.policies.loading import SMALL_LM, check_device, small_lm_path
from valence.rewards.preference_model import preference_score
from valence.rewards.reward_model import FIGURES, PREFERENCE
from valence.rewards.training import comparisons, fit, held_out_figures, load_classifier, reward_gap, scored
from valence.runs.config import check, check_numbers, parse_columns
from valence.runs.data import Say, say_problems, split_records

KINDS = ("auto", "pairs", "scores", PREFERENCE)


@dataclass(frozen=True)
class RewardModelConfig:
    """One reward or preference model."""

    feedback: tyro.conf.Positional[tuple[str, ...]] = ()
    """Files of pairs, rankings, scores or labels."""
    model: str = ""
    """The backbone: a folder that transformers can load, a hub id, or small-lm."""
    out: str = ""
    """Folder to write into."""
    kind: str = "auto"
    """pairs (Bradley-Terry), scores (regression) or preference (an embedding that can express cycles, for spo and
    compare); auto takes pairs where there are any, else scores."""
    embedding: int = 8
    """preference: numbers in a text's embedding, even; 2 hold one cycle."""
    columns: str | None = None
    """Names of your columns, such as prompt=question,completion=answer."""
    lr: float | None = None
    """Learning rate, falling to 0; 1e-4 below 100M parameters, else 1e-5."""
    batch_size: int = 32
    """Comparisons or scores a step."""
    epochs: float = 1.0
    """Passes over the rows, where max-steps is not given."""
    max_steps: int | None = None
    """Optimizer steps."""
    max_length: int = 512
    """Longest prompt plus completion, in tokens; what is longer is cut."""
    eval_fraction: float = 0.1
    """Share of the rows held out where none is marked as held out."""
    device: str = "auto"
    """auto takes a GPU where there is one."""
    seed: int = 0
    """Of shuffling and held-out rows; members of an ensemble differ by it."""
    threads: int = 0
    """CPU threads; 0 leaves torch's own choice."""

    def __post_init__(self) -> None:
        check(self.kind in KINDS, "kind", self.kind, f"one of {', '.join(KINDS)}")
        known = self.embedding == RewardModelConfig.embedding or self.kind == PREFERENCE
        check(known, "embedding", self.embedding, f"left out: --kind {self.kind} does not read it")
        check(self.embedding % 2 == 0, "embedding", self.embedding, "even")
        check_numbers(self, "lr", "epochs", above=0)
        check_numbers(self, "batch_size", "max_steps", least=1)
        check_numbers(self, "max_length", "embedding", least=2)
        check_numbers(self, "seed", "threads", least=0)
        check_numbers(self, "eval_fraction", least=0, below=1)


def train_reward_model(config: RewardModelConfig, *, say: Say = print) -> dict[str, Any]:
    """Train and write; returns the figures of the held-out rows.

    Raises:
        UserError: bad input, in one line.
    """
    missing = [name for name in ("feedback", "model", "out") if not getattr(config, name)]
    if missing:
        raise UserError(f"{', '.join(missing)} missing: valence reward-model PAIRS --model MODEL --out DIR")
    out = Path(config.out)
    if (out / "config.json").exists():
        raise UserError(f"{out} already holds a model: give another --out")
    if config.threads:
        torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)
    loaded = load_feedback(config.feedback, columns=parse_columns(config.columns))
    say_problems(loaded.problems, say)
    preference = config.kind == PREFERENCE
    model, tokenizer = _classifier(config, outputs=config.embedding if preference else 1)
    records, told = split_records(loaded.records, fraction=config.eval_fraction, seed=config.seed)
    kind, make = _kind(config.kind, records, tokenizer)
    train, heldout = _rows(kind, make, records, tokenizer, say), make(told, tokenizer)
    steps = config.max_steps or max(1, math.ceil(config.epochs * len(train) / config.batch_size))
    size = sum(part.numel() for part in model.parameters())
    lr = config.lr or (1e-4 if size < 100_000_000 else 1e-5)
    counts = f"{len(train):,} {'scores' if kind == 'scores' else 'comparisons'}, {len(heldout):,} held out"
    say(f"{'preference' if preference else 'reward'} model: {counts}, {steps} steps of {config.batch_size}, lr {lr:g}")
    gap = preference_score if preference else reward_gap

    def on_step(step: int, loss: float) -> None:
        if step % max(1, steps // 10) == 0:
            say(f"  step {step:6,} loss {loss:.4f}")

    fit(
        model, tokenizer, train, steps=steps, batch_size=config.batch_size, lr=lr, seed=config.seed,
        max_length=config.max_length, gap=gap, on_step=on_step,
    )  # fmt: skip
    figures: dict[str, Any] = {"kind": kind, "rows": len(train), "held_out": len(heldout), "steps": steps,
                               "max_length": config.max_length}  # fmt: skip
    if heldout:
        figures |= held_out_figures(model, tokenizer, heldout, max_length=config.max_length, gap=gap)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    (out / FIGURES).write_text(json.dumps(figures, indent=1) + "\n")
    (out / "config.yaml").write_text(yaml.safe_dump(asdict(config) | {"feedback": list(config.feedback)}))
    shown = ", ".join(f"{name} {value:.3f}" for name, value in figures.items() if isinstance(value, float))
    method = " --method spo" if preference else ""
    say(f"held out: {shown or 'nothing'}\nwritten: {out}; valence improve PROMPTS --reward {out}{method}")
    return figures


def _classifier(config: RewardModelConfig, *, outputs: int) -> tuple[Any, Any]:
    device = config.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    check_device(device)
    path = str(small_lm_path()) if config.model == SMALL_LM else config.model
    return load_classifier(path, device=device, outputs=outputs)


def _kind(asked: str, records: Sequence[Record], tokenizer: Any) -> tuple[str, Any]:
    """(what is learned, what makes its rows of records)."""
    if asked == "auto":
        asked = "pairs" if comparisons(records, tokenizer) else "scores"
    return asked, scored if asked == "scores" else comparisons


def _without_comparison(records: Sequence[Record], make: Any, tokenizer: Any) -> int:
    """Rows, labels apart, from which no comparison comes."""
    scores: dict[Any, set[float]] = {}
    for record in records:
        if record.shape == "score":
            scores.setdefault(record.prompt, set()).add(record.values[0])
    alone = sum(record.shape == "score" and len(scores[record.prompt]) < 2 for record in records)
    others = [record for record in records if record.shape in ("pair", "ranking")]
    return alone + sum(not make([record], tokenizer) for record in others)


def _rows(kind: str, make: Any, records: Sequence[Record], tokenizer: Any, say: Say) -> Any:
    """What is learned from; what of the file is not is counted.

    Raises:
        UserError: fewer than two rows.
    """
    rows = make(records, tokenizer)
    if kind == "scores":
        unused = len(records) - sum(bool(make([record], tokenizer)) for record in records)
        told = f"{unused:,} rows have no score or label and are not used"
    else:
        labels = sum(record.shape == "label" for record in records)
        if labels:
            say(f"{labels:,} labelled rows are not used beside comparisons: --kind scores takes them in their place")
        unused = _without_comparison(records, make, tokenizer)
        told = f"{unused:,} rows are not used: equal scores, or a score that is the only one of its prompt"
    if unused:
        say(told)
    if len(rows) < 2:
        raise UserError(
            f"{len(rows)} {'scores or labels' if kind == 'scores' else 'comparisons'} are too few to learn from"
        )
    return rows
