"""tyro's parsing, its errors folded into the one clear line that every bad input gets."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from typing import Any

import tyro

from valence.errors import UserError

BOX = "╭╮╰╯│─"


def parse(kind: Any, arguments: Sequence[str], *, prog: str, **options: Any) -> Any:
    """An instance of the dataclass `kind` from the command line's words.

    Raises:
        UserError: an unknown option, or a value of the wrong kind.
    """
    flags = (tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff)
    caught = io.StringIO()
    try:
        with contextlib.redirect_stderr(caught):
            return tyro.cli(kind, args=list(arguments), prog=prog, config=flags, **options)
    except SystemExit as stop:
        if not stop.code:
            raise
    raise UserError(f"{_first_paragraph(caught.getvalue())}; see {prog} --help")


def _first_paragraph(box: str) -> str:
    """What tyro says in the first part of its box, without the frame."""
    said: list[str] = []
    for line in box.splitlines()[1:]:
        words = line.strip(f"{BOX} ")
        if not words and said:
            break
        said.append(words)
    return " ".join(" ".join(said).split())
