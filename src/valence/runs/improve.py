"""The online job: prompts and a judge in, a better language model out."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import yaml
from jinja2 import TemplateError

from valence.critics import TokenValue
from valence.data.collate import Encoder
from valence.data.formats import load_feedback
from valence.data.records import Record
from valence.errors import UserError
from valence.evaluation.overoptimization import audit, section
from valence.policies.language import LanguagePolicy
from valence.protocols import Objective
from valence.rewards import RewardFunction, load_reward
from valence.rewards.judge import SelfPlay
from valence.runs.config import flat, parse_columns
from valence.runs.data import Say, say_problems, split_records
from valence.runs.evaluation import Evaluation
from valence.runs.improve_config import ImproveConfig, OnlineConfig, check_complete, improve_config
from valence.runs.methods import describe
from valence.runs.online_methods import make_conversion, make_online_objective
from valence.runs.session import (
    CONFIG_FILE,
    RunResult,
    claim,
    learning_rate,
    load_policy,
    make_optimizers,
    resume,
    run_session,
    start_reference,
)
from valence.runs.watch import BEST, Watch
from valence.sources.online import OnlineSettings, OnlineSource
from valence.sources.prompts import EncodedPrompt
from valence.training.learner import Learner
from valence.training.loop import Schedule
from valence.training.reference import FrozenCopy


def improve(
    prompts: str | Path | Sequence[str | Path], *, model: str | Path, out: str | Path, reward: Any, gold: Any = "",
    quiet: bool = False, **options: Any,
) -> RunResult:  # fmt: skip
    """Improve a language model on prompts, from what a reward says of its own completions.

    Args:
        prompts: one path or several; columns besides the prompt go to the reward.
        model: a folder, a hub id, or "small-lm".
        out: a folder to write into.
        reward: a function `(prompts, completions, **columns) -> list[float | None]`, a `SelfPlay` around a pairwise
            judge, or its name on the command line.
        gold: another one, which is only watched.
        quiet: print nothing.
        options: any field of the run, as on the command line: method, eta, num_samples, kl_weight, …
    Raises:
        UserError: bad input, in one line that says what, where and what to do.
    """
    judges = (reward, gold or "")
    names = [getattr(judge, "__name__", "reward") if callable(judge) else str(judge) for judge in judges]
    config = improve_config(prompts=prompts, model=str(model), out=str(out), reward=names[0], gold=names[1], **options)
    check_complete(config)
    own = [_own_judge(judge, name, config) for judge, name in zip(judges, names, strict=True)]
    say: Say = (lambda line: None) if quiet else print
    return run_improvement(config, judge=own[0], gold=own[1], say=say, show=not quiet)


def _own_judge(judge: Any, name: str, config: ImproveConfig) -> Any:
    """A caller's own function, made unable to break a run; None for a name, which is loaded later."""
    if not callable(judge) or isinstance(judge, SelfPlay):
        return judge if callable(judge) else None
    return RewardFunction(judge, name=name, timeout=config.online.reward_timeout)


