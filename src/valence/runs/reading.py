"""Files of feedback read as the options say. Nothing here needs torch."""

from __future__ import annotations

from collections.abc import Sequence

from valence.data.formats.columns import parse_columns
from valence.data.load import Loaded, load_feedback
from valence.data.stored import Tick
from valence.runs.options import ReadOptions


def read_feedback(
    paths: Sequence[str], read: ReadOptions, *, keep: bool = True, progress: Tick | None = None
) -> Loaded:
    """Read files of feedback as the options say; without `keep` the records are only counted."""
    map_row = None
    if read.map:
        # Torch comes with this import.
        from valence.rewards.loading import load_function

        map_row = load_function(read.map, "")
    return load_feedback(
        paths, columns=parse_columns(read.columns), labels=read.labels, join=read.join, map_row=map_row,
        prompt_template=read.prompt_template, split=read.split, subset=read.subset, strict=read.strict, keep=keep,
        progress=progress,
    )  # fmt: skip
