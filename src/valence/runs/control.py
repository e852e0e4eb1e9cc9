"""Control: a policy that acts. An agent is built from its options, run, evaluated and saved."""

from __future__ import annotations

import contextlib
import os
import statistics
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
import tyro

from valence.critics import QNetwork
from valence.data.replay import Replay
from valence.errors import UserError
from valence.evaluation.control import Evaluation, LearningCurve, check_camera, film
from valence.objectives.fitting import Acting
from valence.policies.actor import Actor
from valence.policies.categorical import CategoricalPolicy
from valence.policies.gaussian import GaussianPolicy
from valence.runs.methods import CONTROL
from valence.runs.options import (
    Count,
    Coupling,
    Discount,
    Options,
    Positive,
    RunOptions,
    Sizes,
    TwoOrMore,
    Whole,
    check,
)
from valence.runs.run import Job, Log, RunResult, begin, claim, make_schedule, resume, run_job
from valence.runs.settings import NoOptions, RunConfig, configure, settings_of, to_words
from valence.sources.control import ControlSettings, ControlSource
from valence.sources.environments import Crew, Environment, make_environment
from valence.training.learner import Learner
from valence.training.progress import Column
from valence.training.reference import FrozenCopy

MAX_GRAD_NORM = 40.0
DUAL_LR = 1e-2
REPLAY = 1_000_000
"""Transitions remembered, at most."""
MIN_SCALE = 1e-3
"""Gaussian: the standard deviation never falls below it."""
COLUMNS: tuple[Column, ...] = (
    ("return", "eval/return", "{:.1f}"), ("training", "train_return", "{:.1f}"), ("Q", "q", "{:.1f}"),
    ("steps/s", "env_steps_per_second", "{:,.0f}"),
)  # fmt: skip


@dataclass(frozen=True)
class AgentOptions(Options):
    """Networks and critic, and how fast they learn."""

    policy: Literal["gaussian", "categorical"] = "gaussian"
    """Gaussian, or each action dimension in bins."""
    bins: TwoOrMore = 11
    """Categorical: bins of each dimension."""
    hidden: Sizes = (256, 256)
    """Units of each hidden layer, of the policy and of each critic."""
    lr: Positive = 1e-3
    """Learning rate of the policy."""
    refresh_every: Count = 25
    """Updates between copies of the policy into the reference."""
    discount: Discount = 0.99
    """Gamma, per action."""
    n_step: Count = 3
    """Rewards in a critic's target before it bootstraps."""
    init_scale: float = 0.5
    """Gaussian: standard deviation at the start, in units of half the action range."""

    def __post_init__(self) -> None:
        super().__post_init__()
        gaussian = self.policy == "gaussian"
        name, default = ("bins", AgentOptions.bins) if gaussian else ("init_scale", AgentOptions.init_scale)
        unused = getattr(self, name)
        check(unused == default, name, unused, f"left out: `policy={self.policy}` does not use it")
        check(MIN_SCALE < self.init_scale <= 10, "init_scale", self.init_scale, f"above {MIN_SCALE} and at most 10")


@dataclass(frozen=True)
class TrialOptions(Options):
    """How long the run is, from which seed, and what is measured and saved."""

    steps: Count = 100_000
    """Environment steps, in all environments together."""
    seed: Whole = 0
    """Random seed; the same seed gives the same bits on one machine with as many threads."""
    num_environments: Count = 1
    """Environments side by side."""
    eval_every: Whole = 10_000
    """Environment steps between evaluations; 0 evaluates at the end only."""
    eval_episodes: Count = 5
    """Episodes of each evaluation, acting by the most likely action."""
    save_every: Whole = 10_000
    """Environment steps between checkpoints; 0 saves none."""
    resume: bool = False
    """Continue from the last checkpoint in the output folder."""
    tracker: Literal["tensorboard", "wandb", "trackio", "none"] = "tensorboard"
    """Where metrics also go; metrics.jsonl is always written."""
    video: bool = False
    """Write video.gif of an episode of the final policy."""
    threads: Count = 1
    """CPU threads; one is fastest for networks of this size."""


@dataclass(frozen=True)
class ControlConfig(RunConfig):
    """Improve a control policy by acting: a critic judges actions, the method learns from its verdicts."""

    command: ClassVar[str] = "control"
    required: ClassVar[tuple[str, ...]] = ("environment",)
    usage: ClassVar[str] = "valence control ENVIRONMENT --method M --out DIR"

    environment: tyro.conf.Positional[str] = ""
    """dm_control/DOMAIN-TASK-v0, or an id of gymnasium's."""
    out: str = ""
    """Folder to write into; runs/ENVIRONMENT by default."""
    method: str = "pmpo"
    """pmpo, mpo, dpo or rebel. Its options: valence control --method NAME --help."""
    preset: str | None = None
    """pmpo: ar, a or r, with the paper's alpha and beta."""
    options: Any = field(default_factory=NoOptions)
    agent: AgentOptions = field(default_factory=AgentOptions)
    critic: ControlSettings = field(default_factory=ControlSettings)
    trial: TrialOptions = field(default_factory=TrialOptions)


def control(environment: str, *, quiet: bool = False, **options: Any) -> RunResult:
    """Improve a control policy by acting in `environment`; `options` are the command line's.

    Returns:
        The result; `details` holds the learning curve, [environment steps, mean return], and the last returns.
    Raises:
        UserError: bad input, in one line that says what, where and what to do.
    """
    config = configure(ControlConfig, *to_words(ControlConfig, {"environment": environment} | options))
    return run_control(config, log=(lambda line: None) if quiet else print, show=not quiet)


