"""The online job on images: a pipeline, prompts and a reward in, a pipeline with better images out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from valence.data.prepare import log_problems
from valence.data.records import Problem, Record
from valence.errors import UserError
from valence.evaluation.images import ImageEvaluation
from valence.feedback.running import RunningStandard
from valence.policies.denoiser import Denoiser
from valence.policies.image_pipelines import load_denoiser
from valence.policies.loading import carried
from valence.policies.sampler_settings import SMALL, SamplerSettings
from valence.rewards.digits import WORDS, digit_named
from valence.rewards.image_loading import image_judge, load_image_reward
from valence.rewards.images import DEFAULT_REWARD, JUDGE
from valence.rewards.judge import SelfPlay
from valence.runs.improve import Adapter, check_samples, own_judges, run_improvement
from valence.runs.language import SMALL_NETWORK, device_of
from valence.runs.methods import IMPROVE_IMAGES
from valence.runs.options import ImageJudgeOptions, RunOptions, TrainOptions
from valence.runs.run import Log, RunResult, begin, claim
from valence.runs.settings import NoOptions, RunConfig, configure, settings_of, to_words
from valence.sources.images import ImageModality, image_prompts, read_prompts
from valence.sources.prompts import EncodedPrompt
from valence.training.reference import AdaptersOff, FrozenCopy

DIGIT_PROMPTS = tuple(f"a handwritten digit {word}" for word in WORDS)
"""The prompts that small-digits was trained on."""
LR, LR_SMALL = 3e-4, 1e-3
"""Default learning rates of a network and of a small one."""


@dataclass(frozen=True)
class ImagesConfig(RunConfig):
    """Improve an image pipeline (consistency or diffusion) on prompts: draw from it, ask a reward, learn, repeat."""

    command: ClassVar[str] = "improve-images"
    required: ClassVar[tuple[str, ...]] = ("pipeline", "out")
    usage: ClassVar[str] = "valence improve-images --pipeline P --prompts FILE --reward R --out DIR"

    pipeline: str = ""
    """A folder that diffusers can load, a hub id, or small-digits for the pipeline that Valence carries."""
    prompts: str = ""
    """File of prompts, one a line, or rows with "prompt"; small-digits has ten of its own."""
    out: str = ""
    """Folder to write into."""
    reward: str = "default"
    """default (small-digits: file size and a classifier), jpeg-small, jpeg-large, digit, classifier:FOLDER,
    aesthetic:FOLDER, sum:W*A,W*B, pairwise:file.py:function, module:function or file.py:function."""
    gold: str = "auto"
    """Another reward, measured and never learned from: auto (digit-judge for small-digits), none, or a name."""
    method: str = "rebel"
    """The method. Its options: valence improve-images --method NAME --help."""
    preset: str | None = None
    """pmpo: ar, a or r. rebel and ppo: paper, the REBEL paper's settings for images."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, …"""
    options: Any = field(default_factory=NoOptions)
    judging: ImageJudgeOptions = field(default_factory=ImageJudgeOptions)
    network: SamplerSettings = field(default_factory=SamplerSettings)
    train: TrainOptions = field(default_factory=lambda: TrainOptions(batch_size=8, epochs=20.0, warmup_steps=0))
    run: RunOptions = field(default_factory=lambda: RunOptions(eval_every=10, save_every=10))


def improve_images(
    *, pipeline: str | Path, out: str | Path, prompts: str | Path | Sequence[str] = "", reward: Any = "default",
    gold: Any = "auto", quiet: bool = False, **options: Any,
) -> RunResult:  # fmt: skip
    """Improve an image pipeline from a reward of its own images.

    Args:
        pipeline: a folder that diffusers can load, a hub id, or "small-digits".
        out: a folder to write into.
        prompts: a file, or the prompts themselves; small-digits has ten of its own.
        reward: a function `(images, prompts, metadata) -> list[float | None]`, or a name as on the command line.
        gold: another one, which is only measured; None or "none" for none.
        quiet: print nothing.
        options: any option of the command line: method, eta, num_samples, log_prob_scale, …
    Raises:
        UserError: bad input, in one line that says what, where and what to do.
    """
    given = None if isinstance(prompts, str | Path) else [Record("prompt", prompt) for prompt in prompts]
    own, names = own_judges(reward, "none" if gold is None else gold)
    values = {"pipeline": pipeline, "out": out} | names | options | ({"prompts": prompts} if given is None else {})
    config = configure(ImagesConfig, *to_words(ImagesConfig, values))
    log: Log = (lambda line: None) if quiet else print
    timeout = config.judging.reward_timeout
    made = {key: image_judge(judge, name=names[key], timeout=timeout) for key, judge in own.items()}
    return run_image_improvement(config, records=given, **made, log=log, show=not quiet)


