"""Prompts and completions as token ids: padded in a batch, as rows without it, and what of them runs together.

Shape legend: N contexts · K actions of each · R rows · S prompt tokens · T steps · M steps of all rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from valence.types import Action, TokenContext


@dataclass(frozen=True)
class Rows:
    """The present actions of a batch as R rows, padding trimmed to what these rows need.

    Args:
        owner: which context each row is of.
    """

    context: Int[Tensor, "R S"]
    context_mask: Bool[Tensor, "R S"]
    steps: Int[Tensor, "R T"]
    mask: Bool[Tensor, "R T"]
    owner: Int[Tensor, " R"]

    def to(self, device: torch.device) -> Rows:
        return Rows(*(part.to(device) for part in vars(self).values()))

    def pick(self, which: Int[Tensor, " r"]) -> Rows:
        """Some of the rows, padding trimmed anew: prompts are padded on the left, steps on the right."""
        context_mask, mask = self.context_mask[which], self.mask[which]
        width, length = int(context_mask.sum(-1).max()), int(mask.sum(-1).max())
        start = context_mask.shape[1] - width
        return Rows(
            self.context[which][:, start:], context_mask[:, start:], self.steps[which][:, :length], mask[:, :length],
            self.owner[which],
        )  # fmt: skip

    @property
    def lengths(self) -> tuple[list[int], list[int]]:
        """(prompt tokens, steps) of each row."""
        return self.context_mask.sum(-1).tolist(), self.mask.sum(-1).tolist()

    def by_length(self, budget: int, size: Callable[[list[int], list[int]], int]) -> list[Int[Tensor, " r"]]:
        """Which rows to run together: of like length, each piece within `budget` tokens with its padding.

        Args:
            size: tokens that rows of such prompts and such steps take together, padding counted.
        """
        prompts, steps = self.lengths
        pieces: list[list[int]] = []
        for row in sorted(range(len(steps)), key=lambda row: (prompts[row] + steps[row], prompts[row])):
            grown = [*pieces[-1], row] if pieces else []
            if grown and size([prompts[at] for at in grown], [steps[at] for at in grown]) <= budget:
                pieces[-1] = grown
            else:
                pieces.append([row])
        return [torch.tensor(piece, device=self.steps.device) for piece in pieces]

    def joined(self) -> tuple[Int[Tensor, "R L"], Bool[Tensor, "R L"]]:
        """Each row's prompt and steps side by side, padding behind them: (ids, mask)."""
        return pad_right(torch.cat([self.context, self.steps], 1), torch.cat([self.context_mask, self.mask], 1))

    def packed(self) -> tuple[Int[Tensor, "1 L"], Int[Tensor, "1 L"], Int[Tensor, " M"]]:
        """All rows one after another, without padding: (ids, positions that start anew in every row, where the token
        before each step is)."""
        mask = torch.cat([self.context_mask, self.mask], 1)
        ids = torch.cat([self.context, self.steps], 1)[mask]
        place = mask.flatten().cumsum(0).view_as(mask) - 1
        before = place[:, self.context.shape[1] :][self.mask] - 1
        return ids[None], (mask.long().cumsum(-1) - 1)[mask][None], before


def present_rows(context: TokenContext, action: Action) -> tuple[Rows, Bool[Tensor, "N K"]]:
    """(rows, which of `[N, K]` they are): actions with at least one step."""
    present = action.mask.any(-1)
    which = present.nonzero()[:, 0]
    rows = Rows(context.ids[which], context.mask[which], action.steps[present], action.mask[present], which)
    return (rows.pick(torch.arange(len(which), device=which.device)) if len(which) else rows), present


def pad_right(ids: Int[Tensor, "R L"], mask: Bool[Tensor, "R L"]) -> tuple[Int[Tensor, "R L"], Bool[Tensor, "R L"]]:
    """The same rows with what is real on the left, in its order."""
    order = (~mask).int().argsort(dim=-1, stable=True)
    return ids.gather(-1, order), mask.gather(-1, order)
