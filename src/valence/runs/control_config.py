"""The fields of a control run, in three small groups; each validated when made."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Annotated, Any, Literal

import tyro

from valence.runs.config import PRESET_ALPHA, check, check_numbers, is_number
from valence.training.tracking import TRACKERS

CONTROL_METHODS = ("pmpo", "mpo", "dpo", "rebel")
LABELS = ("halves", "best-worst", "mean")
TAKEN_BY = {
    "beta": ("pmpo", "dpo"), "eta": ("rebel",), "epsilon": ("mpo",), "epsilon_mean": ("mpo",),
    "epsilon_covariance": ("mpo",),
}  # fmt: skip
"""Which methods read a setting, where it is not PMPO alone."""
MIN_SCALE = 1e-3
"""Gaussian: the standard deviation never falls below it."""


@dataclass(frozen=True)
class ImproveConfig:
    """How the policy is improved on actions that the critic has judged. What is left out takes the method's default."""

    method: Literal["pmpo", "mpo", "dpo", "rebel"] = "pmpo"
    """What is minimised."""
    preset: Literal["ar", "a", "r"] | None = None
    """PMPO: accepted and rejected, accepted only, rejected only, with the paper's alpha and beta (0.5, 0, 2)."""
    labels: Literal["halves", "best-worst", "mean"] = "halves"
    """PMPO: accept the better half, the best alone (and reject the worst), or what reaches the mean."""
    alpha: float | None = None
    """PMPO: weight of accepted against rejected, 0 to 1; 0.5 where not given."""
    beta: str | None = None
    """PMPO: KL weight, a number or auto (the smallest bounded one; auto). DPO: its beta (1; Gaussians need more)."""
    covariance_beta: float | None = None
    """PMPO, Gaussian: KL weight of the covariance, which is learned apart from the mean; inf, the default, keeps it."""
    coupled: bool = False
    """PMPO, Gaussian: one objective for mean and covariance, as in the paper; the spread may vanish."""
    eta: float = 1.0
    """REBEL: step size, nats for each unit of value."""
    epsilon: float = 0.1
    """MPO: bound of the E-step, nats."""
    epsilon_mean: float = 0.02
    """MPO: bound on the mean's KL (categorical: on the whole KL), nats for each action dimension."""
    epsilon_covariance: float = 1e-5
    """MPO, Gaussian: bound on the covariance's KL, nats for each action dimension."""

    def __post_init__(self) -> None:
        check(self.method in CONTROL_METHODS, "method", self.method, f"one of {', '.join(CONTROL_METHODS)}")
        check(self.preset in (None, *PRESET_ALPHA), "preset", self.preset, f"one of {', '.join(PRESET_ALPHA)}")
        check(self.labels in LABELS, "labels", self.labels, f"one of {', '.join(LABELS)}")
        check(self.alpha is None or 0 <= self.alpha <= 1, "alpha", self.alpha, "between 0 and 1")
        check(self.preset is None or self.alpha is None, "alpha", self.alpha, "left out: --preset sets it")
        check(self.beta in (None, "auto") or is_number(self.beta), "beta", self.beta, "a finite number >= 0 or auto")
        for item in fields(self):
            value, takes = getattr(self, item.name), TAKEN_BY.get(item.name, ("pmpo",))
            known = item.name == "method" or value == item.default or self.method in takes
            check(known, item.name, value, f"left out: --method {self.method} does not read it")
        # DPO divides by it.
        none = self.method == "dpo" and self.beta not in (None, "auto") and float(self.beta) == 0
        check(not none, "beta", self.beta, "above 0 for dpo")
        ok = self.covariance_beta is None or self.covariance_beta >= 0
        check(ok, "covariance_beta", self.covariance_beta, "a number >= 0, or inf")
        both = self.coupled and self.covariance_beta is not None
        check(not both, "covariance_beta", self.covariance_beta, "left out: --coupled has one KL weight, --beta")
        check_numbers(self, "eta", "epsilon", "epsilon_mean", "epsilon_covariance", above=0)


