"""Value estimates: what DRO-V subtracts from the reward.

Shape legend: see `valence.types`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from valence.policies.language import present_rows
from valence.types import Batch


class TokenValue(nn.Module):
    """A value for each step of a language action, V(x, y_<t), or for each prompt, V(x).

    Args:
        backbone: a language policy whose last hidden states are read. Its own copy for a separate network (the
            default of the DRO paper, Fig. 5: two networks win); the policy itself for a head on the policy.
        shared: whether `backbone` is the policy (then only the head belongs to this critic; the gradient still
            flows into the backbone).
        per: "token" gives `[N, K, T]`; "prompt" gives `[N, 1]`, read where the first step is predicted.
    The head starts at zero, so V starts at 0, the mean of standardised rewards.
    """

    def __init__(self, backbone: Any, *, shared: bool = False, per: str = "token") -> None:
        super().__init__()
        if per not in ("token", "prompt"):
            raise ValueError(f"per is {per!r}, and must be 'token' or 'prompt'")
        # A shared backbone is kept out of this module's own parameters.
        self._backbone: Any = [backbone] if shared else nn.ModuleList([backbone])
        self.per, self.shared = per, shared
        self.head = nn.Linear(backbone.core.get_output_embeddings().weight.shape[1], 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self.to(backbone.device)

    def value(self, batch: Batch) -> Float[Tensor, "..."]:
        """V of the batch's actions, differentiable, zero where an action has no step."""
        rows, present = present_rows(batch.context, batch.action)
        values = self.head(self._backbone[0].hidden_at_steps(rows).float())[:, 0]
        place = torch.zeros_like(batch.action.mask)
        place[..., : rows.mask.shape[1]][present] = rows.mask
        values = torch.zeros(place.shape, device=values.device).masked_scatter(place, values)
        if self.per == "token":
            return values
        # V(x): the state before the first step is the same for every present action of a context.
        first = present.int().argmax(-1, keepdim=True)
        return values[..., 0].gather(-1, first)

    def trainable(self) -> dict[str, nn.Parameter]:
        return {name: part for name, part in self.named_parameters() if part.requires_grad}


class BatchValue(nn.Module):
    """One learned value for everything: the state-independent baseline of DRO's section 3.2.

    Args:
        device: where it lies: the policy's device, whose likelihoods it is subtracted beside.
    """

    def __init__(self, *, device: torch.device | str | None = None) -> None:
        super().__init__()
        self.constant = nn.Parameter(torch.zeros((), device=device))

    def value(self, batch: Batch) -> Float[Tensor, ""]:
        return self.constant

    def trainable(self) -> dict[str, nn.Parameter]:
        return dict(self.named_parameters())


def trainable_parameters(module: Any) -> Iterator[nn.Parameter]:
    """The parameters that learn, of a policy or a critic."""
    return (part for part in module.parameters() if part.requires_grad)
