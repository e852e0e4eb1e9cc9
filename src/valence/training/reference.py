"""What the KL is to: a frozen copy, refreshed every N steps, a moving average, or LoRA's base with adapters off."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch


class FrozenCopy:
    """The policy as it was, optionally in another precision or on another device.

    Args:
        policy: copied now; must offer `frozen_copy(dtype=, device=)`.
        refresh_every: copy it anew every so many steps; 0 never does (offline training).
        ema: in (0, 1): move towards the policy by 1 - ema at each step instead.
    Raises:
        ValueError: both refreshing and a moving average are asked for.
    """

    def __init__(
        self, policy: Any, *, refresh_every: int = 0, ema: float | None = None,
        dtype: torch.dtype | None = None, device: str | None = None,
    ) -> None:  # fmt: skip
        if refresh_every and ema is not None:
            raise ValueError("a reference is refreshed every N steps or averaged, not both")
        self.copy = policy.frozen_copy(dtype=dtype, device=device)
        self.refresh_every, self.ema = refresh_every, ema

    @contextlib.contextmanager
    def active(self) -> Iterator[Any]:
        yield self.copy

    def trainable(self) -> dict[str, torch.nn.Parameter]:
        """What a checkpoint must hold: the copy's weights, if it moves."""
        return dict(self.copy.named_parameters()) if self.refresh_every or self.ema is not None else {}

    @torch.no_grad()
    def after_step(self, policy: Any, step: int) -> None:
        """Called by the learner after optimizer step number `step` (from 1)."""
        rate = 1.0 if self.refresh_every and step % self.refresh_every == 0 else 0.0
        if self.ema is not None:
            rate = 1.0 - self.ema
        if rate:
            for mine, theirs in zip(self.copy.parameters(), policy.parameters(), strict=True):
                mine.lerp_(theirs.to(mine), rate) if rate < 1.0 else mine.copy_(theirs)


class AdaptersOff:
    """LoRA's base model, by switching the adapters off: one model in memory."""

    def __init__(self, policy: Any) -> None:
        self.policy = policy

    @contextlib.contextmanager
    def active(self) -> Iterator[Any]:
        with self.policy.adapters_off() as base:
            yield base

    def after_step(self, policy: Any, step: int) -> None:
        """Nothing to do: the base never moves."""
