"""`valence inspect`: what files of feedback hold, before anything is trained."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

import tyro

from valence.data.inspect import render, summarize
from valence.errors import UserError
from valence.runs.options import VerdictOptions
from valence.runs.reading import read_feedback
from valence.runs.settings import RunConfig


@dataclass(frozen=True)
class InspectConfig(RunConfig):
    """Show what files of feedback hold: shape, counts, problem rows, and the method that would learn from them."""

    command: ClassVar[str] = "inspect"
    usage: ClassVar[str] = "valence inspect FILE…"

    files: tyro.conf.Positional[tuple[str, ...]] = field(default=())
    """Files or folders of feedback."""
    json: bool = False
    """Print JSON."""
    read: VerdictOptions = field(default_factory=VerdictOptions)


def inspect(config: InspectConfig, *, log: Callable[[str], None] = print, show: bool = True) -> None:
    """Read the files and print a summary."""
    if not config.files:
        raise UserError(f"no file given: {config.usage}")
    summary = summarize(read_feedback(config.files, config.read, keep=False, show=show))
    if config.json:
        print(json.dumps(summary.to_json(), ensure_ascii=False))
        return
    from rich.console import Console

    console = Console()
    with console.capture() as captured:
        console.print(render(summary))
    log(captured.get().rstrip())
