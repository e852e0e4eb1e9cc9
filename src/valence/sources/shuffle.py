"""Rows in a random order, epoch by epoch, which a run can resume at any row."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from valence.errors import UserError


class Shuffle:
    """Row numbers of a data set; each epoch is a permutation drawn from the seed and the epoch's number.

    Args:
        size: number of rows, >= 1.
        seed: of all permutations.
        what: what the rows are, for messages ("prompts").
        content: gives the bytes of all rows. A resumed run is refused if they have changed.
    """

    def __init__(self, size: int, *, seed: int, what: str, content: Callable[[], Iterable[bytes]]) -> None:
        self.size, self.seed, self.what, self.content = size, seed, what, content
        self.epoch, self.position = 0, 0
        self._order: tuple[int, int, Tensor] | None = None

    def take(self, count: int) -> Tensor:
        """The next `count` row numbers, fewer at the end of an epoch."""
        if self.position >= self.size:
            self.epoch, self.position = self.epoch + 1, 0
        picks = self.order()[self.position : self.position + count]
        self.position += len(picks)
        return picks

    def order(self) -> Tensor:
        """The permutation of this epoch."""
        if self._order is None or self._order[:2] != (self.seed, self.epoch):
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
            self._order = (self.seed, self.epoch, torch.randperm(self.size, generator=generator))
        return self._order[2]

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of all rows."""
        digest = hashlib.sha256()
        for part in self.content():
            digest.update(part)
        return digest.hexdigest()

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self.epoch, "position": self.position, "seed": self.seed, "rows": self.fingerprint}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises UserError if the state is of other rows."""
        if state.get("rows") != self.fingerprint:
            raise UserError(
                f"`resume` needs the {self.what} that the run began with, and they have changed: give another `out`"
            )
        self.epoch, self.position, self.seed = state["epoch"], state["position"], state["seed"]
