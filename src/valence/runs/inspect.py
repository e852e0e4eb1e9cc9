"""`valence inspect`: what files of feedback hold, before anything is trained."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import ClassVar

import tyro

from valence.data.formats.columns import parse_columns
from valence.data.inspect import render, summarize
from valence.data.load import load_feedback
from valence.errors import UserError
from valence.runs.run import Log
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
    strict: bool = False
    """A row that cannot be used is an error."""
    columns: str | None = None
    """Names of your columns, such as prompt=question,completion=answer."""


def inspect(config: InspectConfig, *, log: Log = print, show: bool = True) -> None:
    """Read the files and print a summary."""
    if not config.files:
        raise UserError(f"no file given: {config.usage}")
    loaded = load_feedback(config.files, columns=parse_columns(config.columns), strict=config.strict)
    summary = summarize(loaded)
    if config.json:
        print(json.dumps(summary.to_json(), ensure_ascii=False))
        return
    from rich.console import Console

    Console().print(render(summary))
