"""Prompts and completions as token ids: padded in a batch, or as rows with little padding that run together.

Shape legend: N contexts · K actions of each · R rows · S prompt tokens · T steps · M steps of all rows · L tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from valence.types import Action, TokenContext


@dataclass(frozen=True)
class Rows:
    """The present actions of a batch as R rows, padding trimmed to what these rows need.

    Args:
        context, context_mask: prompts, padded on the left, `[R, S]`.
        steps, mask: completions, padded on the right, `[R, T]`.
        owner: the context of each row, `[R]`.
    """

    context: Int[Tensor, "R S"]
    context_mask: Bool[Tensor, "R S"]
    steps: Int[Tensor, "R T"]
    mask: Bool[Tensor, "R T"]
    owner: Int[Tensor, " R"]

    def to(self, device: torch.device) -> Rows:
        return Rows(*(part.to(device) for part in vars(self).values()))

    def pick(self, which: Int[Tensor, " r"]) -> Rows:
        """Some of the rows, with the padding trimmed to what they need."""
        context_mask, mask = self.context_mask[which], self.mask[which]
        prompt = slice(context_mask.shape[1] - int(context_mask.sum(-1).max()), None)
        real = slice(int(mask.sum(-1).max()))
        context, steps = self.context[which][:, prompt], self.steps[which][:, real]
        return Rows(context, context_mask[:, prompt], steps, mask[:, real], self.owner[which])

    @property
    def lengths(self) -> tuple[list[int], list[int]]:
        """(prompt tokens, steps) of each row."""
        return self.context_mask.sum(-1).tolist(), self.mask.sum(-1).tolist()

    def by_length(
        self, rows: Sequence[int], budget: int, size: Callable[[list[int], list[int]], int]
    ) -> list[Int[Tensor, " r"]]:
        """Split `rows` into pieces of similar length, each within `budget` tokens, padding included.

        Args:
            size: (prompt lengths, step lengths) of a piece -> the tokens that it takes, padding included.
        """
        prompts, steps = self.lengths
        rows = sorted(rows, key=lambda row: (prompts[row] + steps[row], prompts[row]))
        pieces = split(rows, lambda piece: size([prompts[i] for i in piece], [steps[i] for i in piece]) <= budget)
        return [torch.tensor(piece, device=self.steps.device) for piece in pieces]

    def joined(self) -> tuple[Int[Tensor, "R L"], Bool[Tensor, "R L"]]:
        """Each row's prompt and steps side by side, padded on the right: (ids, mask)."""
        return pad_right(torch.cat([self.context, self.steps], 1), torch.cat([self.context_mask, self.mask], 1))

    def packed(self) -> tuple[Int[Tensor, "1 L"], Int[Tensor, "1 L"], Int[Tensor, " M"]]:
        """All rows one after another, without padding.

        Returns:
            (ids, positions that start at 0 in every row, the place of the token before each step).
        """
        mask = torch.cat([self.context_mask, self.mask], 1)
        ids = torch.cat([self.context, self.steps], 1)[mask]
        place = mask.flatten().cumsum(0).view_as(mask) - 1
        before = place[:, self.context.shape[1] :][self.mask] - 1
        return ids[None], (mask.long().cumsum(-1) - 1)[mask][None], before


def split(items: Iterable[int], fits: Callable[[list[int]], bool]) -> list[list[int]]:
    """Neighbours in pieces as large as fit; an item that does not fit is a piece of its own."""
    pieces: list[list[int]] = []
    for item in items:
        if pieces and fits([*pieces[-1], item]):
            pieces[-1].append(item)
        else:
            pieces.append([item])
    return pieces


def present_rows(context: TokenContext, action: Action) -> Rows:
    """The actions with at least one step, as rows, context by context; ValueError as in `check_padding`."""
    check_padding(context, action)
    present = action.mask.any(-1)
    which = present.nonzero()[:, 0]
    rows = Rows(context.ids[which], context.mask[which], action.steps[present], action.mask[present], which)
    return rows.pick(torch.arange(len(which), device=which.device)) if len(which) else rows


def check_padding(context: TokenContext, action: Action | None = None) -> None:
    """Refuse padding on the wrong side: trimming it would drop tokens, and log pi would be wrong.

    Raises:
        ValueError: a prompt token stands before padding, or a step after it.
    """
    gaps = (context.mask[:, :-1] & ~context.mask[:, 1:]).any()
    if action is not None:
        gaps = gaps | (action.mask[..., 1:] & ~action.mask[..., :-1]).any()
    if bool(gaps):
        raise ValueError(
            "prompts must be padded on the left and steps on the right, and these are not: tokenize with "
            "`padding_side='left'`, or build them with `pad_left` and `pad_actions` of `valence.data.collate`"
        )


def pad_right(ids: Int[Tensor, "R L"], mask: Bool[Tensor, "R L"]) -> tuple[Int[Tensor, "R L"], Bool[Tensor, "R L"]]:
    """The same rows, their tokens moved to the left in their order, and the padding behind them."""
    order = (~mask).int().argsort(dim=-1, stable=True)
    return ids.gather(-1, order), mask.gather(-1, order)
