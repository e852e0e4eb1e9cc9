"""The fields of an alignment run, in five small groups; each validated when made."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from os import PathLike, fspath
from typing import Any, Literal

import tyro

from valence.errors import UserError

Method = Literal["auto", "pmpo", "dro", "rebel", "kto", "dpo", "ipo", "rpo", "supervised"]
METHODS = ("auto", "pmpo", "dro", "rebel", "kto", "dpo", "ipo", "rpo", "supervised")
PRESET_ALPHA = {"ar": 0.5, "a": 1.0, "r": 0.0}
LARGEST = 2**31 - 1
"""Whole numbers go up to it: larger ones overflow somewhere below."""


def check(ok: bool, name: str, value: Any, wanted: str) -> None:
    if not ok:
        said = repr(value) if len(repr(value)) <= 60 else f"{repr(value)[:60]}…"
        raise UserError(f"--{name.replace('_', '-')} is {said}, and must be {wanted}")


def check_numbers(
    config: Any, *names: str, above: int | None = None, least: int | None = None, below: int | None = None,
    most: int | None = None,
) -> None:  # fmt: skip
    """Raises UserError where a field is not finite or out of its range; a field that is None was left out."""
    for name in names:
        value = getattr(config, name)
        if value is None:
            continue
        known = isinstance(value, (int, float)) and not isinstance(value, bool)
        check(known, name, value, "a number")
        top = LARGEST if most is None and isinstance(value, int) else most
        rules = {
            "finite": abs(value) < math.inf,
            f"above {above}": above is None or value > above,
            f"at least {least}": least is None or value >= least,
            f"below {below}": below is None or value < below,
            f"at most {top}": top is None or value <= top,
        }
        check(all(rules.values()), name, value, " and ".join(rule for rule, ok in rules.items() if not ok))


READ_BY = {
    "beta": ("pmpo", "kto", "dpo", "ipo", "rpo"), "tau": ("dro",), "value": ("dro",), "value_network": ("dro",),
    "standardize": ("dro",), "eta": ("rebel",), "sft_weight": ("rpo",), "undesirable_weight": ("kto",),
}  # fmt: skip
"""Which methods read a setting, where it is not PMPO alone."""


@dataclass(frozen=True)
class MethodConfig:
    """What is minimised. A field left out takes the method's own default."""

    method: str = "auto"
    """auto, pmpo, dro, rebel, kto, dpo, ipo, rpo or supervised."""
    preset: str | None = None
    """PMPO: ar (accepted and rejected), a (accepted only) or r (rejected only), with the paper's alpha and beta."""
    alpha: float | None = None
    """PMPO: weight of accepted against rejected, 0 to 1 (0.5; 1 or 0 where only one side is there)."""
    beta: str | None = None
    """PMPO: KL weight, a number or auto (auto). KTO, DPO, IPO, RPO: inverse temperature (0.1)."""
    score_temperature: float | None = None
    """PMPO on scores: accepted weights softmax(r/eta), rejected softmax(-r/eta) within a prompt, not labels."""
    regularizer: str = "kl"
    """PMPO: kl (exact), or bc: log-likelihood of the unlabelled rows in its place."""
    tau: float = 1.0
    """DRO: temperature of the regularisation."""
    eta: float = 1.0
    """REBEL: step size; 1/eta weighs the log-ratios."""
    value: str = "token"
    """DRO: token, prompt, batch (learned) or prompt-mean, batch-mean (closed form)."""
    value_network: str = "separate"
    """DRO: separate (the paper's) or head, on the policy."""
    sft_weight: float = 1.0
    """RPO: weight of the supervised term."""
    undesirable_weight: float = 1.0
    """KTO: weight of rejected rows, against 1 for accepted ones."""
    standardize: bool = True
    """DRO: rewards to mean 0, variance 1 over the data set."""

    def __post_init__(self) -> None:
        check(self.method in METHODS, "method", self.method, f"one of {', '.join(METHODS)}")
        check(self.preset in (None, *PRESET_ALPHA), "preset", self.preset, f"one of {', '.join(PRESET_ALPHA)}")
        check(self.alpha is None or 0 <= self.alpha <= 1, "alpha", self.alpha, "between 0 and 1")
        alpha = self.alpha if self.preset is None else PRESET_ALPHA[self.preset]
        if self.alpha not in (None, alpha):
            raise UserError(f"--preset {self.preset} sets alpha to {alpha:g}, and --alpha is {self.alpha:g}: give one")
        check(self.beta in (None, "auto") or is_number(self.beta), "beta", self.beta, "a finite number >= 0 or auto")
        check(self.regularizer in ("kl", "bc"), "regularizer", self.regularizer, "kl or bc")
        check_numbers(self, "score_temperature", "tau", "eta", above=0)
        check_numbers(self, "sft_weight", "undesirable_weight", least=0)
        kinds = ("token", "prompt", "batch", "prompt-mean", "batch-mean")
        check(self.value in kinds, "value", self.value, f"one of {', '.join(kinds)}")
        check(self.value_network in ("separate", "head"), "value_network", self.value_network, "separate or head")
        if self.method != "auto":
            self.check_read_by(self.method)

    def check_read_by(self, method: str) -> None:
        """Raises UserError where something is set that `method` does not read."""
        for item in fields(self):
            value, readers = getattr(self, item.name), READ_BY.get(item.name, ("pmpo",))
            known = item.name == "method" or value == item.default or method in readers
            check(known, item.name, value, f"left out: --method {method} does not read it")


