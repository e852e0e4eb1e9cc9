"""The fields of an online run; each group validated when made."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

import tyro

from valence.errors import UserError
from valence.runs.config import (
    PRESET_ALPHA,
    DataConfig,
    ModelConfig,
    RunConfig,
    TrainConfig,
    build,
    check,
    check_numbers,
    is_number,
)

ONLINE_METHODS = (
    "rebel", "pmpo", "spo", "iterative-dpo", "rloo", "reinforce", "ppo", "apa", "copg", "grpo",
)  # fmt: skip
LABELS = ("halves", "best-worst", "group-mean", "batch-mean", "threshold")
READ_BY = {
    "eta": ("rebel", "spo"), "beta": ("pmpo", "iterative-dpo", "copg", "grpo"), "clip": ("ppo", "grpo"),
    "preset": ("pmpo",), "alpha": ("pmpo",), "labels": ("pmpo",), "threshold": ("pmpo",), "refresh_every": ("pmpo",),
    "temperature_of_advantage": ("apa",), "pairs": ("rebel", "spo", "iterative-dpo"), "value_weight": ("ppo", "apa"),
    "value_clip": ("ppo",), "trace": ("ppo", "apa"),
    "minibatch_size": ("rebel", "pmpo", "spo", "iterative-dpo", "ppo", "apa", "copg", "grpo"),
    "inner_epochs": ("rebel", "pmpo", "spo", "iterative-dpo", "ppo", "apa", "copg", "grpo"),
    "given": ("rebel", "iterative-dpo", "copg"),
}  # fmt: skip
"""Which methods read a setting; all of them where it is not here."""
SHAPED = ("rebel", "iterative-dpo", "rloo", "reinforce", "ppo")
"""Methods without a hold on pi_0 of their own: their reward is shaped by default, as in the REBEL paper."""
SEVERAL = ("rebel", "spo", "iterative-dpo", "ppo")
"""Methods that learn four times from what they collect by default, as in the REBEL paper."""


@dataclass(frozen=True)
class OnlineConfig:
    """What is asked, and what is made of the answers. A field left out takes the method's own default."""

    method: str = "rebel"
    """rebel, pmpo, spo, iterative-dpo, rloo, reinforce, ppo, apa, copg or grpo."""
    reward: str = ""
    """number, exact, length, bleu, chrf, rouge, regex:EXPRESSION, a folder with a reward or preference model,
    judge:MODEL@URL, pairwise:file.py:function, module:function or file.py:function; (prompts, completions, **columns)
    -> list of numbers."""
    gold: str = ""
    """Another reward or judge, on held-out prompts: watched for over-optimisation, never learned from."""
    judge_template: str = "helpful"
    """judge: helpful, summary, or a text with {prompt}, {first} and {second}."""
    reward_timeout: float = 60.0
    """Seconds that a call of a reward function may take."""
    num_samples: int = 4
    """Completions drawn for each prompt."""
    kl_weight: float | None = None
    """Reward taken off for each nat of log pi_t / pi_0; rebel, iterative-dpo, rloo, reinforce, ppo 0.05, others 0."""
    unfinished_reward: float | None = None
    """What a completion that does not end within max-new-tokens is worth; judged like others where not given."""
    inner_epochs: int | None = None
    """How often each collected batch is learned from: 4 for rebel, spo, iterative-dpo and ppo, else 1."""
    minibatch_size: int = 0
    """Prompts an optimizer step; 0 takes the collected batch whole."""
    whole: bool = False
    """Each collected batch is all prompts; --minibatch-size then says how many go into an optimizer step."""
    given: int = 0
    """Completions of the prompt's own row judged beside the drawn ones (REBEL's hybrid form)."""
    pairs: str = "all"
    """rebel, spo, iterative-dpo: all pairs of a prompt's completions, or best-worst alone."""
    eta: str = "1"
    """REBEL, SPO: step size, nats for each unit of reward; 1e6,1e4,1e2 gives each collected batch its own."""
    beta: str | None = None
    """PMPO: KL weight, a number or auto (auto). Iterative DPO: inverse temperature (0.05). CoPG (0.1), GRPO (0.04)."""
    preset: str | None = None
    """PMPO: ar, a or r, with the paper's alpha and beta."""
    alpha: float | None = None
    """PMPO: weight of accepted against rejected (0.5)."""
    labels: str = "halves"
    """PMPO: halves, best-worst, group-mean, batch-mean or threshold: what is accepted and what is rejected."""
    threshold: float = 0.0
    """PMPO with labels threshold: the reward that is just accepted."""
    refresh_every: int = 10
    """PMPO: optimizer steps between copies of the policy into the reference that is sampled from; 0 never."""
    clip: float = 0.2
    """PPO, GRPO: of the ratio to the policy that collected."""
    value_clip: float = 0.2
    """PPO: of the value, in units of reward."""
    value_weight: float = 0.1
    """PPO, APA: of the value's loss."""
    trace: float = 0.95
    """PPO, APA: lambda of the advantage estimate."""
    temperature_of_advantage: float = 0.1
    """APA: lambda, units of advantage for each nat."""

    def __post_init__(self) -> None:
        check(self.method in ONLINE_METHODS, "method", self.method, f"one of {', '.join(ONLINE_METHODS)}")
        check(self.preset in (None, *PRESET_ALPHA), "preset", self.preset, f"one of {', '.join(PRESET_ALPHA)}")
        check(self.alpha is None or 0 <= self.alpha <= 1, "alpha", self.alpha, "between 0 and 1")
        check(self.preset is None or self.alpha is None, "alpha", self.alpha, "left out: --preset sets it")
        check(self.labels in LABELS, "labels", self.labels, f"one of {', '.join(LABELS)}")
        check(self.pairs in ("all", "best-worst"), "pairs", self.pairs, "all or best-worst")
        check(self.beta in (None, "auto") or is_number(self.beta), "beta", self.beta, "a finite number >= 0 or auto")
        check_numbers(self, "clip", "value_clip", "temperature_of_advantage", "reward_timeout", above=0)
        check_numbers(self, "num_samples", "inner_epochs", least=1)
        check_numbers(self, "kl_weight", "minibatch_size", "given", "refresh_every", "value_weight", least=0)
        check_numbers(self, "trace", least=0, most=1)
        check_numbers(self, "unfinished_reward", "threshold")
        good = all(is_number(part) and float(part) > 0 for part in self.eta.split(","))
        check(good, "eta", self.eta, "a number above 0, or several with commas between")
        check(self.labels == "threshold" or not self.threshold, "threshold", self.threshold, "with --labels threshold")
        for item in fields(self):
            value, readers = getattr(self, item.name), READ_BY.get(item.name, ONLINE_METHODS)
            known = value == item.default or self.method in readers
            check(known, item.name, value, f"left out: --method {self.method} does not read it")
        alone = self.method not in ("ppo", "reinforce", "apa") and self.num_samples + self.given < 2
        check(not alone, "num_samples", self.num_samples, f"at least 2: {self.method} compares completions")
        divides = self.method in ("iterative-dpo", "copg") and self.beta is not None
        zero = divides and (self.beta == "auto" or float(self.beta or 0) == 0)
        check(not zero, "beta", self.beta, f"above 0 for {self.method}")

    @property
    def etas(self) -> tuple[float, ...]:
        """The step sizes, one for each collected batch; the last one stays."""
        return tuple(float(part) for part in self.eta.split(","))

    @property
    def gamma(self) -> float:
        """The KL weight in force."""
        return self.kl_weight if self.kl_weight is not None else 0.05 if self.method in SHAPED else 0.0

    @property
    def epochs(self) -> int:
        """The inner epochs in force."""
        return self.inner_epochs if self.inner_epochs is not None else 4 if self.method in SEVERAL else 1


