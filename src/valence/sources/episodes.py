"""Offline episodes as a source of batches: single transitions, labelled or only cloned, shuffled anew each epoch.

PMPO's BC form reads two kinds of rows: labelled ones (sign +1 or -1) and unlabelled ones (sign 0), whose likelihood
stands for the KL. A transition may be both. `mixture` lists the rows so that every transition counts once in each
kind, and `fractions` are then those of the data set: class means of any batch are estimates of the data set's.

Shape legend: E episodes · S steps of the longest one, L = S + 1 observations · R transitions · O observation, D action
dimensions.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from valence.data.episodes import Episode
from valence.errors import UserError
from valence.types import Action, Batch, Labels


@dataclass(frozen=True)
class EpisodeTable:
    """Episodes side by side, padded to the longest; observations scaled to mean 0 and deviation 1.

    Args:
        observation: `[E, L, O]`, scaled.
        action: `[E, S, D]`.
        reward: `[E, S]`.
        label: given with the data: +1, -1 or 0, `[E, S]`.
        present: which steps exist, `[E, S]`.
        terminated: which episodes truly ended, `[E]`.
        shift, scale: of the observations, `[O]`: scaled = (raw - shift) / scale.
    """

    observation: Float[Tensor, "E L O"]
    action: Float[Tensor, "E S D"]
    reward: Float[Tensor, "E S"]
    label: Int[Tensor, "E S"]
    present: Bool[Tensor, "E S"]
    terminated: Bool[Tensor, " E"]
    shift: Float[Tensor, " O"]
    scale: Float[Tensor, " O"]

    def scaled(self, raw: Float[Tensor, "*N O"]) -> Float[Tensor, "*N O"]:
        """Observations as the policy reads them."""
        return (raw - self.shift) / self.scale


def tabulate(episodes: Sequence[Episode]) -> EpisodeTable:
    """Put episodes side by side.

    Raises:
        UserError: no episodes, or their sizes differ.
    """
    if not episodes:
        raise UserError("there is no episode to learn from")
    sizes = {(episode.observations.shape[1], episode.actions.shape[1]) for episode in episodes}
    if len(sizes) > 1:
        raise UserError(f"episodes differ in their (observation, action) sizes: {sorted(sizes)}")
    longest = max(len(episode) for episode in episodes)
    seen = np.concatenate([episode.observations for episode in episodes])
    # A number that never changes tells nothing; dividing by its rounding error would make it tell noise.
    shift, scale = seen.mean(0, dtype=np.float64), np.maximum(seen.std(0, dtype=np.float64), 1e-3)
    lengths = torch.tensor([len(episode) for episode in episodes])
    nothing = [np.zeros(len(episode), np.int8) for episode in episodes]
    given = [blank if e.labels is None else e.labels for e, blank in zip(episodes, nothing, strict=True)]
    return EpisodeTable(
        observation=_pad([(episode.observations - shift) / scale for episode in episodes], longest + 1),
        action=_pad([episode.actions for episode in episodes], longest),
        reward=_pad([episode.rewards for episode in episodes], longest),
        label=_pad(given, longest).long(),
        present=torch.arange(longest) < lengths[:, None],
        terminated=torch.tensor([episode.terminated for episode in episodes]),
        shift=torch.tensor(shift, dtype=torch.float32),
        scale=torch.tensor(scale, dtype=torch.float32),
    )


def _pad(columns: Sequence[np.ndarray], length: int) -> Tensor:
    padded = np.zeros((len(columns), length, *columns[0].shape[1:]), np.float32)
    for row, column in zip(padded, columns, strict=True):
        row[: len(column)] = column
    return torch.from_numpy(padded)


@dataclass(frozen=True)
class Rows:
    """What a source draws from: `observation [R, O]`, `action [R, D]`, `sign [R]` (+1, -1, or 0: only cloned)."""

    observation: Float[Tensor, "R O"]
    action: Float[Tensor, "R D"]
    sign: Int[Tensor, " R"]

    def fractions(self) -> tuple[float, float]:
        """Of accepted and of rejected among all rows."""
        return tuple(int((self.sign == side).sum()) / len(self.sign) for side in (1, -1))  # pyright: ignore[reportReturnType]


def mixture(
    table: EpisodeTable, sign: Int[Tensor, "E S"], *, accept: bool = False, reject: bool = False, clone: bool = False
) -> Rows:
    """Rows of a mixture of losses.

    Args:
        sign: +1 accepted, -1 rejected, 0 unlabelled; 0 where absent.
        accept, reject: take the transitions so labelled.
        clone: take every transition once more as an unlabelled row.
    Raises:
        UserError: nothing is left.
    """
    parts = [
        (wanted, keep & table.present, value)
        for wanted, keep, value in ((accept, sign > 0, 1), (reject, sign < 0, -1), (clone, table.present, 0))
        if wanted
    ]
    taken = [(keep, value) for _, keep, value in parts if bool(keep.any())]
    if not taken:
        raise UserError("no transition has a label of the kinds asked for, and none is to be cloned")
    return Rows(
        torch.cat([table.observation[:, :-1][keep] for keep, _ in taken]),
        torch.cat([table.action[keep] for keep, _ in taken]),
        torch.cat([torch.full((int(keep.sum()),), value) for keep, value in taken]),
    )


class EpisodeSource:
    """Batches of `batch_size` rows, each epoch a fresh permutation; resumable to the batch.

    Args:
        seed: of the shuffling.
    Raises:
        ValueError: a batch size below 1.
    """

    unit = "transitions"

    def __init__(self, rows: Rows, *, batch_size: int, seed: int = 0) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}, and must be at least 1")
        self.rows, self.batch_size, self.seed = rows, batch_size, seed
        self.epoch, self.position, self.num_units = 0, 0, 0
        self._order: tuple[int, Tensor] | None = None

    @property
    def batches_per_epoch(self) -> int:
        return math.ceil(len(self.rows.sign) / self.batch_size)

    def next(self, policy: Any = None) -> Batch:
        """The next batch: N rows of one action of one step; the last of an epoch may be smaller."""
        if self.position >= len(self.rows.sign):
            self.epoch, self.position = self.epoch + 1, 0
        picks = self._shuffled()[self.position : self.position + self.batch_size]
        self.position += len(picks)
        self.num_units = len(picks)
        present = torch.ones(len(picks), 1, dtype=torch.bool)
        action = Action(self.rows.action[picks][:, None, None], present[..., None])
        return Batch(self.rows.observation[picks], action, Labels(self.rows.sign[picks][:, None], present))

    def _shuffled(self) -> Tensor:
        if self._order is None or self._order[0] != self.epoch:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
            self._order = (self.epoch, torch.randperm(len(self.rows.sign), generator=generator))
        return self._order[1]

    def fingerprint(self) -> str:
        """Of all rows."""
        digest = hashlib.sha256()
        for part in (self.rows.observation, self.rows.action, self.rows.sign):
            digest.update(part.contiguous().numpy().tobytes())
        return digest.hexdigest()

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self.epoch, "position": self.position, "seed": self.seed, "rows": self.fingerprint()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises UserError where the rows are not those that the state was taken on."""
        if state["rows"] != self.fingerprint():
            raise UserError("going on needs the episodes and labels the run began with, and they have changed")
        self.epoch, self.position, self.seed, self._order = state["epoch"], state["position"], state["seed"], None