def is_number(text: Any) -> bool:
    try:
        return 0 <= float(text) < math.inf
    except (TypeError, ValueError, OverflowError):
        return False


@dataclass(frozen=True)
class DataConfig:
    """How feedback is read."""

    columns: str | None = None
    """Names of your columns, such as prompt=question,completion=answer."""
    separator: str = ""
    """Text put between a plain-string prompt and its completion."""
    max_length: int = 512
    """Longest prompt plus completion, in tokens; what is cut is counted and said."""
    eval_feedback: tuple[str, ...] = ()
    """Files of held-out feedback; without them rows marked held-out, or a fraction, are held out."""
    eval_fraction: float = 0.05
    """Share of the prompts held out for evaluation where no row is marked; 0 holds none out."""
    strict: bool = False
    """A row that cannot be used ends the run."""

    def __post_init__(self) -> None:
        check_numbers(self, "max_length", least=2)
        check_numbers(self, "eval_fraction", least=0, below=1)


@dataclass(frozen=True)
class ModelConfig:
    """How the model is loaded."""

    dtype: str = "float32"
    """float32, or bfloat16: mixed precision, or under LoRA a bfloat16 base."""
    device: str = "auto"
    """auto takes a GPU where there is one."""
    lora_rank: int = 0
    """LoRA rank; 0 trains every weight."""
    lora_alpha: int | None = None
    """LoRA scale; twice the rank where not given."""
    lora_targets: str = "all-linear"
    """LoRA's modules, with commas between."""
    gradient_checkpointing: bool = False
    """Less memory, about a third more time."""
    head: str = "fused"
    """fused never holds a row of logits longer than it must; plain is the slow, obvious one, to compare with."""
    attention: str = ""
    """transformers' name of an implementation, as sdpa or flash_attention_2; its own choice where not given."""
    batching: str = "auto"
    """auto reads a prompt once for all its completions, and packs rows under flash attention; rows does neither."""
    reference_dtype: str = ""
    """float32 or bfloat16; the policy's own where not given. Not with LoRA, whose reference is its base."""
    reference_device: str = ""
    """Where the reference lies, as cpu; beside the policy where not given. Not with LoRA."""
    reference_cache: str = ""
    """Folder that keeps what the reference said by content, for later epochs and runs: log-probs, or for methods with
    an exact KL hidden states, 4 bytes a width and token (2 in bfloat16)."""
    trust_remote_code: bool = False
    """Let the model's folder run code of its own."""
    temperature: float = 1.0
    """Of sampling; part of the policy, so in its likelihoods too."""
    max_new_tokens: int | None = None
    """Longest sample; the longest completion of the feedback where not given, 256 at most."""

    def __post_init__(self) -> None:
        check(self.head in ("fused", "plain"), "head", self.head, "fused or plain")
        check(self.batching in ("auto", "rows"), "batching", self.batching, "auto or rows")
        kinds = ("", "float32", "bfloat16")
        check(self.reference_dtype in kinds, "reference_dtype", self.reference_dtype, "float32 or bfloat16")
        for name in ("reference_dtype", "reference_device"):
            alone = not self.lora_rank or not getattr(self, name)
            check(alone, name, getattr(self, name), "left out with --lora-rank: the base is the reference")
        check_numbers(self, "lora_rank", least=0)
        check_numbers(self, "temperature", above=0)
        check_numbers(self, "lora_alpha", "max_new_tokens", least=1)


