"""Offline episodes as a source of batches: single transitions with their labels, shuffled anew each epoch.

PMPO's behaviour-cloning form reads labelled rows (sign +1 or -1) and unlabelled rows (sign 0). The likelihood of the
unlabelled ones takes the place of the KL. `mixture` makes both kinds of row from one transition where both are wanted,
so that `fractions` are those of the data set and the class means of a batch estimate the data set's.

Shape legend: E episodes · S steps of the longest one, L = S + 1 observations · R transitions · O observation, D action
dimensions.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from valence.data.episodes import Episode
from valence.errors import UserError
from valence.policies.gaussian import GaussianPolicy
from valence.sources.shuffle import ShuffledSource
from valence.types import Action, Batch, Labels


@dataclass(frozen=True)
class EpisodeTable:
    """Episodes in one table, padded to the longest; observations scaled to mean 0 and deviation 1.

    Args:
        label: +1, -1 or 0, as the data set has it.
        present: which steps exist.
        terminated: which episodes terminated; the others were truncated.
        shift, scale: of the observations: scaled = (raw - shift) / scale.
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
        """Raw observations, scaled as the table's."""
        return (raw - self.shift) / self.scale


def tabulate(episodes: Sequence[Episode]) -> EpisodeTable:
    """Episodes as one table.

    Raises:
        UserError: no episodes, or their sizes differ.
    """
    if not episodes:
        raise UserError("the data set has no episode")
    sizes = {(episode.observations.shape[1], episode.actions.shape[1]) for episode in episodes}
    if len(sizes) > 1:
        raise UserError(f"episodes differ in their (observation, action) sizes: {sorted(sizes)}")
    longest = max(len(episode) for episode in episodes)
    seen = np.concatenate([episode.observations for episode in episodes])
    # The least deviation keeps a constant observation from being divided by its rounding error.
    shift, scale = seen.mean(0, dtype=np.float64), np.maximum(seen.std(0, dtype=np.float64), 1e-3)
    lengths = torch.tensor([len(episode) for episode in episodes])
    labels = [np.zeros(len(e), np.int8) if e.labels is None else e.labels for e in episodes]
    return EpisodeTable(
        observation=_pad([(episode.observations - shift) / scale for episode in episodes], longest + 1),
        action=_pad([episode.actions for episode in episodes], longest),
        reward=_pad([episode.rewards for episode in episodes], longest),
        label=_pad(labels, longest).long(),
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


@torch.no_grad()
def unscale(policy: GaussianPolicy, table: EpisodeTable) -> None:
    """Fold the scaling into the policy's first layer, so that it reads raw observations."""
    first = policy.torso[0]
    assert isinstance(first, nn.Linear)
    first.weight.div_(table.scale)
    first.bias.sub_(first.weight @ table.shift)


@dataclass(frozen=True)
class Rows:
    """Transitions to learn from: `observation [R, O]`, `action [R, D]`, `sign [R]` (+1, -1, or 0 for cloning only)."""

    observation: Float[Tensor, "R O"]
    action: Float[Tensor, "R D"]
    sign: Int[Tensor, " R"]

    def fractions(self) -> tuple[float, float]:
        """The shares of accepted and of rejected rows."""
        return tuple(int((self.sign == side).sum()) / len(self.sign) for side in (1, -1))  # pyright: ignore[reportReturnType]


def mixture(
    table: EpisodeTable, sign: Int[Tensor, "E S"], *, accept: bool = False, reject: bool = False, clone: bool = False
) -> Rows:
    """The rows of the kinds asked for.

    Args:
        sign: +1 accepted, -1 rejected, 0 unlabelled; 0 where absent.
        accept, reject: take the transitions with this label.
        clone: take every transition once more as an unlabelled row.
    Raises:
        UserError: there is no such row.
    """
    kinds = ((accept, sign > 0, 1), (reject, sign < 0, -1), (clone, table.present, 0))
    chosen = [(keep & table.present, value) for wanted, keep, value in kinds if wanted]
    if not any(bool(keep.any()) for keep, _ in chosen):
        raise UserError("no transition has a label of the kind asked for, and cloning is off")
    return Rows(
        torch.cat([table.observation[:, :-1][keep] for keep, _ in chosen]),
        torch.cat([table.action[keep] for keep, _ in chosen]),
        torch.cat([torch.full((int(keep.sum()),), value) for keep, value in chosen]),
    )


class EpisodeSource(ShuffledSource):
    """Batches of `batch_size` rows, each epoch a fresh permutation; resumable at any batch."""

    unit, what = "transitions", "episodes and labels"

    def __init__(self, rows: Rows, *, batch_size: int, seed: int = 0) -> None:
        super().__init__(len(rows.sign), batch_size=batch_size, seed=seed)
        self.rows = rows

    def next(self, policy: object = None) -> Batch:
        """The next batch: N rows of one action of one step; the last of an epoch may be smaller."""
        picks = self.take(self.batch_size)
        self.num_units = len(picks)
        present = torch.ones(len(picks), 1, dtype=torch.bool)
        action = Action(self.rows.action[picks][:, None, None], present[..., None])
        return Batch(self.rows.observation[picks], action, Labels(self.rows.sign[picks][:, None], present))

    def content(self) -> Iterable[bytes]:
        parts = (self.rows.observation, self.rows.action, self.rows.sign)
        return (part.contiguous().numpy().tobytes() for part in parts)
