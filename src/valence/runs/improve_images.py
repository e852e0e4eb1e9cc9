"""The job on images: a pipeline, prompts and a reward in, a pipeline with better images out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import yaml

from valence.data.formats import load_feedback
from valence.data.records import Record
from valence.errors import UserError
from valence.evaluation.overoptimization import audit, section
from valence.feedback import RunningStandard
from valence.objectives import DPO, PPOWithoutCritic, ScaledLogProb
from valence.policies.denoiser import Denoiser
from valence.policies.image_pipelines import SMALL, load_denoiser, small_pipeline_folder
from valence.protocols import Objective
from valence.rewards import RewardFunction
from valence.rewards.digits import WORDS, digit_named
from valence.rewards.image_loading import image_reward, load_image_reward
from valence.rewards.images import DEFAULT_REWARD, JUDGE
from valence.rewards.judge import SelfPlay
from valence.runs.config import flat
from valence.runs.data import Say, say_problems
from valence.runs.image_evaluation import ImageEvaluation
from valence.runs.images_config import (
    PAPER_CLIP,
    PAPER_GRAD_NORM,
    PAPER_LR,
    ImageMethodConfig,
    ImprovementConfig,
    check_complete,
    images_config,
)
from valence.runs.methods import describe
from valence.runs.online_methods import make_conversion, make_online_objective
from valence.runs.session import CONFIG_FILE, RunResult, claim, make_optimizers, resume, run_session
from valence.runs.watch import BEST, Watch
from valence.sources.images import ImageSource, image_prompt
from valence.sources.online import OnlineSettings
from valence.sources.prompts import EncodedPrompt
from valence.training.learner import Learner
from valence.training.loop import Schedule
from valence.training.reference import AdaptersOff, FrozenCopy

DIGIT_PROMPTS = tuple(f"a handwritten digit {word}" for word in WORDS)
"""What small-digits was trained on."""
LR, LR_SMALL, SMALL_NETWORK = 3e-4, 1e-3, 100_000_000


def improve_images(
    *, pipeline: str | Path, out: str | Path, prompts: str | Path | Sequence[str] = "", reward: Any = "default",
    gold: Any = "auto", quiet: bool = False, **options: Any,
) -> RunResult:  # fmt: skip
    """Improve an image pipeline from what a reward says of its own images.

    Args:
        pipeline: a folder that diffusers can load, a hub id, or "small-digits".
        out: a folder to write into.
        prompts: a file, or the prompts themselves; left out for small-digits: its ten.
        reward: a function `(images, prompts, metadata) -> list[float | None]`, or its name on the command line.
        gold: another one, which is only watched; None or "none" for none.
        quiet: print nothing.
        options: any field of the run, as on the command line: method, eta, num_samples, log_prob_scale, …
    Raises:
        UserError: bad input, in one line that says what, where and what to do.
    """
    given = None if isinstance(prompts, str | Path) else [Record("prompt", prompt) for prompt in prompts]
    gold = "none" if gold is None else gold
    names = [_name(each) for each in (reward, gold)]
    config = images_config(
        pipeline=str(pipeline), out=str(out), prompts="" if given is not None else str(prompts), reward=names[0],
        gold=names[1], **options,
    )  # fmt: skip
    check_complete(config)
    own = [_own(each, name, config.images) for each, name in zip((reward, gold), names, strict=True)]
    say: Say = (lambda line: None) if quiet else print
    return run_image_improvement(config, records=given, reward=own[0], gold=own[1], say=say, show=not quiet)


def _name(judge: Any) -> str:
    if not callable(judge):
        return str(judge)
    return str(getattr(judge, "name", getattr(judge, "__name__", type(judge).__name__)))


def _own(judge: Any, name: str, images: ImageMethodConfig) -> Any:
    """A caller's own function, made unable to break a run; None for a name, which is loaded later."""
    if not callable(judge) or isinstance(judge, SelfPlay | RewardFunction):
        return judge if callable(judge) else None
    return image_reward(judge, name=name, timeout=images.reward_timeout)


