"""What the KL is to: a frozen copy of the policy, refreshed every N steps or never, or LoRA's base model."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch


class FrozenCopy:
    """The policy as it was, optionally in another precision or on another device.

    Args:
        policy: copied now, by its `frozen_copy`; a denoiser under LoRA copies its adapters alone.
        refresh_every: optimizer steps after which it is copied anew; 0 never does (offline training).
    """

    def __init__(
        self, policy: Any, *, refresh_every: int = 0, dtype: torch.dtype | None = None, device: str | None = None
    ) -> None:
        self.copy = policy.frozen_copy(dtype=dtype, device=device)
        self.refresh_every = refresh_every

    def active(self) -> AbstractContextManager[Any]:
        return nullcontext(self.copy)

    def trainable(self) -> dict[str, torch.nn.Parameter]:
        """The copy's weights if they are refreshed: a checkpoint must hold them."""
        return dict(self.copy.named_parameters()) if self.refresh_every else {}

    @torch.no_grad()
    def after_step(self, policy: Any, step: int) -> None:
        """Copy the policy anew where `step` (counted from 1) is a multiple of `refresh_every`."""
        if self.refresh_every and step % self.refresh_every == 0:
            for mine, theirs in zip(self.copy.parameters(), policy.parameters(), strict=True):
                mine.copy_(theirs)


class FixedReference:
    """A reference that never moves, so that a checkpoint holds nothing of it."""

    def trainable(self) -> dict[str, torch.nn.Parameter]:
        return {}

    def after_step(self, policy: Any, step: int) -> None:
        pass


class AdaptersOff(FixedReference):
    """LoRA's base model, by switching the adapters off: one model in memory.

    Args:
        policy: must have `adapters_off`, as language models and denoisers do.
    """

    def __init__(self, policy: Any) -> None:
        self.policy = policy

    def active(self) -> AbstractContextManager[Any]:
        return self.policy.adapters_off()
