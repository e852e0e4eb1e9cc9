"""The draw that is out for judgement: what was asked of the present policy, and what was said of it so far."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float

from valence.search.judgement import Judgement, judge_labels, judge_pairs, judge_ranks, judge_values, merge


@dataclass
class Draw:
    """Points asked of one policy, and tells about them.

    Args:
        asked: x as bytes -> whitened sample, `[d]`; what is told of goes from here to `z`.
        z: whitened samples told of, one `[n, d]` a tell.
        said: `(kind, what)` of each tell, as it was given.
    """

    asked: dict[bytes, np.ndarray] = field(default_factory=dict)
    z: list[np.ndarray] = field(default_factory=list)
    said: list[tuple[str, Any]] = field(default_factory=list)

    @property
    def told(self) -> int:
        return sum(len(samples) for samples in self.z)

    def samples(self) -> Float[np.ndarray, "n d"]:
        """What was told of, then what was only asked."""
        return np.concatenate([*self.z, *(sample[None] for sample in self.asked.values())])

    def add(self, z: Float[np.ndarray, "n d"], kind: str, what: Any) -> None:
        self.z.append(z)
        self.said.append((kind, what))

    def values(self) -> list[float]:
        """All values told."""
        return [float(value) for kind, what in self.said if kind == "values" for value in what]

    def judgement(self) -> Judgement:
        """All tells together. Values are compared across tells, ranks and pairs within each; untold is unlabelled."""
        if all(kind == "values" for kind, _ in self.said):
            parts = [judge("values", self.values(), self.told)]
        else:
            parts = [judge(kind, what, len(z)) for (kind, what), z in zip(self.said, self.z, strict=True)]
        return merge([*parts, judge("labels", [0] * len(self.asked), len(self.asked))])


def judge(kind: str, what: Any, count: int) -> Judgement:
    """The judgement of `count` points from feedback of one kind.

    Raises:
        ValueError: the feedback does not fit.
    """
    if kind == "values":
        return judge_values(what, count)
    if kind == "ranks":
        return judge_ranks(what, count)
    return judge_labels(what, count) if kind == "labels" else judge_pairs(what, count)


def plain(kind: str, what: Any) -> list[Any]:
    """Feedback as JSON can hold it, exactly."""
    if kind == "pairs":
        return [[int(better), int(worse)] for better, worse in what]
    if kind == "labels":
        return [None if label is None else int(label) for label in what]
    return [float(number) for number in what]


def one_kind(**given: Any) -> tuple[str, list[Any]]:
    """The one kind of feedback that is not None, as a list.

    Raises:
        ValueError: none, or several.
    """
    told = {kind: what for kind, what in given.items() if what is not None}
    if len(told) != 1:
        raise ValueError(f"tell one of {', '.join(given)}, got {', '.join(told) or 'none'}")
    ((kind, what),) = told.items()
    return kind, list(what) if isinstance(what, Iterable) else [what]


def as_points(x: Any, dim: int) -> Float[np.ndarray, "n d"]:
    """Checked points, `[n, d]`, in float64.

    Raises:
        ValueError: not finite numbers of that shape.
    """
    try:
        points = np.array(x, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"points must be numbers, [n, {dim}]") from error
    if points.ndim != 2 or points.shape[1] != dim or len(points) == 0:
        raise ValueError(f"points must be [n, {dim}], got shape {points.shape}")
    if not np.isfinite(points).all():
        raise ValueError("points must be finite")
    return points