def run_image_improvement(
    config: ImprovementConfig, *, records: Sequence[Record] | None = None, reward: Any = None, gold: Any = None,
    say: Say = print, show: bool = True,
) -> RunResult:  # fmt: skip
    """Run what `config` says; see `improve_images`."""
    if config.run.threads:
        torch.set_num_threads(config.run.threads)
    config = _settled(config)
    images = config.images
    settings = flat(replace(config, run=replace(config.run, resume=False)))
    out = claim(Path(config.out), settings, resume=config.run.resume)
    prompts = _prompts(config, records, say)
    device = config.network.device
    device = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    # A wrong name is told before a large pipeline is fetched.
    names = _judges(config, prompts)
    reward = reward or load_image_reward(names[0], device=device, timeout=images.reward_timeout)
    if gold is None and names[1]:
        gold = load_image_reward(names[1], device=device, timeout=images.reward_timeout, option="--gold")
    torch.manual_seed(config.train.seed)
    policy = load_denoiser(config.pipeline, config.network, device=device)
    _say_cut(policy, prompts, say)
    objective = make_image_objective(images, policy.dimensions)
    start = AdaptersOff(policy) if policy.adapters else FrozenCopy(policy)
    learner, source, schedule = _wire(config, policy, objective, start, prompts, reward)
    say(
        f"pipeline: {config.pipeline} on {policy.device}, {len(policy.steps)} steps of which "
        f"{sum(step.scale > 0 for step in policy.steps)} draw, D = {policy.dimensions:,}\nrun: {schedule.steps} "
        f"optimizer steps, {describe(objective)}, {images.num_samples} images of {config.train.batch_size} prompts at "
        f"a time, each learned from {images.epochs}×, lr {learner.base_lrs['policy']:g}, {len(prompts):,} prompts\n"
        f"reward: {reward.name}; gold, only watched: {gold.name if gold else 'none'}"
    )
    if config.run.resume:
        resume(out, learner, source, say)
    (out / CONFIG_FILE).write_text(yaml.safe_dump(settings, sort_keys=False))
    watch = Watch(policy, prompts, reward, gold, out, resumed_at=learner.step)
    evaluation = ImageEvaluation(
        policy, start, prompts, samples=config.run.eval_samples, seed=config.train.seed, out=out, judge=watch
    )
    facts = _facts(config, policy, prompts) | {
        "objective": describe(objective), "reward": reward.name, "gold": gold.name if gold else "none",
    }  # fmt: skip
    done = run_session(
        out, config.run, settings, images.method, facts, learner, source, schedule, evaluation, say, show=show,
        section=lambda: section(watch.looks) + evaluation.section(learner.step),
    )  # fmt: skip
    _warn(watch, reward, source, say)
    return done


def _facts(config: ImprovementConfig, policy: Denoiser, prompts: Sequence[EncodedPrompt]) -> dict[str, str]:
    """What report and card say of the pipeline."""
    network = config.network
    return {
        "pipeline": config.pipeline, "prompts": config.prompts or f"{len(prompts)} given",
        "folder": str(small_pipeline_folder()) if config.pipeline == SMALL else config.pipeline,
        "learned": "adapters" if policy.adapters else "the whole network", "a prompt": str(prompts[0].prompt),
        "sampled with": f"num_inference_steps={network.num_steps}, guidance_scale={network.guidance:g}",
    }  # fmt: skip


def _settled(config: ImprovementConfig) -> ImprovementConfig:
    """The paper's preset written out: its rates and clip where none is given."""
    images, options = config.images, config.train
    if images.preset != "paper":
        return config
    if images.method == "ppo":
        images = replace(images, clip=images.clip or PAPER_CLIP)
    norm = PAPER_GRAD_NORM if options.max_grad_norm == type(options).max_grad_norm else options.max_grad_norm
    train = replace(options, lr=options.lr or PAPER_LR[images.method], max_grad_norm=norm)
    return replace(config, images=images, train=train)


def _judges(config: ImprovementConfig, prompts: Sequence[EncodedPrompt]) -> tuple[str, str]:
    """(reward, gold) by name; the carried pipeline has both, another has neither. Where no prompt names a digit, its
    judge has nothing to say."""
    small, images = config.pipeline == SMALL, config.images
    if images.reward == "default" and not small:
        raise UserError(f"--reward is missing: only {SMALL} has a default one")
    named = small and any(digit_named(str(row.prompt)) is not None for row in prompts)
    gold = {"auto": JUDGE if named else "", "none": ""}.get(images.gold, images.gold)
    return DEFAULT_REWARD if images.reward == "default" else images.reward, gold