def run_improvement(
    config: ImproveConfig, *, judge: Any = None, gold: Any = None, say: Say = print, show: bool = True
) -> RunResult:
    """Run what `config` says; see `improve`."""
    if config.run.threads:
        torch.set_num_threads(config.run.threads)
    torch.manual_seed(config.train.seed)
    settings = flat(replace(config, run=replace(config.run, resume=False)))
    if config.network.reference_cache:
        raise UserError(
            "--reference-cache keeps what a reference says of rows, and fresh completions are new: leave it out"
        )
    out, online = claim(Path(config.out), settings, resume=config.run.resume), config.online
    records, heldout = _read(config, say)
    policy = load_policy(config.model, config.network)
    policy.max_new_tokens = config.network.max_new_tokens or 64
    train = _encode(config, policy, records, say, wanted=online.given)
    encoded = _encode(config, policy, heldout, say, wanted=0)
    if not train:
        raise UserError(f"no prompt fits --max-length {config.data.max_length}: raise it")
    judge = judge or _load_judge(online.reward, online, policy, out, "--reward")
    gold = gold or (_load_judge(online.gold, online, policy, out, "--gold") if online.gold else None)
    objective = make_online_objective(online)
    start = start_reference(policy, config.network)
    learner, source, schedule = _wire(config, policy, objective, start, train, judge)
    say(
        f"model: {config.model} on {policy.device}\nrun: {schedule.steps} optimizer steps, {describe(objective)}, "
        f"{online.num_samples} completions of {config.train.batch_size} prompts at a time, each learned from "
        f"{online.epochs}×, KL weight {online.gamma:g}, lr {learner.base_lrs['policy']:g}, {len(train):,} prompts and "
        f"{len(encoded):,} held out"
    )
    if config.run.resume:
        resume(out, learner, source, say)
    (out / CONFIG_FILE).write_text(yaml.safe_dump(settings, sort_keys=False))
    pool = encoded or train
    watch = Watch(policy, pool, judge, gold, out, resumed_at=learner.step)
    evaluation = Evaluation(
        policy, start, [row.ids for row in pool], config=config.run, seed=config.train.seed, judge=watch
    )
    facts = {
        "objective": describe(objective), "model": config.model, "reward": judge.name,
        "gold": "none" if gold is None else gold.name,
        "prompts": ", ".join(Path(path).name for path in config.prompts),
    }  # fmt: skip
    done = run_session(
        out, config.run, settings, online.method, facts, learner, source, schedule, evaluation, say, show=show,
        before_batch=_scheduled(online, schedule.batch_steps),
        section=lambda: section(watch.looks),
    )  # fmt: skip
    _warn(watch, judge, source, online, say)
    return done


def _load_judge(name: str, online: OnlineConfig, policy: LanguagePolicy, out: Path, option: str) -> Any:
    return load_reward(
        name, device=str(policy.device), timeout=online.reward_timeout, kept=out / "judge.sqlite",
        template=online.judge_template, option=option,
    )  # fmt: skip


def _scheduled(online: OnlineConfig, per_batch: int) -> Callable[[Learner], None] | None:
    """Gives each collected batch its eta. Another eta is another scale of the loss: Adam's memory of the last one's is
    dropped."""

    if len(online.etas) == 1:
        return None

    def change(learner: Learner) -> None:
        collected = learner.step // per_batch
        learner.objective = make_online_objective(online, collected)
        # Beside the batch before, not beside what the learner holds: a run that goes on holds the first batch's.
        if collected and learner.objective != make_online_objective(online, collected - 1):
            learner.optimizers["policy"].state.clear()

    return change


def _warn(watch: Watch, judge: Any, source: OnlineSource, online: OnlineConfig, say: Say) -> None:
    """What a person should know of the run before using its model."""
    found = audit(watch.looks)
    if found is not None:
        say(("warning: " if found.parted else "") + found.sentence())
        if found.best.step != found.last.step:
            say(f"the best policy by gold is in {watch.out / BEST}")
    for why, rows in judge.failures.items():
        say(f"warning: the reward had no number for {rows:,} completions: {why}")
    if source.even and online.num_samples > 1:
        say(
            f"warning: in {source.even:,} of {source.batches:,} batches the reward told no two completions of a prompt "
            "apart: there was nothing to learn from them"
        )
    if repeated := getattr(judge, "repeated", 0):
        say(f"warning: {repeated:,} calls of the reward failed as a whole and were made again row by row")


def _read(config: ImproveConfig, say: Say) -> tuple[list[Record], list[Record]]:
    """(prompts to learn on, prompts to look at)."""
    columns = parse_columns(config.data.columns)
    loaded = load_feedback(config.prompts, columns=columns, strict=config.data.strict)
    say_problems(loaded.problems, say)
    records = _merged(loaded.records, say)
    if config.data.eval_feedback:
        other = load_feedback(config.data.eval_feedback, columns=columns, strict=config.data.strict)
        say_problems(other.problems, say)
        return records, _merged(other.records, say)
    return split_records(records, fraction=config.data.eval_fraction, seed=config.train.seed)


def _merged(records: Sequence[Record], say: Say) -> list[Record]:
    """One row for each prompt and its columns, with the completions of all: a file of feedback repeats its prompts."""
    found: dict[Any, Record] = {}
    for record in records:
        name = (record.prompt, repr(sorted(record.columns.items())))
        known = found.get(name)
        found[name] = record if known is None else replace(known, completions=known.completions + record.completions)
    if len(found) < len(records):
        say(f"{len(records):,} rows hold {len(found):,} different prompts")
    return list(found.values())


