"""Where a search looks, and how its Gaussian lives there.

A policy is a Gaussian over *latent* vectors u; a space turns u into the point x that is judged. Shapes: n points of
d coordinates, `[n, d]`. Latent units: half the box's width, or the scale that was given.

A box does not clamp (that puts mass on its faces, where no density is): the Gaussian is *reflected* at the faces.
Inside, x is u but for shift and scale, so nothing is distorted near an optimum, wherever it lies; a face is reached at
finite u; and the density of x is a sum over mirror images (`Box.log_density`). The search's KLs are between the
latent Gaussians: an upper bound on the KL between what is seen of them (data processing), equal away from the faces.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Float

from valence.search.gaussian import Gaussian

Vector = Float[np.ndarray, " d"]
Points = Float[np.ndarray, "n d"]
Numbers = int | float | Sequence[int | float] | np.ndarray

MOST_IMAGES = 100_000
REACH = 9.0
"""Images further than so many standard deviations are left out of a density: less than 1e-17 of it."""


def _vector(value: Numbers, dim: int | None, name: str) -> np.ndarray:
    """A finite float64 vector; a single number is repeated `dim` times."""
    try:
        array = np.array(value, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} must be a number or a list of numbers, got {value!r}") from error
    if array.ndim == 0:
        if dim is None or dim < 1:
            raise ValueError(f"{name} is one number: say dim, the number of coordinates (>= 1)")
        array = np.full(dim, float(array))
    if array.ndim != 1 or len(array) == 0 or (dim is not None and len(array) != dim):
        raise ValueError(f"{name} must have one number a coordinate, got shape {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} must be finite, got {value!r}")
    return array


@dataclass(frozen=True, eq=False, init=False)
class Box:
    """All x with low <= x <= high.

    Args:
        low, high: one number a coordinate, or one for all of `dim` coordinates.
    Raises:
        ValueError: not finite, of different length, or low >= high somewhere.
    """

    low: np.ndarray
    high: np.ndarray

    def __init__(self, low: Numbers, high: Numbers, dim: int | None = None) -> None:
        if dim is None:
            dim = next((len(side) for side in (low, high) if isinstance(side, Sequence | np.ndarray)), None)
        object.__setattr__(self, "low", _vector(low, dim, "low"))
        object.__setattr__(self, "high", _vector(high, dim, "high"))
        if not (self.low < self.high).all():
            raise ValueError(f"low must be below high in every coordinate, got {low!r} and {high!r}")

    @property
    def dim(self) -> int:
        return len(self.low)

    @property
    def half(self) -> np.ndarray:
        """Half the width of each coordinate: the latent unit."""
        return self.high / 2 - self.low / 2

    @property
    def widest(self) -> float:
        """The largest latent standard deviation that still says something: 0.3 times the width. Reflected, it is
        nearly uniform already."""
        return 0.6

    default_sigma: ClassVar[float] = 0.3
    sigma_unit: ClassVar[float] = 2.0
    """Sigma is a part of the width, the latent unit half of it."""

    def points(self, latent: Points) -> Points:
        """Latent vectors to points: a triangle wave of period 4, the identity on [-1, 1]."""
        folded = np.abs((latent - 1) % 4 - 2) - 1
        return np.clip(self.low / 2 + self.high / 2 + self.half * folded, self.low, self.high)

    def latent(self, points: Points, near: Vector) -> Points:
        """Points to the latent vectors, of the many that show as them, nearest to `near` in each coordinate.

        Raises:
            ValueError: a point lies outside the box.
        """
        if not ((points >= self.low) & (points <= self.high)).all():
            raise ValueError("a point lies outside the box")
        inside = (points - (self.low / 2 + self.high / 2)) / self.half
        both = np.stack([inside, 2 - inside])
        both = both + 4 * np.round((near - both) / 4)
        return np.where(np.abs(both[0] - near) <= np.abs(both[1] - near), both[0], both[1])

    def log_density(self, policy: Gaussian, points: Points) -> Float[np.ndarray, " n"]:
        """log density of x, in nats, x in its own unit: the sum over the mirror images of x that the policy can reach.

        Raises:
            ValueError: more than 100,000 images matter (a wide policy in many coordinates), or a point lies outside.
        """
        inside = self.latent(points, np.zeros(self.dim))
        spread = REACH * policy.std
        first = np.floor((policy.mean - spread - 1) / 2).astype(int)
        last = np.ceil((policy.mean + spread + 1) / 2).astype(int)
        if math.prod((last - first + 1).tolist()) > MOST_IMAGES:
            raise ValueError("the policy is too wide for its density to be summed over mirror images")
        # Image number k of a coordinate: 2 k + x where k is even, 2 k - x where it is odd.
        cells = itertools.product(*(range(a, b + 1) for a, b in zip(first, last, strict=True)))
        number = np.array(list(cells))[:, None, :]
        images = 2 * number + np.where(number % 2 == 0, inside, -inside)
        logs = policy.log_prob(images.reshape(-1, self.dim)).reshape(len(number), len(points))
        top = logs.max(0)
        return top + np.log(np.exp(logs - top).sum(0)) - np.log(self.half).sum()

    def anywhere(self, random: np.random.Generator) -> Vector:
        """A latent start drawn evenly from the box."""
        return random.uniform(-1, 1, self.dim)


@dataclass(frozen=True, eq=False, init=False)
class Unbounded:
    """All of R^d, searched from N(mean, diag(scale^2)).

    Args:
        mean: where it begins; one number a coordinate, or one for all of `dim` coordinates.
        scale: standard deviations that it begins with, > 0.
    Raises:
        ValueError: not finite, of different length, or scale <= 0.
    """

    mean: np.ndarray
    scale: np.ndarray

    def __init__(self, mean: Numbers, scale: Numbers = 1.0, dim: int | None = None) -> None:
        if dim is None:
            dim = next((len(side) for side in (mean, scale) if isinstance(side, Sequence | np.ndarray)), None)
        object.__setattr__(self, "mean", _vector(mean, dim, "mean"))
        object.__setattr__(self, "scale", _vector(scale, dim, "scale"))
        if not (self.scale > 0).all():
            raise ValueError(f"scale must be > 0, got {scale!r}")

    @property
    def dim(self) -> int:
        return len(self.mean)

    @property
    def widest(self) -> float:
        """No standard deviation is too large here."""
        return math.inf

    default_sigma: ClassVar[float] = 1.0
    sigma_unit: ClassVar[float] = 1.0

    def points(self, latent: Points) -> Points:
        return self.mean + self.scale * latent

    def latent(self, points: Points, near: Vector) -> Points:
        return (points - self.mean) / self.scale

    def log_density(self, policy: Gaussian, points: Points) -> Float[np.ndarray, " n"]:
        """log density of x, in nats, x in its own unit."""
        return policy.log_prob(self.latent(points, policy.mean)) - np.log(self.scale).sum()

    def anywhere(self, random: np.random.Generator) -> Vector:
        """A latent start drawn from where the search began."""
        return random.standard_normal(self.dim)


Space = Box | Unbounded