@dataclass(frozen=True)
class TrainConfig:
    """How it learns."""

    lr: float | None = None
    """Learning rate; 1e-4 with LoRA, DRO or below 100M parameters, else 1e-5."""
    value_lr: float | None = None
    """DRO's value network's; the policy's where not given."""
    optimizer: str = "adamw"
    """adamw, or adafactor (the DRO paper's)."""
    batch_size: int = 32
    """Contexts an optimizer step."""
    micro_batch_size: int = 0
    """Contexts measured at a time; 0 takes the batch whole. The gradient is the same."""
    micro_batch_tokens: int = 0
    """Prompt and completion tokens measured at a time; 0 does not limit them. The gradient is the same."""
    epochs: float = 1.0
    """Passes over the feedback, where max-steps is not given."""
    max_steps: int | None = None
    """Optimizer steps."""
    lr_schedule: str = "constant"
    """constant, or linear: down to 0 at the last step. After the warm-up."""
    warmup_steps: int | None = None
    """Linear warm-up; a tenth of the steps where not given, 150 at most."""
    max_grad_norm: float = 1.0
    """Gradients are clipped to it; 0 does not clip."""
    weight_decay: float = 0.0
    """AdamW's."""
    seed: int = 0
    """Of shuffling, held-out rows and samples."""

    def __post_init__(self) -> None:
        check_numbers(self, "lr", "value_lr", above=0)
        check(self.optimizer in ("adamw", "adafactor"), "optimizer", self.optimizer, "adamw or adafactor")
        check(self.lr_schedule in ("constant", "linear"), "lr_schedule", self.lr_schedule, "constant or linear")
        check_numbers(self, "batch_size", "max_steps", least=1)
        check_numbers(
            self,
            "micro_batch_size",
            "micro_batch_tokens",
            "warmup_steps",
            "max_grad_norm",
            "weight_decay",
            "seed",
            least=0,
        )
        check_numbers(self, "epochs", above=0, most=1_000_000)


@dataclass(frozen=True)
class RunConfig:
    """What is watched, kept and when it stops."""

    eval_every: int = 50
    """Steps between evaluations; 0 evaluates before and after only."""
    eval_samples: int = 64
    """Fresh samples for the KLs and the report."""
    eval_rows: int = 256
    """Held-out rows looked at, at most."""
    save_every: int = 50
    """Steps between checkpoints; 0 keeps none."""
    log_every: int = 5
    """Steps between measurements of exact KL and drift."""
    kl_budget: float | None = None
    """Stop when KL(pi || pi_ref) on fresh samples passes so many nats; the model within it is kept."""
    resume: bool = False
    """Go on from the last checkpoint in --out."""
    tracker: str = "tensorboard"
    """tensorboard, wandb, trackio or none; metrics.jsonl is always written."""
    profile: bool = False
    """Look at steps 3 to 7 with torch's profiler: profile.json (a trace) and profile.txt in --out."""
    threads: int = 0
    """CPU threads; 0 leaves torch's own choice."""

    def __post_init__(self) -> None:
        check_numbers(self, "log_every", "eval_samples", least=1)
        check_numbers(self, "eval_every", "eval_rows", "save_every", least=0)
        check_numbers(self, "threads", least=0, most=1024)
        check_numbers(self, "kl_budget", above=0)