def _encode(
    config: ImproveConfig, policy: LanguagePolicy, records: Sequence[Record], say: Say, *, wanted: int
) -> list[EncodedPrompt]:
    """Prompts as token ids, with as many completions of their own as are to be judged; a row that leaves no room, or
    that the model's template refuses, is left out, with a count."""
    positions = getattr(policy.core.config, "max_position_embeddings", None) or config.data.max_length
    longest = min(config.data.max_length, positions)
    encoder = Encoder(
        policy.tokenizer, encoder_decoder=policy.encoder_decoder, max_length=longest,
        separator=config.data.separator, end_token_ids=policy.end_token_ids,
    )  # fmt: skip
    rows, left_out = [], dict[str, int]()
    for record in records:
        if len(record.completions) < wanted:
            raise UserError(f"--given {wanted} takes completions from each row, and some rows have fewer")
        try:
            ids = encoder.prompt(record.prompt)
            given = tuple(encoder.completion(record.prompt, text) for text in record.completions[:wanted])
        except TemplateError as error:
            why = f"refused by the model's chat template ({error})"
            left_out[why] = left_out.get(why, 0) + 1
            continue
        room = longest - (0 if policy.encoder_decoder else len(ids))
        if len(ids) > longest or room < max([policy.max_new_tokens, *map(len, given)]):
            why = f"longer than {longest} tokens with its completion: raise --max-length"
            left_out[why] = left_out.get(why, 0) + 1
            continue
        rows.append(EncodedPrompt(ids, record.prompt, record.columns, given))
    for why, count in left_out.items():
        say(f"{count:,} prompts were left out, {why}")
    return rows


def _wire(
    config: ImproveConfig, policy: LanguagePolicy, objective: Objective, start: Any,
    prompts: Sequence[EncodedPrompt], judge: Any,
) -> tuple[Learner, OnlineSource, Schedule]:  # fmt: skip
    online, options = config.online, config.train
    moving = online.method == "pmpo"
    contexts = len(prompts) if online.whole else options.batch_size
    batches = max(1, math.ceil(options.epochs * len(prompts) / contexts))
    per_batch = online.epochs * math.ceil(contexts / (online.minibatch_size or contexts))
    # Whole batches: a batch is learned from to its end, and its reference stays while it is.
    steps = per_batch * math.ceil((options.max_steps or batches * per_batch) / per_batch)
    every = per_batch * math.ceil(online.refresh_every / per_batch)
    reference = FrozenCopy(policy, refresh_every=every) if moving else start
    source = OnlineSource(
        prompts, judge,
        OnlineSettings(
            batch_size=contexts, num_samples=online.num_samples, kl_weight=online.gamma,
            unfinished_reward=online.unfinished_reward, from_reference=moving, given=online.given,
        ),
        pad=policy.pad_token_id, start=start, reference=reference, seed=options.seed, device=policy.device,
        convert=make_conversion(online, compared=isinstance(judge, SelfPlay)),
    )  # fmt: skip
    lr = learning_rate(options, config.network, policy)
    critic = None
    if "value" in objective.needs:
        backbone = policy.frozen_copy()
        for part, original in zip(backbone.parameters(), policy.parameters(), strict=True):
            part.requires_grad_(original.requires_grad)
        critic = TokenValue(backbone.train())
    optimizers = make_optimizers(options, policy, critic, lr, eps=1e-8 / max(1.0, *online.etas))
    warmup = min(150, steps // 10) if options.warmup_steps is None else options.warmup_steps
    learner = Learner(
        policy, objective, reference, optimizers, critic=critic, warmup_steps=warmup,
        total_steps=steps if options.lr_schedule == "linear" else None, max_grad_norm=options.max_grad_norm,
        micro_batch_size=options.micro_batch_size, micro_batch_tokens=options.micro_batch_tokens,
    )  # fmt: skip
    schedule = Schedule(
        steps, log_every=config.run.log_every, eval_every=config.run.eval_every, save_every=config.run.save_every,
        kl_budget=config.run.kl_budget, epochs=online.epochs, minibatch_size=online.minibatch_size,
        batch_steps=per_batch,
    )  # fmt: skip
    return learner, source, schedule
