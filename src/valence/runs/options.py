"""The options that runs share, in small groups. Each group checks its values when it is made.

A `ValueError` raised here names the option between backquotes; `valence.runs.settings` turns it into a `UserError`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from valence.errors import UserError

LARGEST = 2**31 - 1
"""The largest whole number that every part of a run can hold."""
TRACKERS = ("tensorboard", "wandb", "trackio", "none")


def check(ok: bool, name: str, value: Any, wanted: str) -> None:
    """Raise ValueError, naming the option and its value, unless `ok`."""
    if not ok:
        shown = repr(value) if len(repr(value)) <= 60 else f"{repr(value)[:60]}…"
        raise ValueError(f"`{name}` is {shown}, and must be {wanted}")


def check_choice(config: Any, name: str, choices: Sequence[str]) -> None:
    """Raise ValueError unless the option is one of `choices`."""
    check(getattr(config, name) in choices, name, getattr(config, name), f"one of {', '.join(choices)}")


def check_numbers(
    config: Any, *names: str, above: int | None = None, least: int | None = None, below: int | None = None,
    most: int | None = None,
) -> None:  # fmt: skip
    """Raise ValueError where an option is not finite or out of its range; an option that is None was not given."""
    for name in names:
        value = getattr(config, name)
        if value is None:
            continue
        top = LARGEST if most is None and isinstance(value, int) else most
        rules = {
            "finite": abs(value) < math.inf,
            f"above {above}": above is None or value > above,
            f"at least {least}": least is None or value >= least,
            f"below {below}": below is None or value < below,
            f"at most {top}": top is None or value <= top,
        }
        check(all(rules.values()), name, value, " and ".join(rule for rule, ok in rules.items() if not ok))


@dataclass(frozen=True)
class DataOptions:
    """How the files are read."""

    columns: str | None = None
    """Names of your columns, such as prompt=question,completion=answer."""
    separator: str = ""
    """Text put between a plain-string prompt and its completion."""
    max_length: int = 512
    """Longest prompt plus completion, in tokens. Truncated rows are counted and reported."""
    eval_feedback: tuple[str, ...] = ()
    """Files of held-out rows. Without them the rows marked held-out, or a fraction, are held out."""
    eval_fraction: float = 0.05
    """Share of the prompts that is held out where no row is marked."""
    strict: bool = False
    """End the run at the first row that cannot be used."""

    def __post_init__(self) -> None:
        check_numbers(self, "max_length", least=2)
        check_numbers(self, "eval_fraction", least=0, below=1)


@dataclass(frozen=True)
class ModelOptions:
    """How the model is loaded."""

    dtype: Literal["float32", "bfloat16"] = "float32"
    """bfloat16 trains in mixed precision, or with LoRA on a bfloat16 base."""
    device: str = "auto"
    """auto takes a GPU where there is one."""
    lora_rank: int = 0
    """LoRA rank; 0 trains every weight."""
    lora_alpha: int | None = None
    """LoRA scale; twice the rank by default."""
    lora_targets: str = "all-linear"
    """LoRA modules, with commas between them."""
    gradient_checkpointing: bool = False
    """Use less memory and about a third more time."""
    head: Literal["fused", "plain"] = "fused"
    """fused holds no full row of logits; plain is the slow, obvious head, for comparison."""
    attention: str = ""
    """transformers' name of an attention implementation, such as sdpa or flash_attention_2."""
    batching: Literal["auto", "rows"] = "auto"
    """auto reads a prompt once for all its completions, and packs rows under flash attention."""
    micro_batch_tokens: int = 0
    """Tokens measured at a time; 0 sets no limit. The gradient is the same."""
    trust_remote_code: bool = False
    """Let the model's folder run code of its own."""

    def __post_init__(self) -> None:
        check_numbers(self, "lora_rank", "micro_batch_tokens", least=0)
        check_numbers(self, "lora_alpha", least=1)


@dataclass(frozen=True)
class SamplingOptions:
    """How samples are drawn."""

    temperature: float = 1.0
    """Sampling temperature. It is part of the policy, so of its likelihoods too."""
    max_new_tokens: int | None = None
    """Longest sample, in tokens."""

    def __post_init__(self) -> None:
        check_numbers(self, "temperature", above=0)
        check_numbers(self, "max_new_tokens", least=1)


