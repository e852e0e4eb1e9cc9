"""The options that runs share, in small groups. Each group checks its values when it is made.

A `ValueError` raised here names the option between backquotes; `valence.runs.settings` turns it into a `UserError`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_type_hints


class Rule(NamedTuple):
    """What must hold for a value; it stands in an option's annotation."""

    wanted: str
    holds: Callable[[Any], bool]


def least(bound: int) -> Rule:
    """The value is `bound` or more."""
    return Rule(f"at least {bound}", lambda value: value >= bound)


def most(bound: int) -> Rule:
    """The value is `bound` or less."""
    return Rule(f"at most {bound}", lambda value: value <= bound)


FINITE = Rule("finite", lambda value: abs(value) < math.inf)
ABOVE_ZERO = Rule("above 0", lambda value: value > 0)
BELOW_ONE = Rule("below 1", lambda value: value < 1)
FITS = most(2**31 - 1)
"""Larger whole numbers do not fit every part of a run."""

Whole = Annotated[int, least(0), FITS]
Count = Annotated[int, least(1), FITS]
TwoOrMore = Annotated[int, least(2), FITS]
Finite = Annotated[float, FINITE]
NonNegative = Annotated[float, FINITE, least(0)]
Positive = Annotated[float, FINITE, ABOVE_ZERO]
Fraction = Annotated[float, FINITE, least(0), BELOW_ONE]
OpenFraction = Annotated[float, FINITE, ABOVE_ZERO, BELOW_ONE]
Discount = Annotated[float, FINITE, ABOVE_ZERO, most(1)]
Sizes = Annotated[
    tuple[int, ...], Rule("one size or more, each at least 1", lambda sizes: bool(sizes) and min(sizes) >= 1)
]
StepSizes = Annotated[
    tuple[float, ...], Rule("finite numbers above 0", lambda etas: all(0 < eta < math.inf for eta in etas))
]


def check(ok: bool, name: str, value: object, wanted: str) -> None:
    """Raise ValueError, naming the option and its value, unless `ok`."""
    if not ok:
        shown = repr(value) if len(repr(value)) <= 60 else f"{repr(value)[:60]}…"
        raise ValueError(f"`{name}` is {shown}, and must be {wanted}")


@cache
def rules_of(kind: type) -> dict[str, list[Rule]]:
    """Option -> the rules in its annotation."""
    found: dict[str, list[Rule]] = {}
    for name, hint in get_type_hints(kind, include_extras=True).items():
        marks = [mark for part in (hint, *get_args(hint)) for mark in getattr(part, "__metadata__", ())]
        found[name] = [mark for mark in marks if isinstance(mark, Rule)]
    return found


class Options:
    """A group of options. Each keeps the rules in its annotation, unless it is None: then it was not given."""

    def __post_init__(self) -> None:
        for name, rules in rules_of(type(self)).items():
            value = getattr(self, name)
            broken = [rule.wanted for rule in rules if value is not None and not rule.holds(value)]
            check(not broken, name, value, " and ".join(broken))


@dataclass(frozen=True)
class ReadOptions(Options):
    """How the files are read."""

    columns: str | None = None
    """Your columns: prompt=question,completion=a.b[-1]; sums (a+b) and lists (a|b|c)."""
    join: tuple[str, ...] = ()
    """Columns of another file: FILE on=KEY, or FILE on=KEY=KEY_OF_FILE."""
    map: str | None = None
    """file.py:function that turns a row into another, or into None to drop it."""
    prompt_template: str | None = None
    """Text file that makes the prompt: {column} stands for a column's text."""
    split: str | None = None
    """Split of a data set of the hub."""
    subset: str | None = None
    """Subset of a data set of the hub."""
    strict: bool = False
    """End the run at the first row that cannot be used."""


@dataclass(frozen=True)
class VerdictOptions(ReadOptions):
    """How the files are read."""

    labels: str | None = None
    """What verdicts mean: accept=VALUES,reject=VALUES,ignore=VALUES; accept>=4,reject<=2; invert; or as-is."""