def _prompts(config: ImprovementConfig, records: Sequence[Record] | None, say: Say) -> list[EncodedPrompt]:
    if records is None:
        path = Path(config.prompts)
        if not config.prompts:
            if config.pipeline != SMALL:
                raise UserError(f"--prompts is missing: only {SMALL} has prompts of its own")
            records = [Record("prompt", prompt) for prompt in DIGIT_PROMPTS]
        elif path.suffix == ".txt":
            try:
                lines = path.read_text(encoding="utf-8").splitlines()
            except (OSError, UnicodeDecodeError) as error:
                raise UserError(f"--prompts {path} cannot be read: {error}") from error
            records = [Record("prompt", line.strip()) for line in lines if line.strip()]
        else:
            loaded = load_feedback([config.prompts])
            say_problems(loaded.problems, say)
            records = loaded.records
    if not records:
        raise UserError(f"--prompts {config.prompts} has no prompt: give one a line")
    if bad := next((record.prompt for record in records if not isinstance(record.prompt, str)), None):
        raise UserError(
            f"--prompts {config.prompts}: an image's prompt must be plain text, and one is {str(bad)[:80]!r}"
        )
    return [image_prompt(str(record.prompt), dict(record.columns)) for record in records]


def _say_cut(policy: Denoiser, prompts: Sequence[EncodedPrompt], say: Say) -> None:
    too_long = getattr(policy.read, "too_long", lambda prompt: False)
    if cut := sum(too_long(str(row.prompt)) for row in prompts):
        say(f"prompts longer than the text encoder reads, which sees their beginning: {cut:,}")


def make_image_objective(images: ImageMethodConfig, dimensions: int) -> Objective:
    """The objective of a method on images, at its log-prob scale."""
    if images.method == "ppo":
        objective: Any = PPOWithoutCritic(clip=images.clip or 0.01)
    elif images.method == "dpo":
        objective = DPO(beta=float(images.beta or 0.05))
    else:
        objective = make_online_objective(images.online())
    scale = images.scale(dimensions)
    return objective if scale == 1 else ScaledLogProb(objective=objective, log_prob_scale=scale)


def _wire(
    config: ImprovementConfig, policy: Denoiser, objective: Objective, start: Any, prompts: Sequence[EncodedPrompt],
    reward: Any,
) -> tuple[Learner, ImageSource, Schedule]:  # fmt: skip
    images, options = config.images, config.train
    moving, contexts = images.method == "pmpo", options.batch_size
    per_batch = images.epochs * math.ceil(contexts / (images.minibatch_size or contexts))
    batches = max(1, math.ceil(options.epochs * len(prompts) / contexts))
    # Whole batches: a batch is learned from to its end, and its reference stays while it is.
    steps = per_batch * math.ceil((options.max_steps or batches * per_batch) / per_batch)
    every = per_batch * math.ceil(images.refresh_every / per_batch)
    reference = FrozenCopy(policy, refresh_every=every) if moving else start
    compared = isinstance(reward, SelfPlay)
    # A pairwise judge's values are win rates, of a scale of their own.
    standard = RunningStandard(
        size=0 if compared else images.statistics_size, least=images.statistics_least, clip=images.advantage_clip
    )
    source = ImageSource(
        prompts, reward,
        OnlineSettings(
            batch_size=contexts, num_samples=images.num_samples, kl_weight=images.kl_weight, from_reference=moving
        ),
        standard=standard, start=start, reference=reference, seed=options.seed, device=policy.device,
        convert=make_conversion(images.online(), compared=compared),
    )  # fmt: skip
    small = sum(part.numel() for part in policy.network.parameters()) < SMALL_NETWORK
    optimizers = make_optimizers(options, policy, None, options.lr or (LR_SMALL if small else LR))
    learner = Learner(
        policy, objective, reference, optimizers, warmup_steps=options.warmup_steps or 0,
        total_steps=steps if options.lr_schedule == "linear" else None, max_grad_norm=options.max_grad_norm,
        micro_batch_size=options.micro_batch_size,
    )  # fmt: skip
    schedule = Schedule(
        steps, log_every=config.run.log_every, eval_every=config.run.eval_every, save_every=config.run.save_every,
        kl_budget=config.run.kl_budget, epochs=images.epochs, minibatch_size=images.minibatch_size,
        batch_steps=per_batch,
    )  # fmt: skip
    return learner, source, schedule


def _warn(watch: Watch, reward: Any, source: ImageSource, say: Say) -> None:
    found = audit(watch.looks)
    if found is not None:
        say(("warning: " if found.parted else "") + found.sentence())
        if found.best.step != found.last.step:
            say(f"the best policy by gold is in {watch.out / BEST}")
    for why, rows in reward.failures.items():
        say(f"warning: the reward had no number for {rows:,} images: {why}")
    if source.even:
        say(
            f"warning: in {source.even:,} of {source.batches:,} batches the reward told no two images of a prompt apart"
        )
