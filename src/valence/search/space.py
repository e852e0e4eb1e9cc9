"""Spaces to search: they map latent vectors to points.

The policy is a Gaussian over *latent* vectors u; a space maps u to the point x that gets feedback. The latent unit is
half the box's width, or the given scale. Shapes: n points of d coordinates, `[n, d]`.

A box *reflects* the Gaussian at its faces. (Clamping would put probability on the faces, which have no density.)
Inside, x is u up to shift and scale, so an optimum is not distorted wherever it lies; a face is reached at a finite u;
and the density of x is a sum over mirror images (`Box.log_density`). The search's KLs are between latent Gaussians: an
upper bound on the KL between distributions of x (data processing inequality), and equal to it away from the faces.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from valence.search.gaussian import Gaussian

Vector = Float[np.ndarray, " d"]
Points = Float[np.ndarray, "n d"]
Numbers = int | float | Sequence[int | float] | np.ndarray

MAX_IMAGES = 100_000
REACH = 9.0
"""Mirror images further than this many standard deviations are skipped: they add less than 1e-17 of the density."""


def _vectors(dim: int | None, **values: Numbers) -> list[np.ndarray]:
    """Finite float64 vectors of one length; a single number is repeated for all coordinates."""
    if dim is None:
        dim = next((len(value) for value in values.values() if isinstance(value, Sequence | np.ndarray)), None)
    return [_vector(value, dim, name) for name, value in values.items()]


def _vector(value: Numbers, dim: int | None, name: str) -> np.ndarray:
    try:
        array = np.array(value, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"`{name}` must be a number or a list of numbers, got {value!r}") from error
    if array.ndim == 0:
        if dim is None or dim < 1:
            raise ValueError(f"`{name}` is one number: give `dim`, the number of coordinates, at least 1")
        array = np.full(dim, float(array))
    if array.ndim != 1 or len(array) == 0 or (dim is not None and len(array) != dim):
        raise ValueError(f"`{name}` must have one number per coordinate, got shape {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError(f"`{name}` must be finite, got {value!r}")
    return array


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

    def log_density(self, policy: Gaussian, points: Points) -> Float[np.ndarray, " n"]:
        """log density of points, nats: a sum over the mirror images of each point that the policy can reach.

        Raises:
            ValueError: there are more than `MAX_IMAGES` images, or a point lies outside the box.
        """
        inside = self.latent(points, np.zeros(self.dim))
        spread = REACH * policy.std
        first = np.floor((policy.mean - spread - 1) / 2).astype(int)
        last = np.ceil((policy.mean + spread + 1) / 2).astype(int)
        if math.prod((last - first + 1).tolist()) > MAX_IMAGES:
            raise ValueError("the policy is too wide to sum its density over mirror images")
        # Image number k of a coordinate: 2 k + x where k is even, 2 k - x where it is odd.
        cells = itertools.product(*(range(a, b + 1) for a, b in zip(first, last, strict=True)))
        number = np.array(list(cells))[:, None, :]
        images = 2 * number + np.where(number % 2 == 0, inside, -inside)
        logs = policy.log_prob(images.reshape(-1, self.dim)).reshape(len(number), len(points))
        top = logs.max(0)
        return top + np.log(np.exp(logs - top).sum(0)) - np.log(self.half).sum()

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

    def log_density(self, policy: Gaussian, points: Points) -> Float[np.ndarray, " n"]:
        return policy.log_prob(self.latent(points, policy.mean)) - np.log(self.scale).sum()

    def random_start(self, random: np.random.Generator) -> Vector:
        """A latent vector drawn from the initial policy at sigma 1."""
        return random.standard_normal(self.dim)

    def state_dict(self) -> dict[str, Any]:
        return {"kind": "Unbounded", "mean": self.mean.tolist(), "scale": self.scale.tolist()}


Space = Box | Unbounded
SPACES: dict[str, type[Space]] = {"Box": Box, "Unbounded": Unbounded}
