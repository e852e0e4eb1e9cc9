"""Files of feedback read as the options say. Nothing here needs torch."""

from __future__ import annotations

from collections.abc import Sequence

from valence.data.formats.columns import parse_columns
from valence.data.load import Loaded, load_feedback
from valence.runs.options import ReadOptions, VerdictOptions
from valence.training.progress import Busy


def read_feedback(paths: Sequence[str], read: ReadOptions, *, keep: bool = True, show: bool = False) -> Loaded:
    """Read files of feedback as the options say, with a line of progress every few seconds where `show` is set; without
    `keep` the records are only counted."""
    labels, map_row = read.labels if isinstance(read, VerdictOptions) else None, None
    if read.map:
        # Torch comes with this import.
        from valence.rewards.loading import about, load_function

        with about("map"):
            map_row = load_function(read.map, "no option of its own")
    with Busy("reading", show=show) as progress:
        return load_feedback(
            paths, columns=parse_columns(read.columns), labels=labels, join=read.join, map_row=map_row,
            prompt_template=read.prompt_template, split=read.split, subset=read.subset, strict=read.strict, keep=keep,
            progress=progress,
        )  # fmt: skip
