"""What runs on language models share: the model, its reference, its learning rate and its learner."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from valence.data.collate import Encoder
from valence.data.prompting import Prompting
from valence.errors import UserError
from valence.policies.language import LanguagePolicy
from valence.policies.loading import DTYPES, check_device, load_language_policy
from valence.runs.methods import Method
from valence.runs.options import (
    DataOptions,
    ModelOptions,
    PromptOptions,
    ReferenceOptions,
    RunOptions,
    SamplingOptions,
    TrainOptions,
    ValueNetwork,
)
from valence.runs.settings import NoOptions, RunConfig
from valence.training.learner import Learner, make_optimizer
from valence.training.reference import AdaptersOff, FrozenCopy

SMALL_NETWORK = 100_000_000
"""Parameters below which a network's default learning rate is the higher one."""


@dataclass(frozen=True)
class LanguageConfig(RunConfig):
    """What the configurations of `align` and `improve` share."""

    model: str = ""
    """A folder that transformers can load, a hub id, or small-lm, which Valence carries."""
    out: str = ""
    """Folder to write into."""
    options: Any = field(default_factory=NoOptions)
    data: DataOptions = field(default_factory=DataOptions)
    network: ModelOptions = field(default_factory=ModelOptions)
    reference: ReferenceOptions = field(default_factory=ReferenceOptions)
    sampling: SamplingOptions = field(default_factory=SamplingOptions)
    train: TrainOptions = field(default_factory=TrainOptions)
    run: RunOptions = field(default_factory=RunOptions)

    def check_complete(self) -> None:
        super().check_complete()
        for name in ("reference_dtype", "reference_device"):
            if self.network.lora_rank and getattr(self.reference, name):
                raise UserError(f"`{name}` must be left out with `lora_rank`: the base model is the reference")


def device_of(name: str) -> str:
    """The device; "auto" takes a GPU where there is one."""
    return ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name


def prompting_of(options: PromptOptions) -> Prompting:
    """How prompts are given to the model. A shell's \\n and \\t in the separator are a newline and a tab."""
    separator = options.separator
    if separator is not None:
        separator = separator.replace("\\n", "\n").replace("\\t", "\t")
    return Prompting(separator, options.chat_template, options.system)


def make_encoder(policy: LanguagePolicy, data: DataOptions) -> Encoder:
    """What turns rows into token ids of the policy's model, at most as many as it has positions."""
    return Encoder(
        policy.tokenizer, prompting_of(data), encoder_decoder=policy.encoder_decoder, max_length=data.max_length,
        positions=positions_of(policy, 0) or None, end_token_ids=policy.end_token_ids,
    )  # fmt: skip


def load_policy(model: str, network: ModelOptions, *, temperature: float = 1.0) -> LanguagePolicy:
    """The language policy as the options describe it."""
    options = vars(network) | {"device": device_of(network.device), "temperature": temperature}
    del options["micro_batch_tokens"]
    return load_language_policy(model, **options)


def positions_of(policy: LanguagePolicy, otherwise: int) -> int:
    """Positions that the model has; `otherwise` where it does not say."""
    return getattr(policy.core.config, "max_position_embeddings", None) or otherwise


def initial_reference(policy: LanguagePolicy, network: ModelOptions, options: ReferenceOptions) -> Any:
    """The initial policy as a reference: the model with its adapters off, or a copy."""
    if network.lora_rank:
        return AdaptersOff(policy)
    if options.reference_device:
        check_device(options.reference_device)
    dtype = DTYPES[options.reference_dtype] if options.reference_dtype else None
    return FrozenCopy(policy, dtype=dtype, device=options.reference_device or None)


def learning_rate(train: TrainOptions, network: ModelOptions, policy: LanguagePolicy, *, high: bool) -> float:
    """As given; else 1e-4 with LoRA, below 100M parameters or where `high`, and 1e-5 otherwise."""
    size = sum(part.numel() for part in policy.parameters())
    small = network.lora_rank > 0 or high or size < SMALL_NETWORK
    return train.lr or (1e-4 if small else 1e-5)


def make_learner(
    config: Any, row: Method, policy: Any, objective: Any, reference: Any, *, lr: float, steps: int, eps: float = 1e-8,
    micro_batch_tokens: int = 0,
) -> Learner:  # fmt: skip
    """The learner with the optimizers of the policy and, where the method has one, of its critic.

    Raises:
        UserError: a learning rate is given for a value network that the method does not have.
    """
    train, network = config.train, row.part(ValueNetwork, config.options)
    critic = None if row.critic is None else row.critic(objective, network, policy)
    value_lr = network.value_lr
    if value_lr is not None and critic is None:
        raise UserError(f"`value_lr` is {value_lr}, and must be left out: this method has no value network")
    kind, decay = train.optimizer, train.weight_decay
    optimizers = {"policy": make_optimizer(policy, kind=kind, lr=lr, weight_decay=decay, eps=eps)}
    if critic is not None:
        optimizers["value"] = make_optimizer(critic, kind=kind, lr=value_lr or lr, weight_decay=decay)
    return Learner(
        policy, objective, reference, optimizers, critic=critic, warmup_steps=train.warmup(steps),
        total_steps=steps if train.lr_schedule == "linear" else None, max_grad_norm=train.max_grad_norm,
        micro_batch_size=train.micro_batch_size, micro_batch_tokens=micro_batch_tokens,
    )  # fmt: skip
