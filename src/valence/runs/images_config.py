"""The fields of a run on images; each group validated when made."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from valence.errors import UserError
from valence.policies.sampler_settings import PRECISIONS, SamplerSettings
from valence.runs.config import PRESET_ALPHA, RunConfig, TrainConfig, build, check, check_numbers, is_number
from valence.runs.improve_config import OnlineConfig

IMAGE_METHODS = (
    "rebel", "pmpo", "spo", "ppo", "rloo", "reinforce", "dpo", "iterative-dpo", "grpo", "copg",
)  # fmt: skip
ONLINE_NAME = {"ppo": "reinforce", "dpo": "iterative-dpo"}
"""What the online job calls methods that read the same settings."""
SEVERAL = ("rebel", "spo", "dpo", "iterative-dpo", "ppo")
"""Methods that learn twice from what they collect by default: in the first update log pi is log pi_t still, and REBEL's
gradient a multiple of RLOO's; its regression begins with the second."""
PAPER_CLIP, PAPER_LR, PAPER_GRAD_NORM = 1e-4, {"rebel": 3e-4, "ppo": 1e-4}, 5.0


@dataclass(frozen=True)
class ImageMethodConfig:
    """What is asked, and what is made of the answers. A field left out takes the method's own default."""

    method: str = "rebel"
    """rebel, pmpo, spo, ppo (without a critic), rloo, reinforce, dpo, iterative-dpo, grpo or copg."""
    reward: str = "default"
    """default (for small-digits: file size and a classifier), jpeg-small, jpeg-large, digit, classifier:FOLDER,
    aesthetic:FOLDER, sum:W*A,W*B, pairwise:file.py:function, module:function or file.py:function; (images, prompts,
    metadata) -> list of numbers."""
    gold: str = "auto"
    """Another reward, watched and never learned from: auto (digit-judge for small-digits, else none), none, a name."""
    reward_timeout: float = 60.0
    """Seconds that a call of a reward function may take."""
    preset: str | None = None
    """PMPO: ar, a or r. rebel, ppo: paper, for the REBEL paper's settings (log-prob-scale 1/D, its rates and clip)."""
    num_samples: int = 4
    """Images drawn for each prompt."""
    log_prob_scale: str | None = None
    """A number that multiplies log pi within the objective, or 1/D, D the latent's dimensions; 1 where not given."""
    eta: str = "1"
    """REBEL, SPO: step size, nats (times log-prob-scale) for each standard deviation of reward."""
    beta: str | None = None
    """PMPO: KL weight, a number or auto (auto). DPO (0.05), CoPG (0.1): inverse temperature. GRPO: KL penalty (0)."""
    alpha: float | None = None
    """PMPO: weight of accepted against rejected (0.5)."""
    labels: str = "halves"
    """PMPO: halves, best-worst, group-mean, batch-mean or threshold."""
    threshold: float = 0.0
    """PMPO with labels threshold: the standardised reward that is just accepted."""
    refresh_every: int = 4
    """PMPO: optimizer steps between copies of the policy into the reference that is sampled from; 0 never."""
    pairs: str = "all"
    """rebel, spo, dpo: all pairs of a prompt's images, or best-worst alone."""
    clip: float | None = None
    """PPO (0.01; the paper's 1e-4), GRPO (0.2): of the ratio at each step."""
    inner_epochs: int | None = None
    """How often each collected batch is learned from: 2 for rebel, spo, dpo, iterative-dpo and ppo, else 1 (rebel with
    preset paper too)."""
    minibatch_size: int = 0
    """Prompts an optimizer step; 0 takes the collected batch whole."""
    kl_weight: float = 0.0
    """Standardised reward taken off for each nat of log pi_t / pi_0."""
    statistics_size: int = 32
    """Rewards remembered for each prompt, by which they are standardised; 0 leaves rewards as they are."""
    statistics_least: int = 16
    """From so many on, a prompt's own statistics are used; the batch's before."""
    advantage_clip: float = 10.0
    """Standardised rewards are clipped to it."""

    def __post_init__(self) -> None:
        check(self.method in IMAGE_METHODS, "method", self.method, f"one of {', '.join(IMAGE_METHODS)}")
        paper = self.preset == "paper"
        known = self.preset in (None, "paper", *PRESET_ALPHA)
        check(known, "preset", self.preset, f"one of {', '.join(PRESET_ALPHA)} for pmpo, or paper for rebel and ppo")
        check(not paper or self.method in PAPER_LR, "preset", self.preset, "left out: only rebel and ppo have one")
        check(self.clip is None or self.method in ("ppo", "grpo"), "clip", self.clip, "left out but for ppo and grpo")
        check_numbers(self, "clip", "reward_timeout", "advantage_clip", above=0)
        check_numbers(self, "statistics_size", least=0)
        check_numbers(self, "statistics_least", least=2)
        fits = self.statistics_size == 0 or self.statistics_least <= self.statistics_size
        check(fits, "statistics_least", self.statistics_least, "at most --statistics-size")
        scale = self.log_prob_scale
        good = scale in (None, "1/D") or (is_number(scale) and float(str(scale)) > 0)
        check(good, "log_prob_scale", scale, "a number above 0, or 1/D")
        fresh = self.method in ("rloo", "reinforce") and (self.epochs > 1 or self.minibatch_size > 0)
        check(not fresh, "inner_epochs", self.epochs, f"1, and --minibatch-size left out: {self.method} is on-policy")
        check(self.method == "pmpo" or self.refresh_every == 4, "refresh_every", self.refresh_every, "left out: PMPO's")
        # What both read is checked there, under the name that the user gave.
        try:
            self.online()
        except UserError as error:
            raise UserError(str(error).replace(ONLINE_NAME.get(self.method, self.method), self.method)) from error

    def online(self) -> OnlineConfig:
        """What the online job makes objectives and conversions from. REINFORCE stands there for PPO without a critic,
        which takes the same rewards."""
        method = ONLINE_NAME.get(self.method, self.method)
        more: dict[str, Any] = {"clip": self.clip} if self.method == "grpo" and self.clip else {}
        if self.method == "pmpo":
            more["refresh_every"] = self.refresh_every
        beta = "0" if self.method == "grpo" and self.beta is None else self.beta
        return OnlineConfig(
            method=method, reward=self.reward, num_samples=self.num_samples, kl_weight=self.kl_weight, eta=self.eta,
            beta=beta, preset=None if self.preset == "paper" else self.preset, alpha=self.alpha, labels=self.labels,
            threshold=self.threshold, pairs=self.pairs, reward_timeout=self.reward_timeout, **more,
        )  # fmt: skip

    @property
    def epochs(self) -> int:
        """The inner epochs in force."""
        if self.inner_epochs is not None:
            return self.inner_epochs
        return 2 if self.method in SEVERAL and (self.method, self.preset) != ("rebel", "paper") else 1

    def scale(self, dimensions: int) -> float:
        """The log-prob scale in force, for a latent of so many dimensions."""
        text = self.log_prob_scale or ("1/D" if self.preset == "paper" else "1")
        return 1 / dimensions if text == "1/D" else float(text)