@dataclass(frozen=True)
class ReferenceOptions:
    """Where the reference model lies. With LoRA the reference is the model with its adapters off."""

    reference_dtype: Literal["", "float32", "bfloat16"] = ""
    """Precision of the reference copy; the policy's by default."""
    reference_device: str = ""
    """Device of the reference copy, such as cpu; the policy's by default."""

    def check_beside(self, lora_rank: int) -> None:
        """Raise UserError where LoRA leaves no copy to place."""
        for name in ("reference_dtype", "reference_device"):
            if lora_rank and getattr(self, name):
                raise UserError(f"`{name}` must be left out with `lora_rank`: the base model is the reference")


@dataclass(frozen=True)
class CachedReferenceOptions(ReferenceOptions):
    """Where the reference model lies. With LoRA the reference is the model with its adapters off."""

    reference_cache: str = ""
    """Folder that caches the reference's figures by content, for later epochs and runs."""


@dataclass(frozen=True)
class TrainOptions:
    """How the policy is trained."""

    lr: float | None = None
    """Learning rate. Text: 1e-4 with LoRA, for dro or below 100M parameters, else 1e-5. Images: 1e-3 or 3e-4."""
    optimizer: Literal["adamw", "adafactor"] = "adamw"
    """adamw, or adafactor (the DRO paper's)."""
    batch_size: int = 32
    """Contexts in an optimizer step, or in a collected batch."""
    micro_batch_size: int = 0
    """Contexts measured at a time; 0 takes the whole batch. The gradient is the same."""
    epochs: float = 1.0
    """Passes over the data where max-steps is not given."""
    max_steps: int | None = None
    """Optimizer steps."""
    lr_schedule: Literal["constant", "linear"] = "constant"
    """After the warm-up: constant, or linear to 0 at the last step."""
    warmup_steps: int | None = None
    """Steps of linear warm-up; by default a tenth of the steps, at most 150 (images: none)."""
    max_grad_norm: float = 1.0
    """Norm that gradients are clipped to; 0 does not clip."""
    weight_decay: float = 0.0
    """Weight decay of the optimizer."""
    seed: int = 0
    """Random seed for shuffling, the held-out split and sampling."""

    def __post_init__(self) -> None:
        check_numbers(self, "lr", above=0)
        check_numbers(self, "batch_size", "max_steps", least=1)
        check_numbers(self, "micro_batch_size", "warmup_steps", "max_grad_norm", "weight_decay", "seed", least=0)
        check_numbers(self, "epochs", above=0, most=1_000_000)

    def warmup(self, steps: int) -> int:
        """Steps of warm-up in a run of `steps` steps."""
        return min(150, steps // 10) if self.warmup_steps is None else self.warmup_steps


@dataclass(frozen=True)
class RunOptions:
    """What is measured and saved, and when the run stops."""

    eval_every: int = 50
    """Steps between evaluations; 0 evaluates before and after only."""
    eval_samples: int = 64
    """Fresh samples of an evaluation."""
    eval_rows: int = 256
    """Held-out rows of an evaluation, at most."""
    save_every: int = 50
    """Steps between checkpoints; 0 saves none."""
    log_every: int = 5
    """Steps between measurements of the exact KL and of drift."""
    kl_budget: float | None = None
    """Stop when KL(pi || pi_ref) on fresh samples passes so many nats, and restore the last model within it."""
    resume: bool = False
    """Continue from the last checkpoint in the output folder."""
    tracker: Literal["tensorboard", "wandb", "trackio", "none"] = "tensorboard"
    """Where metrics also go; metrics.jsonl is always written."""
    profile: bool = False
    """Profile steps 3 to 7 with torch: profile.json (a trace) and profile.txt."""
    threads: int = 0
    """CPU threads; 0 leaves the choice to torch."""

    def __post_init__(self) -> None:
        check_numbers(self, "log_every", "eval_samples", least=1)
        check_numbers(self, "eval_every", "eval_rows", "save_every", least=0)
        check_numbers(self, "threads", least=0, most=1024)
        check_numbers(self, "kl_budget", above=0)


@dataclass(frozen=True)
class JudgeOptions:
    """How rewards are asked for."""

    num_samples: int = 4
    """Completions drawn for each prompt."""
    unfinished_reward: float | None = None
    """Reward of a completion that does not end within max-new-tokens; judged like others by default."""
    full_batch: bool = False
    """Collect all prompts in each batch."""
    reward_timeout: float = 60.0
    """Seconds that a call of a reward function may take."""
    judge_template: str = "helpful"
    """Question to a pairwise judge: helpful, summary, or a text with {prompt}, {first} and {second}."""

    def __post_init__(self) -> None:
        check_numbers(self, "num_samples", least=1)
        check_numbers(self, "reward_timeout", above=0)
        check_numbers(self, "unfinished_reward")


@dataclass(frozen=True)
class ImageJudgeOptions:
    """How rewards are asked for and standardised."""

    num_samples: int = 4
    """Images drawn for each prompt."""
    reward_timeout: float = 60.0
    """Seconds that a call of a reward function may take."""
    log_prob_scale: str | None = None
    """Number that multiplies log pi within the objective, or 1/D with D latent dimensions; 1 by default."""
    statistics_size: int = 32
    """Rewards remembered for each prompt, which standardise new ones; 0 takes rewards as they are."""
    statistics_least: int = 16
    """Rewards from which on a prompt's own statistics are used; before, the batch's."""
    advantage_clip: float = 10.0
    """Standardised rewards are clipped to this size."""

    def __post_init__(self) -> None:
        check_numbers(self, "num_samples", least=1)
        check_numbers(self, "reward_timeout", "advantage_clip", above=0)
        check_numbers(self, "statistics_size", least=0)
        check_numbers(self, "statistics_least", least=2)
        fits = self.statistics_size == 0 or self.statistics_least <= self.statistics_size
        check(fits, "statistics_least", self.statistics_least, "at most `statistics_size`")
        try:
            good = self.scale(1) > 0 and math.isfinite(self.scale(1))
        except ValueError:
            good = False
        check(good, "log_prob_scale", self.log_prob_scale, "a number above 0, or 1/D")

    def scale(self, dimensions: int) -> float:
        """The scale of log pi for a latent of so many dimensions."""
        text = self.log_prob_scale or "1"
        return 1 / dimensions if text == "1/D" else float(text)


@dataclass(frozen=True, kw_only=True)
class Reuse:
    """How often a collected batch is learned from."""

    num_epochs: int = 1
    """How often each collected batch is learned from."""
    minibatch_size: int = 0
    """Contexts in an optimizer step; 0 takes the whole collected batch."""

    def __post_init__(self) -> None:
        check_numbers(self, "num_epochs", least=1)
        check_numbers(self, "minibatch_size", least=0)


@dataclass(frozen=True, kw_only=True)
class Shaping:
    """What a distance from the initial policy costs."""

    kl_weight: float = 0.0
    """Reward taken off for each nat of log pi_t / pi_0."""

    def __post_init__(self) -> None:
        check_numbers(self, "kl_weight", least=0)


@dataclass(frozen=True, kw_only=True)
class Refreshing:
    """A reference that follows the policy."""

    refresh_every: int = 0
    """Optimizer steps between copies of the policy into the reference; 0 never copies."""

    def __post_init__(self) -> None:
        check_numbers(self, "refresh_every", least=0)


@dataclass(frozen=True, kw_only=True)
class ValueNetwork:
    """The critic."""

    value_network: Literal["separate", "head"] = "separate"
    """separate is a network of its own (the DRO paper's), head is a head on the policy."""
    value_lr: float | None = None
    """Learning rate of the value network; the policy's by default."""

    def __post_init__(self) -> None:
        check_numbers(self, "value_lr", above=0)


@dataclass(frozen=True, kw_only=True)
class GivenCompletions:
    """REBEL's hybrid form."""

    num_given: int = 0
    """Completions of the prompt's own row that are judged beside the samples."""

    def __post_init__(self) -> None:
        check_numbers(self, "num_given", least=0)


@dataclass(frozen=True, kw_only=True)
class EtaSchedule:
    """Step sizes that change."""

    eta_schedule: tuple[float, ...] = ()
    """eta of each collected batch in turn, in place of eta; the last one stays."""

    def __post_init__(self) -> None:
        good = all(0 < eta < math.inf for eta in self.eta_schedule)
        check(good, "eta_schedule", self.eta_schedule, "finite numbers above 0")


@dataclass(frozen=True, kw_only=True)
class Standardizing:
    """Rewards in units of their spread."""

    standardize: bool = True
    """Bring the data set's rewards to mean 0 and variance 1."""


@dataclass(frozen=True, kw_only=True)
class Coupling:
    """How a Gaussian's spread is learned."""

    coupled: bool = False
    """Gaussian: learn mean and covariance by one objective, as in the paper; the spread may vanish."""