@dataclass(frozen=True)
class ImproveConfig:
    """One online run."""

    prompts: tyro.conf.Positional[tuple[str, ...]] = ()
    """Files of prompts; other columns go to the reward function."""
    model: str = ""
    """A folder that transformers can load, a hub id, or small-lm for the model that Valence carries."""
    out: str = ""
    """Folder to write into."""
    online: OnlineConfig = field(default_factory=OnlineConfig)
    data: DataConfig = field(default_factory=DataConfig)
    network: ModelConfig = field(default_factory=ModelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    run: RunConfig = field(default_factory=RunConfig)


GROUPS: dict[str, type] = {
    "online": OnlineConfig, "data": DataConfig, "network": ModelConfig, "train": TrainConfig, "run": RunConfig,
}  # fmt: skip


def improve_config(**options: Any) -> ImproveConfig:
    """An `ImproveConfig` from flat names, as in config.yaml and on the command line.

    Raises:
        UserError: an unknown name or a wrong value.
    """
    return build(ImproveConfig, GROUPS, options, paths=("prompts", "eval_feedback"), command="improve")


def check_complete(config: ImproveConfig) -> None:
    """Raises UserError where prompts, model, out or reward is missing."""
    given = {"prompts": config.prompts, "model": config.model, "out": config.out, "reward": config.online.reward}
    missing = [name for name, value in given.items() if not value]
    if missing:
        raise UserError(f"{', '.join(missing)} missing: valence improve PROMPTS --model MODEL --reward R --out DIR")