@dataclass(frozen=True)
class PipelineConfig(SamplerSettings):
    """How images are drawn, and what of the pipeline learns."""

    device: str = "auto"
    """auto, cpu, cuda, cuda:1, …"""

    def __post_init__(self) -> None:
        check_numbers(self, "num_steps", least=1)
        one = "at least 2: a sampler's last step adds no noise, so that one step in all has no density to learn from"
        check(self.num_steps > 1, "num_steps", self.num_steps, one)
        check_numbers(self, "lora_rank", least=0)
        check_numbers(self, "lora_alpha", least=1)
        check_numbers(self, "guidance", least=0)
        check_numbers(self, "stochasticity", above=0, most=1)
        check(self.dtype in PRECISIONS, "dtype", self.dtype, f"one of {', '.join(PRECISIONS)}")


@dataclass(frozen=True)
class ImageTrainConfig(TrainConfig):
    """How it learns."""

    lr: float | None = None
    """Learning rate; 1e-3 below 100M parameters, else 3e-4; with preset paper 3e-4 for rebel and 1e-4 for ppo."""
    value_lr: float | None = None
    """Left out: no method here has a value network."""
    batch_size: int = 8
    """Prompts a collected batch."""
    micro_batch_size: int = 0
    """Prompts measured at a time; 0 takes the batch whole. The gradient is the same."""
    micro_batch_tokens: int = 0
    """Left out: images are not made of tokens."""
    epochs: float = 20.0
    """Passes over the prompts, where max-steps is not given."""
    warmup_steps: int | None = None
    """Linear warm-up (none)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        tokens = self.micro_batch_tokens
        check(not tokens, "micro_batch_tokens", tokens, "left out: images are not made of tokens")


@dataclass(frozen=True)
class ImageRunConfig(RunConfig):
    """What is watched, kept and when it stops."""

    eval_every: int = 10
    """Steps between evaluations; 0 evaluates before and after only."""
    eval_samples: int = 64
    """Images of a look, by which KL, reward and gold are measured; the first 40 are the grid."""
    save_every: int = 10
    """Steps between checkpoints; 0 keeps none."""


@dataclass(frozen=True)
class ImprovementConfig:
    """One run on images."""

    prompts: str = ""
    """A file of prompts (one a line, or JSON lines with "prompt"; other fields go to the reward as metadata); left out
    for small-digits: its ten."""
    pipeline: str = ""
    """A folder that diffusers can load, a hub id, or small-digits for the one that Valence carries."""
    out: str = ""
    """Folder to write into."""
    images: ImageMethodConfig = field(default_factory=ImageMethodConfig)
    network: PipelineConfig = field(default_factory=PipelineConfig)
    train: ImageTrainConfig = field(default_factory=ImageTrainConfig)
    run: ImageRunConfig = field(default_factory=ImageRunConfig)


GROUPS: dict[str, type] = {
    "images": ImageMethodConfig, "network": PipelineConfig, "train": ImageTrainConfig, "run": ImageRunConfig,
}  # fmt: skip


def images_config(**options: Any) -> ImprovementConfig:
    """An `ImprovementConfig` from flat names, as in config.yaml and on the command line.

    Raises:
        UserError: an unknown name or a wrong value.
    """
    return build(ImprovementConfig, GROUPS, options, paths=(), command="improve-images")


def check_complete(config: ImprovementConfig) -> None:
    """Raises UserError where pipeline or out is missing."""
    missing = [name for name in ("pipeline", "out") if not getattr(config, name)]
    if missing:
        raise UserError(
            f"{', '.join(missing)} missing: valence improve-images --pipeline P --prompts FILE --reward R --out DIR"
        )
