"""`valence offline-control EPISODES --out DIR`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from valence.cli.parse import parse
from valence.runs.offline_control_config import OfflineControlOptions
from valence.runs.progress import Progress


@dataclass(frozen=True)
class OfflineControl:
    """Make a control policy from episodes on disk, in Minari's format: accepted and rejected actions, and cloning."""

    episodes: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER")]
    """The data set's folder (the one with data/main_data.hdf5)."""
    out: str = "runs/offline-control-policy"
    """Folder to write into."""
    learning: OfflineControlOptions = field(default_factory=OfflineControlOptions)
    quiet: bool = False
    """No progress."""


def run(arguments: Sequence[str]) -> None:
    """Parse, learn, print."""
    asked = parse(OfflineControl, arguments, prog="valence offline-control")
    import torch

    from valence.runs.offline_control import offline_control

    torch.set_num_threads(1)
    progress = Progress(asked.learning.steps, show=not asked.quiet)
    try:
        result = offline_control(asked.episodes, Path(asked.out), asked.learning, on_step=progress)
    finally:
        progress.close()
    print(
        f"{result.episodes} episodes, {result.transitions:,} transitions: {result.accepted:,} accepted, "
        f"{result.rejected:,} rejected; alpha {result.alpha:g}, beta {result.beta:.3g}"
    )
    print(f"written: {result.folder} (valence.PolicyRunner.load({str(result.folder)!r}).act(observation) acts)")
