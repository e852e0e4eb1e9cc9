"""Rewards standardised by each prompt's recent rewards.

    a = clip((r - mean_x) / (std_x + 1e-6), -c, c)

mean_x and std_x are of prompt x's latest rewards, this batch's included, or of all of the batch's rewards while the
prompt has too few.

Source: REBEL paper, H.3.3 ("rolling statistics"); the tracker is that of Black et al. 2024 (DDPO), section 4.3.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor


class RunningStandard:
    """Standardises rewards prompt by prompt, and stores each prompt's latest rewards.

    Args:
        size: rewards stored for each prompt, >= 2; 0 does not standardise.
        least: number of rewards from which on a prompt's own statistics are used, from 2 to `size`.
        clip: c, in standard deviations, > 0.
    Raises:
        ValueError: a number out of range.
    """

    def __init__(self, *, size: int = 32, least: int = 16, clip: float = 10.0) -> None:
        if size < 0 or size == 1 or least < 2 or clip <= 0 or (size and least > size):
            raise ValueError(
                f"`size` is {size}, `least` {least} and `clip` {clip:g}: `size` must be 0 or at least 2, `least` at "
                "least 2 and at most `size`, `clip` above 0"
            )
        self.size, self.least, self.clip = size, least, clip
        self.known: dict[str, deque[float]] = {}

    def __call__(
        self, prompts: Sequence[str], value: Float[Tensor, "N K"], present: Bool[Tensor, "N K"]
    ) -> Float[Tensor, "N K"]:
        """Standardised rewards, 0 where absent. The batch's own rewards count in the statistics."""
        if not self.size:
            return torch.where(present, value, 0.0)
        for prompt, row, there in zip(prompts, value.tolist(), present.tolist(), strict=True):
            known = self.known.setdefault(prompt, deque(maxlen=self.size))
            known.extend(reward for reward, known_here in zip(row, there, strict=True) if known_here)
        # In double precision: in float32 the mean of equal rewards is as far from them as the 1e-6 of the divisor.
        exact = value.to("cpu", torch.float64)
        whole = exact[present.cpu()]
        rows = []
        for prompt, row in zip(prompts, exact, strict=True):
            own = self.known[prompt]
            of = torch.tensor(list(own), dtype=exact.dtype) if len(own) >= self.least else whole
            rows.append((row - of.mean()) / (of.std(correction=0) + 1e-6) if len(of) else row)
        scaled = torch.stack(rows).clamp(-self.clip, self.clip).to(value)
        return torch.where(present, scaled, 0.0)

    def state_dict(self) -> dict[str, Any]:
        return {"known": {prompt: list(values) for prompt, values in self.known.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.known = {prompt: deque(values, maxlen=self.size) for prompt, values in state["known"].items()}
