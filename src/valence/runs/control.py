"""`valence control` and `valence.control`: an agent made from its settings, run, evaluated, saved."""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from valence.critics import QNetwork
from valence.data.replay import Replay
from valence.errors import UserError
from valence.evaluation.control import Evaluation, film
from valence.policies.actor import Actor
from valence.policies.categorical import CategoricalPolicy
from valence.policies.gaussian import GaussianPolicy
from valence.policies.runner import save_actor
from valence.runs.control_config import MIN_SCALE, AgentConfig, ControlConfig, control_config
from valence.runs.control_methods import make_objective, unbounded_reason
from valence.runs.progress import Progress
from valence.sources.control import ControlSettings, ControlSource
from valence.sources.environments import Crew, Environment, make_environment
from valence.training.checkpoint import PREFIX, REPLACED, checkpoints, load_checkpoint, save_checkpoint
from valence.training.learner import Learner
from valence.training.loop import Schedule, train
from valence.training.reference import FrozenCopy
from valence.training.tracking import open_trackers

MAX_GRAD_NORM = 40.0
DUAL_LR = 1e-2
REPLAY = 1_000_000
COLUMNS = (
    ("return", "eval/return", "{:.1f}"), ("training", "train_return", "{:.1f}"), ("Q", "q", "{:.1f}"),
    ("steps/s", "steps_per_second", "{:,.0f}"),
)  # fmt: skip


@dataclass(frozen=True)
class ControlResult:
    """What came of a run.

    Args:
        folder: where everything lies; `PolicyRunner.load(folder)` acts.
        curve: (environment steps, mean return of the evaluation) as it went; the last is the final policy.
        returns: the final evaluation's episodes.
        seconds: in the updates and the environment, of this process.
    """

    folder: Path
    curve: list[tuple[int, float]]
    returns: list[float]
    seconds: float


def make_policy(agent: AgentConfig, observation_size: int, action_size: int) -> Actor:
    if agent.policy == "gaussian":
        return GaussianPolicy(
            observation_size, action_size, agent.hidden, init_scale=agent.init_scale, min_scale=MIN_SCALE
        )
    return CategoricalPolicy(observation_size, action_size, agent.hidden, bins=agent.bins)


def make(config: ControlConfig, *, pictures: bool = False) -> Environment:
    """The environment of a run."""
    return make_environment(config.environment, repeat=config.agent.action_repeat, pictures=pictures)


class Agent:
    """The parts of a run, wired: `learner` improves `policy` on what `source` gives."""

    def __init__(self, config: ControlConfig) -> None:
        agent, trial = config.agent, config.trial
        torch.manual_seed(trial.seed)
        crew = Crew(lambda: make(config), trial.num_environments, trial.seed)
        self.environment = crew.environments[0]
        sizes = (self.environment.observation_size, self.environment.action_size)
        self.policy = make_policy(agent, *sizes)
        reference = FrozenCopy(self.policy, refresh_every=agent.refresh_every)
        objective, label = make_objective(config.improve, agent, sizes[1])
        settings = ControlSettings(
            batch_size=agent.batch_size, num_actions=agent.num_actions, steps_per_update=agent.steps_per_update,
            warmup_steps=trial.warmup_steps, critic_lr=agent.critic_lr, target_every=agent.target_every,
            action_repeat=agent.action_repeat,
        )  # fmt: skip
        replay = Replay(
            min(trial.steps, REPLAY), *sizes, num_environments=trial.num_environments, steps=agent.n_step,
            discount=agent.discount,
        )  # fmt: skip
        critic = QNetwork(*sizes, agent.hidden)
        self.source = ControlSource(crew, critic, reference, replay, settings, label=label, seed=trial.seed)
        optimizers: dict[str, torch.optim.Optimizer] = {
            "policy": torch.optim.Adam(self.policy.parameters(), lr=agent.lr, fused=True)
        }
        duals = objective.state()
        if duals is not None:
            optimizers["dual"] = torch.optim.Adam(duals.parameters(), lr=DUAL_LR)
        self.learner = Learner(self.policy, objective, reference, optimizers, max_grad_norm=MAX_GRAD_NORM)
        self.updates = max(1, int((trial.steps - trial.warmup_steps) / agent.steps_per_update))


def control(environment: str, *, quiet: bool = False, **options: Any) -> ControlResult:
    """Improve a control policy by acting in `environment`; `options` are the command line's.

    Raises:
        UserError: an environment or a value that cannot be.
    """
    return run_control(control_config(environment, **options), quiet=quiet)


