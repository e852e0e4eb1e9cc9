"""`valence compare MODEL MODEL --prompts FILE --judge J --out DIR`."""

from __future__ import annotations

from collections.abc import Sequence

from valence.cli.parse import parse
from valence.runs.compare import CompareConfig, compare

DESCRIPTION = "Whose completions of the same prompts are better: win rate with its interval, ties, lengths controlled."


def run(arguments: Sequence[str]) -> None:
    """Parse and compare."""
    compare(parse(CompareConfig, arguments, prog="valence compare", description=DESCRIPTION))
