"""`valence inspect FILE… [--json] [--strict]`: the first thing a newcomer runs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

import tyro

from valence.cli.parse import parse
from valence.data.formats import load_feedback
from valence.data.inspect import render, summarize


@dataclass(frozen=True)
class Inspect:
    """Tell what files of feedback hold: shape, counts, problem rows, and the method that would learn from them."""

    files: tyro.conf.Positional[tuple[str, ...]]
    """Files or folders of feedback."""
    json: bool = False
    """Print JSON."""
    strict: bool = False
    """A row that cannot be used is an error."""
    columns: str | None = None
    """Names of your columns, such as prompt=question,completion=answer."""


def run(arguments: Sequence[str]) -> None:
    """Parse, read and print."""
    options = parse(Inspect, arguments, prog="valence inspect")
    from valence.errors import UserError
    from valence.runs.config import parse_columns

    if not options.files:
        raise UserError("no file given: valence inspect FILE…")
    loaded = load_feedback(options.files, columns=parse_columns(options.columns), strict=options.strict)
    summary = summarize(loaded)
    if options.json:
        print(json.dumps(summary.to_json(), ensure_ascii=False))
        return
    from rich.console import Console

    Console().print(render(summary))
