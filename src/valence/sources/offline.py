"""A data set on disk as a source of batches: shuffled anew each epoch, resumable at any batch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import cycle, islice

import torch

from valence.data.collate import EncodedGroup, collate, move
from valence.errors import UserError
from valence.sources.shuffle import ShuffledSource
from valence.types import Batch


class OfflineSource(ShuffledSource):
    """Batches of `batch_size` contexts in random order.

    Args:
        rows: encoded groups, all with the same kind of feedback.
        batch_size: contexts in a batch.
        pad: id of the padding token.
        seed: of the shuffling.
        device: where the batches are put.
        mismatched: give each context a completion of another context, for KTO's baseline.
    Raises:
        ValueError: no rows, or a batch size below 1.
        UserError: `mismatched`, and there is no other context.
    """

    unit, what = "tokens", "rows of feedback"

    def __init__(
        self, rows: Sequence[EncodedGroup], *, batch_size: int, pad: int, seed: int = 0, mismatched: bool = False,
        device: torch.device | str = "cpu",
    ) -> None:  # fmt: skip
        if not rows:
            raise ValueError("an offline source needs at least one row")
        if mismatched and len(rows) < 2:
            raise UserError(
                "KTO's baseline is measured on completions of other rows, and the data set has one row: add rows, or "
                'set `baseline="none"`'
            )
        super().__init__(len(rows), batch_size=batch_size, seed=seed)
        self.rows, self.pad, self.mismatched, self.device = rows, pad, mismatched, device
        self._one_prompt = mismatched and all(row.prompt == rows[0].prompt for row in rows)

    def next(self, policy: object = None) -> Batch:
        """The next batch. `num_units` is then the number of its tokens without padding."""
        picks = self.take(self.batch_size).tolist()
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
        return (self.rows[place] for place in self.order().roll(-self.position).tolist())

    def content(self) -> Iterable[bytes]:
        for place, r in enumerate(self.rows):
            line = f"{r.prompt}{r.completions}{r.group.sign}{r.group.reward}{r.group.wins}"
            yield (f"\n{line}" if place else line).encode()