def run_control(config: ControlConfig, *, quiet: bool = False) -> ControlResult:
    """The run: builds, resumes, trains, evaluates, writes `out`."""
    trial = config.trial
    torch.set_num_threads(trial.threads)
    if "DISPLAY" not in os.environ:
        # MuJoCo looks for a screen otherwise, and complains that there is none.
        os.environ.setdefault("MUJOCO_GL", "egl" if trial.video else "disable")
    if trial.video:
        _check_camera(config)
    out = Path(trial.out or f"runs/{config.environment.replace('/', '-').replace(':', '-')}")
    agent = Agent(config)
    start = _begin(out, config, agent)
    warning = unbounded_reason(agent.learner.objective, config)
    if warning and not quiet:
        print(f"warning: {warning}", file=sys.stderr)
    per_update = config.agent.steps_per_update
    evaluation = Evaluation(lambda: make(config), trial.eval_episodes)
    curve, updates = _kept_curve(out, start)
    progress = _Progress(agent, start, show=not quiet)

    def evaluate(step: int) -> dict[str, float]:
        returns[:] = evaluation.returns(agent.policy)
        mean = statistics.fmean(returns)
        if step in updates:
            # A run that was finished already.
            del curve[updates.index(step) :], updates[updates.index(step) :]
        curve.append((agent.source.env_steps, mean))
        updates.append(step)
        _write(out, config, curve, updates, returns)
        progress.latest["eval/return"] = mean
        return {"return": mean, "env_steps": float(agent.source.env_steps)}

    returns: list[float] = []
    schedule = Schedule(
        agent.updates, log_every=_updates(2000, per_update), eval_every=_updates(trial.eval_every, per_update),
        save_every=_updates(trial.save_every, per_update), track_every=_updates(1000, per_update),
    )  # fmt: skip
    trackers = open_trackers(trial.tracker, out, asdict(config), keep_until=start)
    try:
        outcome = train(
            agent.learner, agent.source, schedule, trackers=trackers, evaluate=evaluate,
            checkpoint_folder=out / "checkpoints", on_step=progress,
        )  # fmt: skip
        if trial.save_every:
            save_checkpoint(out / "checkpoints", agent.learner, agent.source, {})
    except FloatingPointError as error:
        raise UserError(str(error)) from error
    finally:
        progress.close()
        agent.source.crew.close()
        evaluation.close()
        for tracker in trackers:
            tracker.close()
    space = agent.environment
    save_actor(
        out / "policy", agent.policy, low=space.low, high=space.high, environment=config.environment,
        action_repeat=config.agent.action_repeat,
    )  # fmt: skip
    if trial.video:
        with contextlib.closing(make(config, pictures=True)) as environment:
            film(agent.policy, environment, out / "video.gif")
    return ControlResult(out, curve, returns, outcome.seconds)


def _updates(env_steps: int, per_update: float) -> int:
    """How many updates so many environment steps are; 0 stays 0."""
    return max(1, round(env_steps / per_update)) if env_steps else 0


def _begin(out: Path, config: ControlConfig, agent: Agent) -> int:
    """Make the folder, or load its checkpoint; returns the update to go on from."""
    about = _about(config)
    path = out / "control.json"
    if not config.trial.resume:
        if checkpoints(out / "checkpoints"):
            raise UserError(f"{out} holds a run already: give --resume to go on with it, or another --out")
        try:
            out.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
        except OSError as error:
            raise UserError(f"--out {out} cannot be written to: {error.strerror}") from error
        return 0
    if not path.is_file():
        raise UserError(f"--resume finds no run in {out}: leave it out to begin one")
    was = json.loads(path.read_text(encoding="utf-8"))
    changed = sorted(name for name in about if was.get(name, about[name]) != about[name])
    if changed:
        raise UserError(f"--resume keeps a run's settings, and {', '.join(changed)} changed: give another --out")
    found = checkpoints(out / "checkpoints")
    if found:
        done = int(found[-1].name.removeprefix(PREFIX).removesuffix(REPLACED))
        if done > agent.updates:
            raise UserError(f"--steps {config.trial.steps} is behind the checkpoint {found[-1]}: give more")
        load_checkpoint(found[-1], agent.learner, agent.source)
    return agent.learner.step


def _about(config: ControlConfig) -> dict[str, Any]:
    """What a resumed run must share with its beginning: everything but where it ends and what is watched."""
    free = {"out", "steps", "resume", "tracker", "video", "save_every"}
    flat = asdict(config.improve) | asdict(config.agent) | asdict(config.trial) | {"environment": config.environment}
    return json.loads(json.dumps({name: value for name, value in flat.items() if name not in free}))


def _kept_curve(out: Path, start: int) -> tuple[list[tuple[int, float]], list[int]]:
    """The curve of the run that is resumed, up to its checkpoint, and after which updates each point was taken."""
    path = out / "results.json"
    if not start or not path.is_file():
        return [], []
    kept = json.loads(path.read_text(encoding="utf-8"))
    pairs = zip(kept["curve"], kept["updates"], strict=True)
    points = [((step, value), update) for (step, value), update in pairs if update <= start]
    return [point for point, _ in points], [update for _, update in points]


def _write(
    out: Path, config: ControlConfig, curve: list[tuple[int, float]], updates: list[int], returns: list[float]
) -> None:
    result = {"curve": curve, "updates": updates, "returns": returns, "settings": asdict(config)}
    draft = out / "results.json.draft"
    draft.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    draft.replace(out / "results.json")


def _check_camera(config: ControlConfig) -> None:
    """Take a picture before the run, and not fail after it."""
    environment = make(config, pictures=True)
    try:
        environment.reset(0)
        shape = environment.render().shape
        if len(shape) != 3 or shape[2] != 3:
            raise ValueError(f"its pictures have the shape {shape}")
    except Exception as error:
        said, advice = " ".join(str(error).split()), "try MUJOCO_GL=egl, or leave it out"
        raise UserError(f"--video: {config.environment} cannot be rendered here ({said}); {advice}") from error
    finally:
        environment.close()


class _Progress(Progress):
    """Counts environment steps, and keeps the last evaluation on the line."""

    UNIT, COLUMNS = "update", COLUMNS

    def __init__(self, agent: Agent, start: int, *, show: bool) -> None:
        import time

        super().__init__(agent.updates, start=start, show=show)
        self.latest = self._latest
        self._agent, self._clock, self._began, self._from = agent, time.perf_counter, time.perf_counter(), None

    def __call__(self, step: int, figures: dict[str, float]) -> None:
        steps = self._agent.source.env_steps
        if self._from is None:
            self._from = steps
        speed = (steps - self._from) / max(self._clock() - self._began, 1e-9)
        super().__call__(step, figures | {"steps_per_second": speed})