@dataclass(frozen=True)
class PromptOptions(Options):
    """How prompts are given to the model; see `valence.data.prompting`."""

    separator: str | None = None
    """Text between a plain prompt and its completion; a newline by default."""
    chat_template: bool = True
    """Without the template, plain prompts go to a chat model as they are."""
    system: str | None = None
    """System message for conversations that have none."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.system is None or self.chat_template, "system", self.system, "left out with `chat_template=False`")


@dataclass(frozen=True)
class DataOptions(PromptOptions, ReadOptions):
    """How the files are read."""

    max_length: TwoOrMore = 512
    """Longest prompt plus completion, in tokens; cut rows are counted."""
    eval_feedback: tuple[str, ...] = ()
    """Files of held-out rows; by default the rows marked held-out, or a fraction."""
    eval_fraction: Fraction = 0.05
    """Share of the prompts that is held out where no row is marked."""


@dataclass(frozen=True)
class FeedbackOptions(DataOptions, VerdictOptions):
    """How the files are read."""


@dataclass(frozen=True)
class ModelOptions(Options):
    """How the model is loaded."""

    dtype: Literal["float32", "bfloat16"] = "float32"
    """bfloat16 trains in mixed precision, or with LoRA on a bfloat16 base."""
    device: str = "auto"
    """auto takes a GPU where there is one."""
    lora_rank: Whole = 0
    """LoRA rank; 0 trains every weight."""
    lora_alpha: Count | None = None
    """LoRA scale; twice the rank by default."""
    lora_targets: str = "all-linear"
    """LoRA modules, with commas between them."""
    gradient_checkpointing: bool = False
    """Use less memory and about a third more time."""
    head: Literal["fused", "plain"] = "fused"
    """fused holds no full row of logits; plain is slow and obvious."""
    attention: str = ""
    """Attention implementation of transformers, such as flash_attention_2."""
    batching: Literal["auto", "rows"] = "auto"
    """auto reads a prompt once for all completions; packs with flash attention."""
    micro_batch_tokens: Whole = 0
    """Tokens measured at a time; 0 sets no limit. The gradient is the same."""
    trust_remote_code: bool = False
    """Let the model's folder run code of its own."""


@dataclass(frozen=True)
class SamplingOptions(Options):
    """How samples are drawn."""

    temperature: Positive = 1.0
    """Sampling temperature. It is part of the policy, so of its likelihoods too."""
    max_new_tokens: Count | None = None
    """Longest sample, in tokens."""


@dataclass(frozen=True)
class ReferenceOptions:
    """Where the reference model lies. With LoRA the reference is the model with its adapters off."""

    reference_dtype: Literal["", "float32", "bfloat16"] = ""
    """Precision of the reference copy; the policy's by default."""
    reference_device: str = ""
    """Device of the reference copy, such as cpu; the policy's by default."""


@dataclass(frozen=True)
class CachedReferenceOptions(ReferenceOptions):
    """Where the reference model lies. With LoRA the reference is the model with its adapters off."""

    reference_cache: str = ""
    """Folder that caches the reference's figures by content, for later epochs and runs."""


