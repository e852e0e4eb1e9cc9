"""The job of a reward or preference model: comparisons or scores in, a judge for `valence improve` out."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import tyro

from valence.data.groups.split import split_records
from valence.data.prepare import length_lines
from valence.errors import UserError
from valence.policies.loading import carried, check_device
from valence.rewards.preference_model import preference_score
from valence.rewards.reward_model import FIGURES, PREFERENCE, PROMPTING
from valence.rewards.training import (
    check_learnable,
    comparisons,
    doubt,
    fit,
    held_out_figures,
    load_classifier,
    reward_gap,
    scored,
    text_lengths,
    unused_rows,
)
from valence.runs.data import load_rows
from valence.runs.language import SMALL_NETWORK, device_of, prompting_of
from valence.runs.options import (
    Count,
    Fraction,
    Options,
    Positive,
    PromptOptions,
    TwoOrMore,
    VerdictOptions,
    Whole,
    check,
)
from valence.runs.run import Log, begin, claim, write_settings
from valence.runs.settings import RunConfig, configure, settings_of, to_words
from valence.training.interrupt import NOTHING_SAVED, Interrupted, Signals
from valence.training.progress import Busy


@dataclass(frozen=True)
class RewardModelOptions(Options):
    """What is learned and how."""

    kind: Literal["auto", "pairs", "scores", "preference"] = "auto"
    """pairs (Bradley-Terry), scores (regression) or preference (an embedding that can express cycles); auto takes
    pairs where there are any, else scores."""
    embedding: TwoOrMore = 8
    """preference: numbers in a text's embedding, even; 2 hold one cycle."""
    lr: Positive | None = None
    """Learning rate, falling to 0; 1e-4 below 100M parameters, else 1e-5."""
    batch_size: Count = 32
    """Comparisons or scores in a step."""
    epochs: Positive = 1.0
    """Passes over the rows where max-steps is not given."""
    max_steps: Count | None = None
    """Optimizer steps."""
    max_length: TwoOrMore = 512
    """Longest prompt plus completion, in tokens; what is longer is truncated."""
    eval_fraction: Fraction = 0.1
    """Share of the rows that is held out where none is marked as held out."""
    device: str = "auto"
    """auto takes a GPU where there is one."""
    seed: Whole = 0
    """Random seed for shuffling and the held-out split; members of an ensemble differ by it."""
    threads: Whole = 0
    """CPU threads; 0 leaves the choice to torch."""

    def __post_init__(self) -> None:
        known = self.embedding == RewardModelOptions.embedding or self.kind == PREFERENCE
        check(known, "embedding", self.embedding, f"left out: `kind={self.kind}` does not use it")
        check(self.embedding % 2 == 0, "embedding", self.embedding, "even")
        super().__post_init__()


@dataclass(frozen=True)
class RewardModelConfig(RunConfig):
    """Train a judge for valence improve: a reward model from comparisons (Bradley-Terry) or scores, or a preference
    model, which can express cycles."""

    command: ClassVar[str] = "reward-model"
    required: ClassVar[tuple[str, ...]] = ("feedback", "model", "out")
    usage: ClassVar[str] = "valence reward-model PAIRS --model MODEL --out DIR"

    feedback: tyro.conf.Positional[tuple[str, ...]] = ()
    """Files of pairs, rankings, scores or labels."""
    model: str = ""
    """The backbone: a folder that transformers can load, a hub id, or small-lm."""
    out: str = ""
    """Folder to write into."""
    read: VerdictOptions = field(default_factory=VerdictOptions)
    prompting: PromptOptions = field(default_factory=PromptOptions)
    training: RewardModelOptions = field(default_factory=RewardModelOptions)


