"""`valence demo [--out DIR]`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from valence.cli.parse import parse


@dataclass(frozen=True)
class Demo:
    """Align the small model that Valence carries with real human thumbs, and show what changed."""

    out: str = "demo-out"
    """Folder to write into."""
    max_steps: int | None = None
    """Optimizer steps; one pass over the thumbs where not given."""
    samples: int = 500
    """Fresh samples judged before and after."""


def run(arguments: Sequence[str]) -> None:
    """Parse and run."""
    options = parse(Demo, arguments, prog="valence demo")
    from valence.reproduce.demo import run as demo

    demo(Path(options.out), steps=options.max_steps, samples=options.samples)