def make(config: ControlConfig, *, pictures: bool = False) -> Environment:
    """The environment of a run."""
    return make_environment(config.environment, repeat=config.critic.action_repeat, pictures=pictures)


def make_objective(config: ControlConfig, action_size: int) -> tuple[Any, Any, list[str]]:
    """(objective, conversion of the critic's values or None, notes)."""
    row, agent = CONTROL[config.method], config.agent
    objective, conversion, notes = row.make(config.options), row.part(row.convert, config.options), []
    if row.fit is not None:
        acting = Acting(
            agent.policy == "gaussian", action_size, config.critic.num_actions, conversion,
            row.part(Coupling, config.options).coupled,
        )  # fmt: skip
        objective, notes = row.fit(objective, acting)
    return objective, conversion.converter(config.critic.num_actions), notes


def build(config: ControlConfig) -> tuple[Learner, ControlSource, Actor, list[str]]:
    """(learner, its source, its policy, notes)."""
    agent, trial = config.agent, config.trial
    crew = Crew(lambda: make(config), trial.num_environments, trial.seed)
    sizes = (crew.environments[0].observation_size, crew.environments[0].action_size)
    if agent.policy == "gaussian":
        policy = GaussianPolicy(*sizes, agent.hidden, init_scale=agent.init_scale, min_scale=MIN_SCALE)
    else:
        policy = CategoricalPolicy(*sizes, agent.hidden, bins=agent.bins)
    reference = FrozenCopy(policy, refresh_every=agent.refresh_every)
    objective, label, notes = make_objective(config, sizes[1])
    replay = Replay(
        min(trial.steps, REPLAY), *sizes, num_environments=trial.num_environments, steps=agent.n_step,
        discount=agent.discount,
    )  # fmt: skip
    critic = QNetwork(*sizes, agent.hidden)
    source = ControlSource(crew, critic, reference, replay, config.critic, label=label, seed=trial.seed)
    optimizers: dict[str, torch.optim.Optimizer] = {
        "policy": torch.optim.Adam(policy.parameters(), lr=agent.lr, fused=True)
    }
    duals = objective.state()
    if duals is not None:
        optimizers["dual"] = torch.optim.Adam(duals.parameters(), lr=DUAL_LR)
    learner = Learner(policy, objective, reference, optimizers, max_grad_norm=MAX_GRAD_NORM)
    return learner, source, policy, notes


def run_control(config: ControlConfig, *, log: Log = print, show: bool = True) -> RunResult:
    """Run what `config` describes."""
    trial, per_update = config.trial, config.critic.steps_per_update
    learned = trial.steps - config.critic.warmup_steps
    if learned <= 0:
        raise UserError(f"`steps` is {trial.steps}, and must be more than `warmup_steps`, {config.critic.warmup_steps}")
    if "DISPLAY" not in os.environ:
        # MuJoCo looks for a screen otherwise, and complains that there is none.
        os.environ.setdefault("MUJOCO_GL", "egl" if trial.video else "disable")
    if trial.video:
        check_camera(lambda: make(config, pictures=True), config.environment)
    begin(trial.threads, trial.seed)
    learner, source, policy, notes = build(config)
    settings = settings_of(config)
    name = config.environment.replace("/", "-").replace(":", "-")
    out = claim(Path(config.out or f"runs/{name}"), settings, resume=trial.resume)
    for note in notes:
        log(note)

    def updates(env_steps: int) -> int:
        """So many environment steps as updates; 0 stays 0."""
        return max(1, round(env_steps / per_update)) if env_steps else 0

    run = RunOptions(
        log_every=updates(2000), eval_every=updates(trial.eval_every), save_every=updates(trial.save_every),
        tracker=trial.tracker,
    )  # fmt: skip
    schedule = make_schedule(max(1, int(learned / per_update)), run, track_every=updates(1000))
    if trial.resume:
        resume(out, learner, source, schedule, log)
    evaluation = LearningCurve(
        Evaluation(lambda: make(config), trial.eval_episodes), policy, source, out / "results.json", settings,
        start=learner.step,
    )  # fmt: skip

    def save(folder: Path) -> None:
        space = source.crew.environments[0]
        policy.save(
            folder / "policy", low=space.low, high=space.high, environment=config.environment,
            action_repeat=config.critic.action_repeat,
        )  # fmt: skip

    job = Job(
        method=config.method, learner=learner, source=source, schedule=schedule, evaluation=evaluation, save=save,
        evaluates_first=False, show=show, unit="update", columns=COLUMNS,
    )  # fmt: skip
    try:
        result = run_job(out, job, run, settings, log)
    finally:
        source.crew.close()
        evaluation.close()
    if trial.video:
        with contextlib.closing(make(config, pictures=True)) as environment:
            film(policy, environment, out / "video.gif")
    result.details.update(evaluation.results)
    returns = evaluation.results["returns"]
    log(
        f"return {statistics.fmean(returns):.1f} (mean of {len(returns)} episodes, {min(returns):.1f} to "
        f"{max(returns):.1f})\nwritten: {out} (valence.PolicyRunner.load({str(out)!r}).act(observation) acts)"
    )
    return result
