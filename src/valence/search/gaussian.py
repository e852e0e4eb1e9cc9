"""A Gaussian policy without context. Its covariance is size^2 * shape, where shape has determinant 1.

Shapes: n samples of d coordinates. Whitened samples z = shape^(-1/2) (u - mean) / size are draws of N(0, I).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float

from valence.search.space import Points, Vector


@dataclass(frozen=True, eq=False)
class Gaussian:
    """N(mean, size^2 shape).

    Args:
        mean: `[d]`.
        size: the geometric mean of the standard deviations along the axes, > 0.
        shape: `[d, d]`, symmetric, positive definite, with determinant 1.
    Attributes:
        root: the symmetric square root of shape, `[d, d]`.
        axes: square roots of the eigenvalues of shape, ascending, `[d]`.
    Raises:
        ValueError: the covariance is not positive definite.
    """

    mean: Vector
    size: float
    shape: Float[np.ndarray, "d d"]
    root: Float[np.ndarray, "d d"] = field(init=False)
    axes: Vector = field(init=False)

    def __post_init__(self) -> None:
        values, vectors = np.linalg.eigh(self.shape)
        if not (self.size > 0 and values[0] > 0):
            raise ValueError("the covariance must be positive definite")
        object.__setattr__(self, "root", (vectors * np.sqrt(values)) @ vectors.T)
        object.__setattr__(self, "axes", np.sqrt(values))

    @classmethod
    def round(cls, mean: Vector, size: float) -> Gaussian:
        """The Gaussian with standard deviation `size` in all directions."""
        return cls(mean, float(size), np.eye(len(mean)))

    @property
    def covariance(self) -> Float[np.ndarray, "d d"]:
        return self.size**2 * self.shape

    @property
    def condition(self) -> float:
        """(longest axis / shortest axis)^2."""
        return float((self.axes[-1] / self.axes[0]) ** 2)

    def unwhiten(self, z: Points) -> Points:
        return self.mean + self.size * z @ self.root

    def whiten(self, samples: Points) -> Points:
        return np.linalg.solve(self.root, (samples - self.mean).T).T / self.size
