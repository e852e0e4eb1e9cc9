"""The online job on text: prompts and a reward in, a better language model out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import tyro

from valence.data.groups.split import split_records
from valence.data.prepare import length_lines
from valence.data.records import Record
from valence.errors import UserError
from valence.evaluation.samples import Evaluation
from valence.rewards.functions import as_judge
from valence.rewards.loading import load_reward
from valence.runs.data import load_rows
from valence.runs.improve import Adapter, check_samples, own_judges, run_improvement
from valence.runs.language import LanguageConfig, initial_reference, learning_rate, load_policy, make_encoder
from valence.runs.methods import IMPROVE
from valence.runs.options import GivenCompletions, JudgeOptions
from valence.runs.run import Log, RunResult, begin, claim
from valence.runs.settings import configure, settings_of, to_words
from valence.sources.text import TextModality, encode_prompts, merged
from valence.training.progress import Busy

MAX_NEW_TOKENS = 64
"""Longest sample where none is given."""


@dataclass(frozen=True)
class ImproveConfig(LanguageConfig):
    """Improve a language model on prompts: sample from it, ask a reward, learn, repeat."""

    command: ClassVar[str] = "improve"
    required: ClassVar[tuple[str, ...]] = ("prompts", "model", "out", "reward")
    usage: ClassVar[str] = "valence improve PROMPTS --model MODEL --reward R --out DIR"

    prompts: tyro.conf.Positional[tuple[str, ...]] = ()
    """Files of prompts; their other columns go to the reward."""
    reward: str = ""
    """number, exact, length, bleu, chrf, rouge, regex:EXPRESSION, a folder with a reward or preference model,
    judge:MODEL@URL, pairwise:file.py:function, module:function or file.py:function."""
    gold: str = ""
    """Another reward or judge, measured on held-out prompts and never learned from."""
    method: str = "rebel"
    """The method. Its options: valence improve --method NAME --help."""
    preset: str | None = None
    """pmpo: ar, a or r, with the paper's alpha and beta."""
    judging: JudgeOptions = field(default_factory=JudgeOptions)


def improve(
    prompts: str | Path | Sequence[str | Path], *, model: str | Path, out: str | Path, reward: Any, gold: Any = "",
    quiet: bool = False, **options: Any,
) -> RunResult:  # fmt: skip
    """Improve a language model on prompts, from a reward of its own completions.

    Args:
        prompts: one path or several; columns besides the prompt go to the reward.
        model: a folder, a hub id, or "small-lm".
        out: a folder to write into.
        reward: a function `(prompts, completions, **columns) -> list[float | None]`, a `SelfPlay` around a pairwise
            judge, or a name as on the command line.
        gold: another one, which is only measured.
        quiet: print nothing.
        options: any option of the command line: method, eta, num_samples, kl_weight, …
    Raises:
        UserError: bad input, in one line that says what, where and what to do.
    """
    own, names = own_judges(reward, gold or "")
    values = {"prompts": prompts, "model": model, "out": out} | names | options
    config = configure(ImproveConfig, *to_words(ImproveConfig, values))
    made = {key: as_judge(judge, name=names[key], timeout=config.judging.reward_timeout) for key, judge in own.items()}
    return run_language_improvement(config, **made, log=(lambda line: None) if quiet else print, show=not quiet)


def run_language_improvement(
    config: ImproveConfig, *, reward: Any = None, gold: Any = None, log: Log = print, show: bool = True
) -> RunResult:
    """Run what `config` describes; `reward` and `gold` in place of the names that it holds."""
    check_samples(IMPROVE[config.method], config)
    begin(config.run.threads, config.train.seed)
    settings = settings_of(config)
    out = claim(Path(config.out), settings, resume=config.run.resume)
    records, heldout = _read(config, log, show=show)
    policy = load_policy(config.model, config.network, temperature=config.sampling.temperature)
    policy.max_new_tokens = config.sampling.max_new_tokens or MAX_NEW_TOKENS
    given = IMPROVE[config.method].part(GivenCompletions, config.options).num_given
    encoder = make_encoder(policy, config.data)
    with Busy("turning text into tokens", show=show):
        prompts, dropped, lengths = encode_prompts(
            encoder, records, longest_sample=policy.max_new_tokens, num_given=given
        )  # fmt: skip
        held, more, _ = encode_prompts(encoder, heldout, longest_sample=policy.max_new_tokens)
    for reason, count in (*dropped.items(), *more.items()):
        log(f"{count:,} prompts were dropped: {reason}")
    notes = encoder.notes((row.prompt, row.completions) for row in records)
    for line in [*length_lines(lengths, encoder.max_length, encoder.positions, cuts="drops"), *notes]:
        log(line)
    if not prompts:
        raise UserError(f"no prompt fits `max_length={config.data.max_length}`: raise it")
    load = partial(
        load_reward, device=str(policy.device), timeout=config.judging.reward_timeout, cache=out / "judge.sqlite",
        template=config.judging.judge_template,
    )  # fmt: skip
    reward = reward or load(config.reward, argument="reward")
    gold = gold or (load(config.gold, argument="gold") if config.gold else None)
    initial, pool = initial_reference(policy, config.network, config.reference), held or prompts
    adapter = Adapter(
        policy=policy, initial_policy=initial, prompts=prompts, pool=pool, modality=TextModality(policy.pad_token_id),
        judge=reward, gold=gold, lr=learning_rate(config.train, config.network, policy, high=False),
        contexts=len(prompts) if config.judging.full_batch else config.train.batch_size,
        micro_batch_tokens=config.network.micro_batch_tokens,
        settings={"unfinished_reward": config.judging.unfinished_reward, "num_given": given},
        evaluation=lambda watch: Evaluation(
            policy, initial, [row.ids for row in pool], num_samples=config.run.eval_samples,
            num_rows=config.run.eval_rows, seed=config.train.seed, judge=watch,
        ),
        facts={"model": config.model, "prompts": ", ".join(Path(path).name for path in config.prompts)},
        describe=lambda plan: f"model: {config.model} on {policy.device}\nrun: {plan} and {len(held):,} held out",
    )  # fmt: skip
    return run_improvement(config, out, settings, adapter, log, show=show)


def _read(config: ImproveConfig, log: Log, *, show: bool) -> tuple[list[Record], list[Record]]:
    """(prompts to learn on, prompts to evaluate on)."""
    rows = load_rows(config.prompts, config.data, log, show=show).records
    records = merged(rows)
    if len(records) < len(rows):
        log(f"{len(rows):,} rows hold {len(records):,} different prompts")
    if config.data.eval_feedback:
        return records, merged(load_rows(config.data.eval_feedback, config.data, log, show=show).records)
    return split_records(records, fraction=config.data.eval_fraction, seed=config.train.seed)
