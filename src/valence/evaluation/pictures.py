"""Grids of images, for reports: files and HTML."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

SMALLEST, LARGEST = 64, 192
"""Pixels a side that small and large images are shown at: a grid of forty photographs must fit a page, and a mail."""


def image_grid(images: Sequence[Any], columns: int) -> Any:
    """Images row by row on white, two pixels apart; small ones enlarged by a whole factor, pixels kept sharp, and large
    ones shrunk.

    Args:
        images: PIL images of one size, at least one.
        columns: images in a row, >= 1.
    """
    from PIL import Image

    width, height = images[0].size
    longer = max(width, height)
    if longer > LARGEST:
        width, height = max(1, width * LARGEST // longer), max(1, height * LARGEST // longer)
    else:
        factor = -(-SMALLEST // longer)
        width, height = width * factor, height * factor
    way = Image.Resampling.LANCZOS if longer > LARGEST else Image.Resampling.NEAREST
    rows = -(-len(images) // columns)
    grid = Image.new("RGB", (columns * (width + 2) - 2, rows * (height + 2) - 2), "white")
    for place, image in enumerate(images):
        row, column = divmod(place, columns)
        grid.paste(image.resize((width, height), way), (column * (width + 2), row * (height + 2)))
    return grid


def pixel_spread(images: Sequence[Any], groups: Sequence[Any]) -> float:
    """How much images of one group differ: the standard deviation of each pixel within its group, averaged, in [0, 1].
    Near 0 where a policy draws one image over and over. NaN where no group has two.

    Args:
        images: PIL images of one size.
        groups: which group each is of.
    """
    pixels = np.stack([np.asarray(image, dtype=np.float32) / 255 for image in images])
    places: dict[Any, list[int]] = {}
    for place, group in enumerate(groups):
        places.setdefault(group, []).append(place)
    spreads = [pixels[some].std(axis=0, ddof=1).mean() for some in places.values() if len(some) > 1]
    return float(np.mean(spreads)) if spreads else float("nan")


def grids_section(pictures: Sequence[tuple[str, Path]], caption: str) -> str:
    """A part of a report, as HTML: each grid under its title."""
    shown = "".join(
        f'<h3>{html.escape(title)}</h3><img alt="{html.escape(title)}" '
        f'src="data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}">'
        for title, path in pictures
    )
    return f"<h2>Images</h2><p class=note>{html.escape(caption)}</p>{shown}"
