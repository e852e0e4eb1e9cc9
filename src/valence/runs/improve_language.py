"""The online job on text: prompts and a reward in, a better language model out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import tyro

from valence.data.collate import Encoder
from valence.data.groups.split import split_records
from valence.data.records import Record
from valence.errors import UserError
from valence.evaluation.samples import Evaluation
from valence.policies.language import LanguagePolicy
from valence.rewards.functions import as_judge, name_of
from valence.rewards.loading import load_reward
from valence.runs.data import load_rows
from valence.runs.improve import Adapter, check_samples, run_improvement
from valence.runs.language import LanguageConfig, initial_reference, learning_rate, load_policy, positions_of
from valence.runs.methods import IMPROVE
from valence.runs.options import GivenCompletions, JudgeOptions
from valence.runs.run import Log, RunResult, begin, claim, settings_of
from valence.runs.settings import configure, to_words
from valence.sources.text import TextModality, encode_prompts, merged

MAX_NEW_TOKENS = 64
"""Longest sample where none is given."""


@dataclass(frozen=True)
class ImproveConfig(LanguageConfig):
    """Improve a language model on prompts: sample from it, ask a reward, learn, repeat."""

    place: ClassVar[str] = "improve"
    paths: ClassVar[tuple[str, ...]] = ("prompts", "eval_feedback")
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
    judges: tuple[Any, Any] = (reward, gold or "")
    names = [str(judge) if isinstance(judge, str | Path) else name_of(judge) for judge in judges]
    values = {"prompts": prompts, "model": model, "out": out, "reward": names[0], "gold": names[1]} | options
    words, positional = to_words(ImproveConfig, values)
    config = configure(ImproveConfig, words, positional, prog="valence improve")
    own = [
        None if isinstance(judge, str | Path) else as_judge(judge, name=name, timeout=config.judging.reward_timeout)
        for judge, name in zip(judges, names, strict=True)
    ]
    log: Log = (lambda line: None) if quiet else print
    return run_language_improvement(config, judge=own[0], gold=own[1], log=log, show=not quiet)


def run_language_improvement(
    config: ImproveConfig, *, judge: Any = None, gold: Any = None, log: Log = print, show: bool = True
) -> RunResult:
    """Run what `config` describes; `judge` and `gold` in place of the names that it holds."""
    check_samples(IMPROVE[config.method], config)
    begin(config.run.threads, config.train.seed)
    settings = settings_of(config)
    out = claim(Path(config.out), settings, resume=config.run.resume)
    records, heldout = _read(config, log)
    policy = load_policy(config.model, config.network, temperature=config.sampling.temperature)
    policy.max_new_tokens = config.sampling.max_new_tokens or MAX_NEW_TOKENS
    given = IMPROVE[config.method].part(GivenCompletions, config.options).num_given
    longest = min(config.data.max_length, positions_of(policy, config.data.max_length))
    encoder = Encoder(
        policy.tokenizer, encoder_decoder=policy.encoder_decoder, max_length=longest,
        separator=config.data.separator, end_token_ids=policy.end_token_ids,
    )  # fmt: skip
    prompts, dropped = encode_prompts(encoder, records, longest_sample=policy.max_new_tokens, num_given=given)
    held, more = encode_prompts(encoder, heldout, longest_sample=policy.max_new_tokens)
    for reason, count in (*dropped.items(), *more.items()):
        log(f"{count:,} prompts were dropped: {reason}")
    if not prompts:
        raise UserError(f"no prompt fits `max_length={config.data.max_length}`: raise it")
    judge = judge or _load(config, config.reward, policy, out, "reward")
    gold = gold or (_load(config, config.gold, policy, out, "gold") if config.gold else None)
    initial, pool = initial_reference(policy, config.network, config.reference), held or prompts
    adapter = Adapter(
        policy=policy, initial_policy=initial, prompts=prompts, pool=pool, modality=TextModality(policy.pad_token_id),
        judge=judge, gold=gold, lr=learning_rate(config.train, config.network, policy, high=False),
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


def _load(config: ImproveConfig, name: str, policy: LanguagePolicy, out: Path, argument: str) -> Any:
    return load_reward(
        name, device=str(policy.device), timeout=config.judging.reward_timeout, cache=out / "judge.sqlite",
        template=config.judging.judge_template, argument=argument,
    )  # fmt: skip


def _read(config: ImproveConfig, log: Log) -> tuple[list[Record], list[Record]]:
    """(prompts to learn on, prompts to evaluate on)."""
    rows = load_rows(config.prompts, config.data, log).records
    records = merged(rows)
    if len(records) < len(rows):
        log(f"{len(rows):,} rows hold {len(records):,} different prompts")
    if config.data.eval_feedback:
        return records, merged(load_rows(config.data.eval_feedback, config.data, log).records)
    return split_records(records, fraction=config.data.eval_fraction, seed=config.train.seed)
