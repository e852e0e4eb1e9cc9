"""Spaces to search: they map latent vectors to points.

The policy is a Gaussian over *latent* vectors u; a space maps u to the point x that gets feedback. The latent unit is
half the box's width, or the given scale. Shapes: n points of d coordinates, `[n, d]`.

A box *reflects* the Gaussian at its faces. (Clamping would put probability on the faces, which have no density.)
Inside, x is u up to shift and scale, so an optimum is not distorted wherever it lies; a face is reached at a finite u.
The search's KLs are between latent Gaussians: an upper bound on the KL between distributions of x (data processing
inequality), and equal to it away from the faces.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

Vector = Float[np.ndarray, " d"]
Points = Float[np.ndarray, "n d"]
Numbers = int | float | Sequence[int | float] | np.ndarray


def _vectors(dim: int | None, **values: Numbers) -> list[np.ndarray]:
    """Finite float64 vectors of one length; a single number is repeated for all coordinates."""
    given = " and ".join(f"`{name}` {value!r}" for name, value in values.items())
    refusal = ValueError(f"{given} must be finite: one number for each coordinate, or single numbers and `dim`")
    try:
        arrays = [np.array(value, dtype=np.float64) for value in values.values()]
    except (TypeError, ValueError) as error:
        raise refusal from error
    shapes = {array.shape for array in arrays if array.ndim} | (set() if dim is None else {(dim,)})
    shape = max(shapes, default=())
    if shapes != {shape} or len(shape) != 1 or shape[0] < 1 or not all(np.isfinite(array).all() for array in arrays):
        raise refusal
    return [np.broadcast_to(array, shape).copy() for array in arrays]


class Box:
    """All x with low <= x <= high.

    Args:
        low, high: one number per coordinate, or one for all coordinates.
        dim: number of coordinates, where low and high are single numbers.
    Raises:
        ValueError: not finite, of different length, or low >= high somewhere.
    """

    default_sigma, sigma_unit = 0.3, 2.0
    """Sigma is a fraction of the width; the latent unit is half the width."""
    max_std = 0.6
    """The largest useful latent standard deviation, 0.3 times the width: reflected, it is nearly uniform."""

    def __init__(self, low: Numbers, high: Numbers, dim: int | None = None) -> None:
        self.low, self.high = _vectors(dim, low=low, high=high)
        if not (self.low < self.high).all():
            raise ValueError(f"`low` must be below `high` in every coordinate, got {low!r} and {high!r}")
        self.dim, self.half = len(self.low), self.high / 2 - self.low / 2

    def points(self, latent: Points) -> Points:
        """Map latent vectors to points, by a triangle wave of period 4 that is the identity on [-1, 1]."""
        folded = np.abs((latent - 1) % 4 - 2) - 1
        return np.clip(self.low / 2 + self.high / 2 + self.half * folded, self.low, self.high)

    def latent(self, points: Points, near: Vector) -> Points:
        """Map points to latent vectors: of the many that map to a point, the nearest to `near` in each coordinate.

        Raises:
            ValueError: a point lies outside the box.
        """
        if not ((points >= self.low) & (points <= self.high)).all():
            raise ValueError("a point of `x` lies outside the box")
        inside = (points - (self.low / 2 + self.high / 2)) / self.half
        both = np.stack([inside, 2 - inside])
        both = both + 4 * np.round((near - both) / 4)
        return np.where(np.abs(both[0] - near) <= np.abs(both[1] - near), both[0], both[1])

    def random_start(self, random: np.random.Generator) -> Vector:
        """A latent vector drawn uniformly from the box."""
        return random.uniform(-1, 1, self.dim)

    def state_dict(self) -> dict[str, Any]:
        """As JSON values; "kind" is a name in `SPACES`."""
        return {"kind": "Box", "low": self.low.tolist(), "high": self.high.tolist()}


class Unbounded:
    """All of R^d, searched from N(mean, diag(scale^2)).

    Args:
        mean: the initial mean; one number per coordinate, or one for all coordinates.
        scale: the initial standard deviations, > 0.
        dim: number of coordinates, where mean and scale are single numbers.
    Raises:
        ValueError: not finite, of different length, or scale <= 0.
    """

    default_sigma, sigma_unit, max_std = 1.0, 1.0, math.inf

    def __init__(self, mean: Numbers, scale: Numbers = 1.0, dim: int | None = None) -> None:
        self.mean, self.scale = _vectors(dim, mean=mean, scale=scale)
        if not (self.scale > 0).all():
            raise ValueError(f"`scale` is {scale!r}, and must be positive")
        self.dim = len(self.mean)

    def points(self, latent: Points) -> Points:
        return self.mean + self.scale * latent

    def latent(self, points: Points, near: Vector) -> Points:
        return (points - self.mean) / self.scale

    def random_start(self, random: np.random.Generator) -> Vector:
        """A latent vector drawn from the initial policy at sigma 1."""
        return random.standard_normal(self.dim)

    def state_dict(self) -> dict[str, Any]:
        return {"kind": "Unbounded", "mean": self.mean.tolist(), "scale": self.scale.tolist()}


Space = Box | Unbounded
SPACES: dict[str, type[Space]] = {"Box": Box, "Unbounded": Unbounded}