def run_image_improvement(
    config: ImagesConfig, *, records: Sequence[Record] | None = None, reward: Any = None, gold: Any = None,
    log: Log = print, show: bool = True,
) -> RunResult:  # fmt: skip
    """Run what `config` describes; `records`, `reward` and `gold` in place of the names that it holds."""
    check_samples(IMPROVE_IMAGES[config.method], config)
    settings, judging, train = settings_of(config), config.judging, config.train
    out = claim(Path(config.out), settings, resume=config.run.resume)
    if records is None:
        records, problems = _records(config)
        log_problems(problems, log)
    prompts = image_prompts(records, config.prompts)
    device = device_of(config.device)
    # A wrong name is reported before a large pipeline is fetched.
    names = judge_names(config, prompts)
    reward = reward or load_image_reward(names[0], device=device, timeout=judging.reward_timeout)
    if gold is None and names[1]:
        gold = load_image_reward(names[1], device=device, timeout=judging.reward_timeout, argument="gold")
    begin(config.run.threads, train.seed)
    policy = load_denoiser(config.pipeline, config.network, device=device)
    if cut := sum(policy.pipeline.too_long(str(row.prompt)) for row in prompts):
        log(f"{cut:,} prompts are longer than the text encoder reads: it sees their beginning")
    initial = AdaptersOff(policy) if policy.adapters else FrozenCopy(policy)
    small = sum(part.numel() for part in policy.network.parameters()) < SMALL_NETWORK
    # A pairwise judge's values are win rates, on a scale of their own.
    remembered = 0 if isinstance(reward, SelfPlay) else judging.statistics_size
    adapter = Adapter(
        policy=policy, initial_policy=initial, prompts=prompts, pool=prompts, modality=ImageModality(), judge=reward,
        gold=gold, lr=train.lr or (LR_SMALL if small else LR), contexts=train.batch_size, settings={},
        standard=RunningStandard(size=remembered, least=judging.statistics_least, clip=judging.advantage_clip),
        log_prob_scale=judging.scale(policy.dimensions),
        evaluation=lambda watch: ImageEvaluation(
            policy, initial, prompts, num_samples=config.run.eval_samples, seed=train.seed, out=out, judge=watch
        ),
        facts=_facts(config, policy, prompts),
        describe=lambda plan: (
            f"pipeline: {config.pipeline} on {policy.device}, {len(policy.steps)} steps of which "
            f"{sum(step.scale > 0 for step in policy.steps)} draw, D = {policy.dimensions:,}\nrun: {plan}\n"
            f"reward: {reward.name}; gold, only measured: {gold.name if gold else 'none'}"
        ),
    )  # fmt: skip
    return run_improvement(config, out, settings, adapter, log, show=show)


def _facts(config: ImagesConfig, policy: Denoiser, prompts: Sequence[EncodedPrompt]) -> dict[str, str]:
    """Facts about the pipeline, for report and card."""
    network = config.network
    return {
        "pipeline": config.pipeline, "prompts": config.prompts or f"{len(prompts)} given",
        "folder": carried(config.pipeline),
        "learned": "adapters" if policy.adapters else "the whole network", "a prompt": str(prompts[0].prompt),
        "sampled with": f"num_inference_steps={network.num_steps}, guidance_scale={network.guidance:g}",
    }  # fmt: skip


def judge_names(config: ImagesConfig, prompts: Sequence[EncodedPrompt]) -> tuple[str, str]:
    """(reward, gold) by name. The carried pipeline has defaults for both; its gold judge needs prompts that name a
    digit."""
    small = config.pipeline == SMALL
    if config.reward == "default" and not small:
        raise UserError(f"`reward` is missing: only {SMALL} has a default one")
    named = small and any(digit_named(str(row.prompt)) is not None for row in prompts)
    gold = {"auto": JUDGE if named else "", "none": ""}.get(config.gold, config.gold)
    return DEFAULT_REWARD if config.reward == "default" else config.reward, gold


def _records(config: ImagesConfig) -> tuple[Sequence[Record], Sequence[Problem]]:
    if config.prompts:
        return read_prompts(config.prompts)
    if config.pipeline != SMALL:
        raise UserError(f"`prompts` is missing: only {SMALL} has prompts of its own")
    return [Record("prompt", prompt) for prompt in DIGIT_PROMPTS], []
