"""Two models side by side: whose completions of the same prompts are better."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
import tyro

from valence.data.collate import Encoder
from valence.data.records import Record
from valence.errors import UserError
from valence.evaluation.language import complete_records
from valence.evaluation.report import write_comparison
from valence.evaluation.statistics import WinRate, win_rate
from valence.rewards.loading import load_reward
from valence.runs.data import load_rows
from valence.runs.language import device_of, load_policy, positions_of, prompting_of
from valence.runs.options import Count, ModelOptions, Options, Positive, PromptOptions, ReadOptions, TwoOrMore, Whole
from valence.runs.run import Log, begin, claim, write_settings
from valence.runs.settings import RunConfig, configure, settings_of, to_words
from valence.sources.prompts import EncodedPrompt, plain_prompt, verdicts
from valence.training.progress import Busy


@dataclass(frozen=True)
class ComparisonOptions(Options):
    """How the comparison is made."""

    judge_template: str = "helpful"
    """Question to a pairwise judge: helpful, summary, or a text with {prompt}, {first} and {second}."""
    max_prompts: Count = 200
    """Prompts, at most: a random part of the file."""
    max_new_tokens: Count = 64
    """Longest completion, in tokens."""
    max_length: TwoOrMore = 1024
    """Longest prompt, in tokens; longer ones are dropped and counted."""
    temperature: Positive = 1.0
    """Sampling temperature."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the models."""
    device: str = "auto"
    """auto takes a GPU where there is one."""
    seed: Whole = 0
    """Random seed for the choice of prompts and sampling."""
    threads: Whole = 0
    """CPU threads; 0 leaves the choice to torch."""


@dataclass(frozen=True)
class CompareConfig(RunConfig):
    """Whose completions of the same prompts are better: win rate with its interval, ties, lengths controlled."""

    command: ClassVar[str] = "compare"
    required: ClassVar[tuple[str, ...]] = ("models", "prompts", "judge", "out")
    usage: ClassVar[str] = "valence compare MODEL MODEL --prompts FILE --judge J --out DIR"

    models: tyro.conf.Positional[tuple[str, ...]] = ()
    """Two models: folders that transformers can load, hub ids, or small-lm."""
    prompts: str = ""
    """File of prompts; other columns go to the judge."""
    judge: str = ""
    """judge:MODEL@URL, or any reward of valence improve: the completion with the higher one is better."""
    out: str = ""
    """Folder to write into."""
    read: ReadOptions = field(default_factory=ReadOptions)
    prompting: PromptOptions = field(default_factory=PromptOptions)
    comparison: ComparisonOptions = field(default_factory=ComparisonOptions)


def compare(*models: str | Path, quiet: bool = False, **options: Any) -> WinRate:
    """Compare two models; `options` are the command line's: prompts, judge, out, …

    Raises:
        UserError: bad input, in one line; or no completion could be judged.
    """
    config = configure(CompareConfig, *to_words(CompareConfig, {"models": models} | options))
    return run_comparison(config, log=(lambda line: None) if quiet else print)


def run_comparison(config: CompareConfig, *, log: Log = print, show: bool = True) -> WinRate:
    """Sample from both, judge, and write results.json, samples.jsonl and compare.html.

    Raises:
        UserError: bad input, in one line; or no completion could be judged.
    """
    if len(config.models) != 2:
        raise UserError(f"{len(config.models)} models given: {config.usage}")
    options = config.comparison
    begin(options.threads, options.seed)
    out, settings = Path(config.out), settings_of(config)
    claim(out, settings, can_resume=False)
    judge = load_reward(
        config.judge, device=device_of(options.device), cache=out / "judge.sqlite", template=options.judge_template,
        argument="judge",
    )  # fmt: skip
    loaded = load_rows([config.prompts], config.read, log, show=show)
    order = torch.randperm(len(loaded.records), generator=torch.Generator().manual_seed(options.seed)).tolist()
    records = [loaded.records[place] for place in order[: options.max_prompts]]
    texts, fitting = _completions(config, records, log, show=show)
    rows = [EncodedPrompt([], records[place].prompt, records[place].columns) for place in sorted(fitting)]
    first, second = ([part[place] for place in sorted(fitting)] for part in texts)
    with Busy("asking the judge", show=show):
        judged = verdicts(judge, rows, first, second)
    known = [place for place, verdict in enumerate(judged) if verdict is not None]
    if not known:
        raise UserError(f"{config.judge} judged none of the {len(rows)} pairs")
    if len(known) < len(rows):
        log(f"{len(rows) - len(known):,} pairs had no clear verdict and were dropped")
    lengths = [(len(first[place].split()), len(second[place].split())) for place in known]
    found = win_rate([float(judged[place] or 0.0) for place in known], lengths)
    samples = [
        {"prompt": plain_prompt(rows[place]), "first": first[place], "second": second[place], "verdict": judged[place]}
        for place in known
    ]
    write_settings(out, settings)
    (out / "results.json").write_text(json.dumps({"config": settings, "result": asdict(found)}, indent=1) + "\n")
    (out / "samples.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in samples))
    write_comparison(out / "compare.html", *config.models, config.judge, found, samples)
    log(f"{found.sentence(*config.models)}\nwritten: {out}/compare.html, results.json, samples.jsonl")
    return found


def _completions(
    config: CompareConfig, records: list[Record], log: Log, *, show: bool
) -> tuple[list[list[str]], set[int]]:
    """(each model's completion of every prompt, the indices of the prompts that fit both models).

    Raises:
        UserError: no prompt is left.
    """
    options, texts, fitting = config.comparison, [], set(range(len(records)))
    for model in config.models:
        network = ModelOptions(device=options.device, dtype=options.dtype)
        policy = load_policy(model, network, temperature=options.temperature)
        policy.max_new_tokens = options.max_new_tokens
        positions = positions_of(policy, options.max_length)
        room = min(options.max_length, positions - (0 if policy.encoder_decoder else options.max_new_tokens))
        if room < 1:
            raise UserError(
                f"`max_new_tokens={options.max_new_tokens}` leaves {model} no room: it has {positions} positions"
            )
        encoder = Encoder(
            policy.tokenizer, prompting_of(config.prompting), encoder_decoder=policy.encoder_decoder,
            max_length=options.max_length,
        )  # fmt: skip
        for line in encoder.notes((row.prompt, row.completions) for row in records):
            log(f"{model}: {line}")
        with Busy(f"sampling from {model}", show=show):
            found, fits = complete_records(policy, records, encoder, room=room, seed=options.seed)
        texts.append(found)
        fitting &= fits
        log(f"{model}: {len(records)} completions")
    if len(fitting) < len(records):
        log(f"{len(records) - len(fitting):,} prompts were dropped: too long, or refused by a chat template")
    if not fitting:
        raise UserError(
            f"none of the {len(records):,} prompts can be given to both models: shorten them, or `max_new_tokens`"
        )
    return texts, fitting