@dataclass(frozen=True)
class AlignConfig:
    """One alignment run."""

    feedback: tyro.conf.Positional[tuple[str, ...]] = ()
    """Files or folders of feedback."""
    model: str = ""
    """A folder that transformers can load, a hub id, or small-lm for the model that Valence carries."""
    out: str = ""
    """Folder to write into."""
    method: MethodConfig = field(default_factory=MethodConfig)
    data: DataConfig = field(default_factory=DataConfig)
    network: ModelConfig = field(default_factory=ModelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    run: RunConfig = field(default_factory=RunConfig)


TOP = ("feedback", "model", "out")
GROUPS: dict[str, type] = {
    "method": MethodConfig, "data": DataConfig, "network": ModelConfig, "train": TrainConfig, "run": RunConfig,
}  # fmt: skip


def align_config(**options: Any) -> AlignConfig:
    """An `AlignConfig` from flat names (`lr=1e-4, method="pmpo", …`), as in config.yaml and on the command line.

    Raises:
        UserError: an unknown name or a wrong value.
    """
    return build(AlignConfig, GROUPS, options, paths=("feedback", "eval_feedback"), command="align")


def build(
    kind: Any, groups: Mapping[str, type], options: Mapping[str, Any], *, paths: Sequence[str], command: str
) -> Any:
    """A run's config from flat names.

    Args:
        groups: field of `kind` -> its dataclass; the other fields are texts, or paths.
        paths: which fields hold paths.
    """
    owner = {item.name: group for group, part in groups.items() for item in fields(part)}
    chosen: dict[str, dict[str, Any]] = {group: {} for group in groups}
    top: dict[str, Any] = {}
    for name, value in options.items():
        if name in paths:
            value = _paths(name, value)
        if name in owner:
            chosen[owner[name]][name] = value
        elif any(item.name == name and name not in groups for item in fields(kind)):
            top[name] = value if name in paths else _text(name, value)
        else:
            raise UserError(f"there is no field {name!r}; see valence {command} --help")
    for group, part in groups.items():
        for item in fields(part):
            if item.name in chosen[group]:
                chosen[group][item.name] = _typed(item.name, item.type, chosen[group][item.name])
    return kind(**top, **{group: part(**chosen[group]) for group, part in groups.items()})


def check_complete(config: AlignConfig) -> None:
    """Raises UserError where feedback, model or out is missing."""
    missing = [name for name in TOP if not getattr(config, name)]
    if missing:
        raise UserError(f"{', '.join(missing)} missing: valence align FEEDBACK --model MODEL --out DIR")


def _paths(name: str, value: Any) -> tuple[str, ...]:
    """A path or a list of paths, as texts."""
    given = [] if value is None else list(value) if isinstance(value, list | tuple) else [value]
    check(all(isinstance(path, str | PathLike) for path in given), name, value, "a path or a list of paths")
    return tuple(fspath(path) for path in given)


def _text(name: str, value: Any) -> str:
    """The value as text: YAML reads a folder named 2024 as a number."""
    fits = value is None or (isinstance(value, str | int | float | PathLike) and not isinstance(value, bool))
    check(fits, name, value, "text")
    return "" if value is None else str(value)


def _typed(name: str, kind: Any, value: Any) -> Any:
    """The value as the field's type: YAML reads 1e-4 as text and 1 as a whole number."""
    optional = kind.endswith(" | None")
    if value is None and optional:
        return None
    reader = {"float": float, "int": int, "str": str}.get(kind.removesuffix(" | None"))
    if kind == "bool":
        check(isinstance(value, bool), name, value, "true or false")
    if reader is None:
        return value
    if reader is str:
        check(value is not None, name, value, "text")
        return _text(name, value)
    try:
        whole = kind.startswith("int") and isinstance(value, float) and not value.is_integer()
        if isinstance(value, bool) or whole:
            raise ValueError
        return reader(value)
    except (TypeError, ValueError, OverflowError):
        check(False, name, value, f"of kind {reader.__name__}")


def flat(config: Any) -> dict[str, Any]:
    """The fields of a config by their flat names: what `align_config` takes."""
    out: dict[str, Any] = {}
    for item in fields(config):
        value = getattr(config, item.name)
        if is_dataclass(value):
            out |= flat(value)
        else:
            out[item.name] = list(value) if isinstance(value, tuple) else value
    return out


def parse_columns(text: str | None) -> dict[str, str]:
    """`prompt=question,completion=answer` as a dictionary.

    Raises:
        UserError: it is not of that form.
    """
    pairs = [part.split("=") for part in (text or "").split(",") if part.strip()]
    if any(len(pair) != 2 or not all(side.strip() for side in pair) for pair in pairs):
        raise UserError(f"--columns is {text!r}, and must look like prompt=question,completion=answer")
    return {ours.strip(): theirs.strip() for ours, theirs in pairs}