@dataclass(frozen=True)
class TrainOptions(Options):
    """How the policy is trained."""

    lr: Positive | None = None
    """Learning rate. Text: 1e-4 with LoRA, for dro or below 100M parameters, else 1e-5. Images: 1e-3 or 3e-4."""
    optimizer: Literal["adamw", "adafactor"] = "adamw"
    """adamw, or adafactor (the DRO paper's)."""
    batch_size: Count = 32
    """Contexts in an optimizer step, or in a collected batch."""
    micro_batch_size: Whole = 0
    """Contexts measured at a time; 0 takes all. The gradient is the same."""
    epochs: Annotated[float, FINITE, ABOVE_ZERO, most(1_000_000)] = 1.0
    """Passes over the data where max-steps is not given."""
    max_steps: Count | None = None
    """Optimizer steps."""
    lr_schedule: Literal["constant", "linear"] = "constant"
    """After the warm-up: constant, or linear to 0 at the last step."""
    warmup_steps: Whole | None = None
    """Steps of linear warm-up; a tenth, at most 150, by default (images: none)."""
    max_grad_norm: NonNegative = 1.0
    """Norm that gradients are clipped to; 0 does not clip."""
    weight_decay: NonNegative = 0.0
    """Weight decay of the optimizer."""
    seed: Whole = 0
    """Random seed for shuffling, the held-out split and sampling."""

    def warmup(self, steps: int) -> int:
        """Steps of warm-up in a run of `steps` steps."""
        return min(150, steps // 10) if self.warmup_steps is None else self.warmup_steps


@dataclass(frozen=True)
class RunOptions(Options):
    """What is measured and saved, and when the run stops."""

    eval_every: Whole = 50
    """Steps between evaluations; 0 evaluates before and after only."""
    eval_samples: Count = 64
    """Fresh samples of an evaluation."""
    eval_rows: Whole = 256
    """Held-out rows of an evaluation, at most."""
    save_every: Whole = 50
    """Steps between checkpoints; 0 saves none."""
    log_every: Count = 5
    """Steps between measurements of the exact KL and of drift."""
    kl_budget: Positive | None = None
    """Stop when KL(pi || pi_ref) passes so many nats; restore the last model within."""
    resume: bool = False
    """Continue from the last checkpoint in the output folder."""
    tracker: Literal["tensorboard", "wandb", "trackio", "none"] = "tensorboard"
    """Where metrics also go; metrics.jsonl is always written."""
    profile: bool = False
    """Profile steps 3 to 7 with torch: profile.json (a trace) and profile.txt."""
    threads: Annotated[int, least(0), most(1024)] = 0
    """CPU threads; 0 leaves the choice to torch."""


@dataclass(frozen=True)
class JudgeOptions(Options):
    """How rewards are asked for."""

    num_samples: Count = 4
    """Completions drawn for each prompt."""
    unfinished_reward: Finite | None = None
    """Reward of a completion cut at max-new-tokens; judged like others by default."""
    full_batch: bool = False
    """Collect all prompts in each batch."""
    reward_timeout: Positive = 60.0
    """Seconds that a call of a reward function may take."""
    judge_template: str = "helpful"
    """Question to a pairwise judge: helpful, summary, or a text with {prompt}, {first} and {second}."""


@dataclass(frozen=True)
class ImageJudgeOptions(Options):
    """How rewards are asked for and standardised."""

    num_samples: Count = 4
    """Images drawn for each prompt."""
    reward_timeout: Positive = 60.0
    """Seconds that a call of a reward function may take."""
    log_prob_scale: str | None = None
    """Number that multiplies log pi within the objective, or 1/D with D latent dimensions; 1 by default."""
    statistics_size: Whole = 32
    """Rewards remembered for each prompt, which standardise new ones; 0 takes rewards as they are."""
    statistics_least: TwoOrMore = 16
    """Rewards from which on a prompt's own statistics are used; before, the batch's."""
    advantage_clip: Positive = 10.0
    """Standardised rewards are clipped to this size."""

    def __post_init__(self) -> None:
        super().__post_init__()
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
class Reuse(Options):
    """How often a collected batch is learned from."""

    num_epochs: Count = 1
    """How often each collected batch is learned from."""
    minibatch_size: Whole = 0
    """Contexts in an optimizer step; 0 takes the whole collected batch."""


@dataclass(frozen=True, kw_only=True)
class Shaping(Options):
    """What a distance from the initial policy costs."""

    kl_weight: NonNegative = 0.0
    """Reward taken off for each nat of log pi_t / pi_0."""


@dataclass(frozen=True, kw_only=True)
class Refreshing(Options):
    """A reference that follows the policy."""

    refresh_every: Whole = 0
    """Optimizer steps between copies of the policy into the reference; 0 never copies."""


@dataclass(frozen=True, kw_only=True)
class ValueNetwork(Options):
    """The critic."""

    value_network: Literal["separate", "head"] = "separate"
    """separate is a network of its own (the DRO paper's), head is a head on the policy."""
    value_lr: Positive | None = None
    """Learning rate of the value network; the policy's by default."""


@dataclass(frozen=True, kw_only=True)
class GivenCompletions(Options):
    """REBEL's hybrid form."""

    num_given: Whole = 0
    """Completions of the prompt's own row that are judged beside the samples."""


@dataclass(frozen=True, kw_only=True)
class EtaSchedule(Options):
    """Step sizes that change."""

    eta_schedule: StepSizes = ()
    """eta of each collected batch in turn, in place of eta; the last one stays."""


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