@dataclass(frozen=True)
class AgentConfig:
    """Networks, critic and how fast they learn."""

    policy: Literal["gaussian", "categorical"] = "gaussian"
    """Gaussian, or each action dimension in bins."""
    bins: int = 11
    """Categorical: bins of each dimension."""
    hidden: tuple[int, ...] = (256, 256)
    """Units of each hidden layer, of the policy and of each critic."""
    lr: float = 1e-3
    """Learning rate of the policy."""
    critic_lr: float = 1e-3
    """Learning rate of the critic."""
    batch_size: int = 256
    """States in a batch."""
    num_actions: int = 4
    """Actions drawn from the reference and judged in each state."""
    steps_per_update: float = 4.0
    """Environment steps for each update; below 1, several updates a step."""
    refresh_every: int = 25
    """Updates between refreshes of the reference."""
    target_every: int = 50
    """Updates between copies of the critic into its target."""
    action_repeat: int = 1
    """Environment steps that each action lasts; the control suite's quick tasks learn sooner with 2 to 8."""
    discount: float = 0.99
    """Gamma, per action."""
    n_step: int = 3
    """Actions' rewards in a critic's target before it bootstraps."""
    init_scale: float = 0.5
    """Gaussian: standard deviation at the start, in units of half the action range."""

    def __post_init__(self) -> None:
        check(self.policy in ("gaussian", "categorical"), "policy", self.policy, "gaussian or categorical")
        check(bool(self.hidden) and min(self.hidden) >= 1, "hidden", self.hidden, "one size or more, each at least 1")
        check_numbers(self, "lr", "critic_lr", "steps_per_update", above=0)
        check_numbers(self, "batch_size", "refresh_every", "target_every", "n_step", "action_repeat", least=1)
        check_numbers(self, "bins", "num_actions", least=2)
        check_numbers(self, "discount", above=0, most=1)
        other = {"gaussian": "bins", "categorical": "init_scale"}[self.policy]
        default = {item.name: item.default for item in fields(self)}[other]
        unread = getattr(self, other)
        check(unread == default, other, unread, f"left out: --policy {self.policy} does not read it")
        check(MIN_SCALE < self.init_scale <= 10, "init_scale", self.init_scale, f"above {MIN_SCALE} and at most 10")


@dataclass(frozen=True)
class TrialConfig:
    """One run: how long, from which seed, what is watched and kept."""

    steps: int = 100_000
    """Environment steps, in all environments together."""
    out: str = ""
    """Folder to write into; runs/ENVIRONMENT where not given."""
    seed: int = 0
    """Same seed, same bits (on one machine, with as many threads)."""
    num_environments: int = 1
    """Environments lived in side by side."""
    warmup_steps: int = 1000
    """Steps of random actions before the first update."""
    eval_every: int = 10_000
    """Environment steps between evaluations, from the first update on; 0 evaluates at the end only."""
    eval_episodes: int = 5
    """Episodes of each evaluation, acting by the most likely action."""
    save_every: int = 10_000
    """Environment steps between checkpoints; 0 keeps none."""
    resume: bool = False
    """Go on from the last checkpoint in --out."""
    tracker: str = "tensorboard"
    """tensorboard, wandb, trackio or none; metrics.jsonl is always written."""
    video: bool = False
    """Write video.gif of an episode of the final policy."""
    threads: int = 1
    """torch threads; one is fastest for networks of this size."""

    def __post_init__(self) -> None:
        check_numbers(self, "steps", "num_environments", "warmup_steps", "eval_episodes", "threads", least=1)
        check_numbers(self, "seed", "eval_every", "save_every", least=0)
        check(self.tracker in TRACKERS, "tracker", self.tracker, f"one of {', '.join(TRACKERS)}")
        check(self.steps > self.warmup_steps, "steps", self.steps, f"more than --warmup-steps, {self.warmup_steps}")


@dataclass(frozen=True)
class ControlConfig:
    """Improve a control policy by acting: a critic judges actions, the method learns from its verdicts."""

    environment: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="ENVIRONMENT")]
    """dm_control/DOMAIN-TASK-v0, or an id of gymnasium's."""
    improve: ImproveConfig = field(default_factory=ImproveConfig)
    agent: AgentConfig = field(default_factory=AgentConfig)
    trial: TrialConfig = field(default_factory=TrialConfig)


def control_config(environment: str, **options: Any) -> ControlConfig:
    """From flat names, as on the command line.

    Raises:
        TypeError: an option that there is not.
    """
    groups = {"improve": ImproveConfig, "agent": AgentConfig, "trial": TrialConfig}
    made = {}
    for name, group in groups.items():
        mine = {item.name for item in fields(group)} & options.keys()
        made[name] = group(**{key: options.pop(key) for key in mine})
    if options:
        raise TypeError(f"control has no option {', '.join(map(repr, sorted(options)))}")
    return ControlConfig(environment, **made)
