"""A data set on disk as a source of batches: shuffled anew each epoch, resumable at any batch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import cycle, islice
from typing import Any

import torch

from valence.data.collate import EncodedGroup, collate, move
from valence.errors import UserError
from valence.sources.shuffle import Shuffle
from valence.types import Batch


class OfflineSource:
    """Batches of `batch_size` contexts in the order of a `Shuffle`.

    Args:
        rows: encoded groups, all with the same kind of feedback.
        batch_size: contexts in a batch; the last batch of an epoch may be smaller.
        pad: id of the padding token.
        seed: of the shuffling.
        device: where the batches are put.
        mismatched: give each context a completion of another context, for KTO's baseline.
    Raises:
        ValueError: no rows, or a batch size below 1.
        UserError: `mismatched`, and there is no other context.
    """

    unit = "tokens"

    def __init__(
        self, rows: Sequence[EncodedGroup], *, batch_size: int, pad: int, seed: int = 0, mismatched: bool = False,
        device: torch.device | str = "cpu",
    ) -> None:  # fmt: skip
        if not rows:
            raise ValueError("an offline source needs at least one row")
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}, and must be at least 1")
        if mismatched and len(rows) < 2:
            raise UserError(
                "KTO's baseline is measured on completions of other rows, and the data set has one row: add rows, or "
                'set `baseline="none"`'
            )
        self.rows, self.batch_size, self.pad = rows, batch_size, pad
        self.mismatched, self.device = mismatched, device
        self.shuffle = Shuffle(len(rows), seed=seed, what="rows of feedback", content=self._content)
        self.figures: dict[str, float] = {}
        self.num_units = 0
        self._one_prompt = mismatched and len({tuple(row.prompt) for row in rows}) == 1

    @property
    def batches_per_epoch(self) -> int:
        return math.ceil(len(self.rows) / self.batch_size)

    def next(self, policy: Any = None) -> Batch:
        """The next batch. `num_units` is then the number of its tokens without padding."""
        picks = self.shuffle.take(self.batch_size).tolist()
        chosen = [self.rows[pick] for pick in picks]
        self.num_units = sum(row.num_tokens for row in chosen)
        others = self._mismatched(chosen) if self.mismatched else None
        return move(collate(chosen, pad=self.pad, mismatched=others), self.device)

    def _mismatched(self, chosen: Sequence[EncodedGroup]) -> list[EncodedGroup]:
        """For each row of the batch another row with another prompt.

        It is the next such row of the batch, cyclically. If all rows of the batch have one prompt, the rows come from
        the rest of the data set, in the epoch's order. If the whole data set has one prompt, it is just another row.
        """
        size = len(chosen)
        if any(row.prompt != chosen[0].prompt for row in chosen):
            following = ((row, (chosen[(n + i) % size] for i in range(1, size))) for n, row in enumerate(chosen))
            return [next(other for other in others if other.prompt != row.prompt) for row, others in following]
        if self._one_prompt:
            return [*chosen[1:], chosen[0]] if size > 1 else [next(self._later())]
        others = list(islice((row for row in self._later() if row.prompt != chosen[0].prompt), size))
        return list(islice(cycle(others), size))

    def _later(self) -> Iterator[EncodedGroup]:
        """The rows that follow the current batch in the epoch's order, cyclically; the batch's own come last."""
        order = self.shuffle.order().roll(-self.shuffle.position)
        return (self.rows[place] for place in order.tolist())

    def _content(self) -> Iterable[bytes]:
        rows = (f"{r.prompt}{r.completions}{r.group.sign}{r.group.reward}{r.group.wins}" for r in self.rows)
        return ["\n".join(rows).encode()]

    def state_dict(self) -> dict[str, Any]:
        return self.shuffle.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises UserError if the state is of other rows."""
        self.shuffle.load_state_dict(state)