def reward_model(
    feedback: str | Path | Sequence[str | Path], *, model: str | Path, out: str | Path, quiet: bool = False,
    **options: Any,
) -> dict[str, Any]:  # fmt: skip
    """Train a reward or preference model; `options` are the command line's. Returns figures of the held-out rows.

    Raises:
        UserError: bad input, in one line.
    """
    config = configure(
        RewardModelConfig, *to_words(RewardModelConfig, {"feedback": feedback, "model": model, "out": out} | options)
    )
    return train_reward_model(config, log=(lambda line: None) if quiet else print, show=not quiet)


def train_reward_model(config: RewardModelConfig, *, log: Log = print, show: bool = True) -> dict[str, Any]:
    """Run what `config` describes."""
    options = config.training
    settings = settings_of(config)
    out = claim(Path(config.out), settings, can_resume=False)
    begin(options.threads, options.seed)
    loaded = load_rows(config.feedback, config.read, log, show=show)
    preference = options.kind == PREFERENCE
    device = device_of(options.device)
    check_device(device)
    model, tokenizer = load_classifier(
        carried(config.model), device=device, outputs=options.embedding if preference else 1
    )
    prompting = prompting_of(config.prompting)
    prompting.check(tokenizer)
    records, held = split_records(loaded.records, fraction=options.eval_fraction, seed=options.seed)
    kind = options.kind
    if kind == "auto":
        kind = "pairs" if comparisons(records, tokenizer, prompting) else "scores"
    make, what = (scored, "scores") if kind == "scores" else (comparisons, "comparisons")
    train, heldout = (make(part, tokenizer, prompting) for part in (records, held))
    for line in prompting.notes(tokenizer, ((row.prompt, row.completions) for row in records)):
        log(line)
    for line in unused_rows(kind, records, tokenizer):
        log(line)
    if len(train) < 2:
        raise UserError(f"{len(train)} {what}{' or labels' * (kind == 'scores')} are too few to learn from")
    for line in length_lines(text_lengths(train, tokenizer), options.max_length, cuts="cuts the beginning of"):
        log(line)
    check_learnable(train, records)
    steps = options.max_steps or max(1, math.ceil(options.epochs * len(train) / options.batch_size))
    size = sum(part.numel() for part in model.parameters())
    lr = options.lr or (1e-4 if size < SMALL_NETWORK else 1e-5)
    name, gap = ("preference", preference_score) if preference else ("reward", reward_gap)
    log(
        f"{name} model: {len(train):,} {what}, {len(heldout):,} held out, {steps} steps of {options.batch_size}, "
        f"lr {lr:g}"
    )

    def on_step(step: int, loss: float) -> None:
        if step % max(1, steps // 10) == 0:
            log(f"  step {step:6,} loss {loss:.4f}")

    try:
        with Signals():
            fit(
                model, tokenizer, train, steps=steps, batch_size=options.batch_size, lr=lr, seed=options.seed,
                max_length=options.max_length, gap=gap, on_step=on_step,
            )  # fmt: skip
    except Interrupted as error:
        raise Interrupted(error.number, NOTHING_SAVED) from None
    figures: dict[str, Any] = {
        "kind": kind, "rows": len(train), "held_out": len(heldout), "steps": steps, "max_length": options.max_length,
    }  # fmt: skip
    measured: dict[str, float] = {}
    if heldout:
        with Busy("evaluating held-out rows", show=show):
            measured = held_out_figures(model, tokenizer, heldout, max_length=options.max_length, gap=gap)
    figures |= measured
    unsure = doubt(measured, len(heldout))
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    (out / FIGURES).write_text(json.dumps(figures | {PROMPTING: asdict(prompting)}, indent=1) + "\n")
    write_settings(out, settings)
    shown = ", ".join(f"{name} {value:.3f}" for name, value in figures.items() if isinstance(value, float))
    method = " --method spo" if preference else ""
    if unsure:
        log(f"warning: the {name} model may be worthless: {unsure}")
    log(f"held out: {shown or 'nothing'}\nwritten: {out}; valence improve PROMPTS --reward {out}{method}")
    return figures
