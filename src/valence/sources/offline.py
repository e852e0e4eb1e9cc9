"""A data set on disk as a source of batches: shuffled anew each epoch, resumable to the batch."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch

from valence.data.collate import EncodedGroup, collate, move
from valence.errors import UserError
from valence.types import Batch


class OfflineSource:
    """Batches of `batch_size` contexts, each epoch a fresh permutation of its own seed.

    Args:
        rows: encoded groups, all with the same kind of feedback.
        batch_size: contexts a batch; the last of an epoch may be smaller.
        pad: the padding token's id.
        seed: of the shuffling.
        device: where the batches are put.
        mismatched: add KTO's unrelated completions (a batch of one context has none but its own).
    Raises:
        ValueError: no rows, or a batch size below 1.
    """

    unit = "tokens"

    def __init__(
        self,
        rows: Sequence[EncodedGroup],
        *,
        batch_size: int,
        pad: int,
        seed: int = 0,
        mismatched: bool = False,
        device: torch.device | str = "cpu",
    ) -> None:
        if not rows:
            raise ValueError("an offline source needs at least one row")
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}, and must be at least 1")
        self.rows, self.batch_size, self.pad = rows, batch_size, pad
        self.seed, self.mismatched, self.device = seed, mismatched, device
        self.epoch, self.position = 0, 0
        self.num_units = 0

    @property
    def batches_per_epoch(self) -> int:
        return math.ceil(len(self.rows) / self.batch_size)

    def next(self, policy: Any = None) -> Batch:
        """The next batch; `num_units` then says how many real tokens it holds."""
        if self.position >= len(self.rows):
            self.epoch, self.position = self.epoch + 1, 0
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order = torch.randperm(len(self.rows), generator=generator)
        picks = order[self.position : self.position + self.batch_size].tolist()
        self.position += len(picks)
        chosen = [self.rows[pick] for pick in picks]
        self.num_units = sum(row.num_tokens for row in chosen)
        return move(collate(chosen, pad=self.pad, mismatched=self.mismatched), self.device)

    @cached_property
    def fingerprint(self) -> str:
        """Of all rows: tokens and feedback."""
        said = "\n".join(f"{r.prompt}{r.completions}{r.group.sign}{r.group.reward}{r.group.wins}" for r in self.rows)
        return hashlib.sha256(said.encode()).hexdigest()

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self.epoch, "position": self.position, "seed": self.seed, "rows": self.fingerprint}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises UserError where the rows are not those that the state was taken on."""
        if state["rows"] != self.fingerprint:
            raise UserError("--resume needs the feedback the run began with, and it has changed: give another --out")
        self.epoch, self.position, self.seed = state["epoch"], state["position"], state["seed"]
