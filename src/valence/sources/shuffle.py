"""Rows in a random order, epoch by epoch, which a run can resume at any row."""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Iterable
from typing import Any, ClassVar

import torch
from torch import Tensor

from valence.errors import UserError


@functools.lru_cache(maxsize=2)
def permutation(size: int, seed: int, epoch: int) -> Tensor:
    """The order of `size` rows in an epoch, drawn from the seed and the epoch's number."""
    return torch.randperm(size, generator=torch.Generator().manual_seed(seed * 1_000_003 + epoch))


class ShuffledSource:
    """The base of sources with a data set: row numbers in the order of a `permutation` for each epoch.

    Args:
        size: number of rows, >= 1.
        batch_size: rows in a batch; the last batch of an epoch may be smaller.
        seed: of all permutations.
    Raises:
        ValueError: a batch size below 1.
    """

    what: ClassVar[str]
    """What the rows are, for messages ("prompts")."""

    def __init__(self, size: int, *, batch_size: int, seed: int) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}, and must be at least 1")
        self.size, self.batch_size, self.seed = size, batch_size, seed
        self.epoch = self.position = self.num_units = 0
        self.figures: dict[str, float] = {}

    @property
    def batches_per_epoch(self) -> int:
        return math.ceil(self.size / self.batch_size)

    def content(self) -> Iterable[bytes]:
        """The bytes of all rows. A resumed run is refused if they have changed."""
        raise NotImplementedError

    def take(self, count: int) -> Tensor:
        """The next `count` row numbers, fewer at the end of an epoch."""
        if self.position >= self.size:
            self.epoch, self.position = self.epoch + 1, 0
        picks = self.order()[self.position : self.position + count]
        self.position += len(picks)
        return picks

    def order(self) -> Tensor:
        """The permutation of this epoch."""
        return permutation(self.size, self.seed, self.epoch)

    @functools.cached_property
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
