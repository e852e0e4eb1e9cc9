"""`valence offline-control EPISODES --out DIR`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import tyro

from valence.cli.parse import parse
from valence.errors import UserError
from valence.runs.progress import Progress


@dataclass(frozen=True)
class OfflineControl:
    """Make a control policy from episodes on disk, in Minari's format: accepted and rejected actions, and cloning."""

    episodes: tyro.conf.Positional[str]
    """The data set's folder (the one with data/main_data.hdf5)."""
    out: str = "runs/offline-control-policy"
    """Folder to write into."""
    labels: Literal["auto", "given", "advantage"] = "auto"
    """given with the data (infos/label, +1 or -1), the sign of a learned advantage, or auto: given if there are any."""
    use: tuple[Literal["accept", "reject", "clone"], ...] = ("accept", "reject", "clone")
    """Which losses: on accepted actions, on rejected ones, on all of them."""
    alpha: float | None = None
    """Weight of accepted against rejected, 0 to 1; 0.5 where both are there."""
    beta: float | None = None
    """Weight of cloning; the smallest bounded one where not given."""
    discount: float = 0.98
    """Gamma of the advantage."""
    trace: float = 0.9
    """Lambda of the advantage."""
    expectile: float = 0.7
    """Which expectile of the returns the value is; 0.5 is the mean."""
    steps: int = 4000
    """Updates of the policy."""
    batch_size: int = 512
    """Transitions in a batch."""
    lr: float = 1e-3
    """Learning rate, falling to 0."""
    hidden: tuple[int, ...] = (256, 256)
    """Units of each hidden layer."""
    min_scale: float = 0.3
    """Least standard deviation, in half action ranges."""
    seed: int = 0
    """Same seed, same bits."""
    quiet: bool = False
    """No progress."""


def run(arguments: Sequence[str]) -> None:
    """Parse, learn, print."""
    asked = parse(OfflineControl, arguments, prog="valence offline-control")
    import torch

    from valence.runs.offline_control import OfflineControlOptions, offline_control

    torch.set_num_threads(1)
    names = {item.name for item in fields(OfflineControlOptions)} & {item.name for item in fields(asked)}
    chosen: dict[str, Any] = {name: getattr(asked, name) for name in names}
    chosen |= {name: name in asked.use for name in ("accept", "reject", "clone")}
    try:
        options = OfflineControlOptions(**chosen)
    except ValueError as error:
        raise UserError(str(error)) from error
    progress = Progress(options.steps, show=not asked.quiet)
    try:
        result = offline_control(asked.episodes, Path(asked.out), options, on_step=progress)
    finally:
        progress.close()
    print(
        f"{result.episodes} episodes, {result.transitions:,} transitions: {result.accepted:,} accepted, "
        f"{result.rejected:,} rejected; alpha {result.alpha:g}, beta {result.beta:.3g}"
    )
    print(f"written: {result.folder} (valence.PolicyRunner.load({str(result.folder)!r}).act(observation) acts)")
