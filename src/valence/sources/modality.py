"""How completions are drawn: the settings, and what differs between text and images.

Shape legend: see `valence.types`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from valence.sources.prompts import EncodedPrompt
from valence.types import Action

TOGETHER = 512
"""Most completions that go through the model at once: a batch may be a whole data set."""


@dataclass(frozen=True, kw_only=True)
class OnlineSettings:
    """How completions are drawn and judged.

    Args:
        batch_size: prompts in a batch.
        num_samples: K, completions drawn for each prompt.
        kl_weight: gamma, reward per nat, >= 0.
        unfinished_reward: reward of a completion that does not end; None keeps the judge's.
        from_reference: draw from the reference, as online PMPO does, and not from the policy.
        num_given: completions of its own row that are judged beside the drawn ones (REBEL's hybrid form).
    Raises:
        ValueError: a field out of range.
    """

    batch_size: int = 32
    num_samples: int = 2
    kl_weight: float = 0.0
    unfinished_reward: float | None = None
    from_reference: bool = False
    num_given: int = 0

    def __post_init__(self) -> None:
        for name, least in (("batch_size", 1), ("num_samples", 1), ("kl_weight", 0), ("num_given", 0)):
            if not getattr(self, name) >= least:
                raise ValueError(f"{name} is {getattr(self, name)}, and must be at least {least}")

    def parts(self, num_contexts: int) -> list[slice]:
        """Slices of the contexts whose completions go through the model together."""
        size = max(1, TOGETHER // (self.num_samples + self.num_given))
        return [slice(start, min(start + size, num_contexts)) for start in range(0, num_contexts, size)]


class Drawn(NamedTuple):
    """Completions of a batch of prompts.

    Args:
        action: the completions with their `output`, `[N, K, T, ...]`; the drawn ones come before the given ones.
        log_prob: log pi_t of each step, `[N, K, T]`, if drawing gives it; None if it must be measured.
        ended: which completions end, `[N, K]`; None where every completion does.
    """

    action: Action
    log_prob: Float[Tensor, "N K T"] | None = None
    ended: Bool[Tensor, "N K"] | None = None


@runtime_checkable
class Modality(Protocol):
    """What differs between kinds of completions. It keeps nothing from one call to the next.

    Attributes:
        unit: what is counted for speed.
    """

    unit: str

    def context(self, policy: Any, prompts: Sequence[EncodedPrompt]) -> Any:
        """The prompts in the form that the policy reads."""
        ...

    def draw(
        self, policy: Any, context: Any, prompts: Sequence[EncodedPrompt], settings: OnlineSettings,
        generator: torch.Generator,
    ) -> Drawn:  # fmt: skip
        """Draw `num_samples` completions of each prompt from `policy`, and append `num_given` of its row's own."""
        ...
