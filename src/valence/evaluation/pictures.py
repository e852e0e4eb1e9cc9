"""Pictures for reports: grids of images, figures as PNG, and the HTML around them."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

SMALLEST, LARGEST = 64, 192
"""Pixels per side at which small and large images are shown, so that a grid of forty photographs fits a page."""


def png(figure: Any) -> bytes:
    """A matplotlib figure as PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def image_tag(data: bytes, title: str) -> str:
    """A PNG inside an HTML page."""
    return f'<img alt="{html.escape(title)}" src="data:image/png;base64,{base64.b64encode(data).decode()}">'


def image_grid(images: Sequence[Any], columns: int) -> Any:
    """Images row by row on white, two pixels apart.

    Small images are enlarged by a whole factor with sharp pixels; large ones are shrunk.

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
    resampling = Image.Resampling.LANCZOS if longer > LARGEST else Image.Resampling.NEAREST
    rows = -(-len(images) // columns)
    grid = Image.new("RGB", (columns * (width + 2) - 2, rows * (height + 2) - 2), "white")
    for place, image in enumerate(images):
        row, column = divmod(place, columns)
        grid.paste(image.resize((width, height), resampling), (column * (width + 2), row * (height + 2)))
    return grid


def pixel_spread(images: Sequence[Any], groups: Sequence[Hashable]) -> float:
    """How much the images of one group differ: the mean standard deviation of a pixel within its group, in [0, 1].

    It is near 0 where a policy draws one image over and over, and NaN where no group has two images.

    Args:
        images: PIL images of one size.
        groups: the group of each image.
    """
    pixels = np.stack([np.asarray(image, dtype=np.float32) / 255 for image in images])
    members: dict[Hashable, list[int]] = {}
    for place, group in enumerate(groups):
        members.setdefault(group, []).append(place)
    spreads = [pixels[places].std(axis=0, ddof=1).mean() for places in members.values() if len(places) > 1]
    return float(np.mean(spreads)) if spreads else float("nan")


def grids_section(grids: Sequence[tuple[str, Path]], caption: str) -> str:
    """The part of a report that shows `(title, PNG file)` grids, as HTML."""
    body = "".join(f"<h3>{html.escape(title)}</h3>{image_tag(path.read_bytes(), title)}" for title, path in grids)
    return f"<h2>Images</h2><p class=note>{html.escape(caption)}</p>{body}"
