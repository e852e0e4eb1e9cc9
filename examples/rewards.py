"""Rewards and a function to minimise, as the README's commands name them. Write your own like these."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

WARM = ("good", "great", "funny", "moving", "beautiful", "best", "warm", "wit", "charming", "delight")


def warm_words(prompts: Sequence[str], completions: Sequence[str], **columns: Any) -> list[float | None]:
    """How many words of praise a completion holds: one number for each completion."""
    return [float(sum(word in WARM for word in text.split())) for text in completions]


def dark(images: Sequence[Any], prompts: Sequence[str], metadata: Sequence[Any]) -> list[float | None]:
    """How dark an image is, from 0 to 1: one number for each image."""
    return [1 - float(np.asarray(image, dtype=np.float64).mean()) / 255 for image in images]


def cost(x: np.ndarray) -> float:
    """A bowl whose lowest point is at 0.3 in every coordinate."""
    return float(((x - 0.3) ** 2).sum())
