"""One improvement step of a search. Its rates depend on the dimension and the number of samples alone.

The path is an exponential average of the mean's shifts, whitened and scaled so that it is a draw of N(0, I) while the
feedback is random. Size and shape treat it as one more accepted sample: a mean that keeps moving in one direction
lengthens the policy along it, a mean that moves back and forth shortens it.

Departs from the paper: the path, and separate KL weights for size and shape. The path and the rates of the shape are
those of evolution strategies (Hansen, "The CMA Evolution Strategy: A Tutorial", 2016, appendix A). There the length of
the path sets the size.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from valence.search.gaussian import Gaussian
from valence.search.m_step import Weights, mean_step, shape_step, size_step

SIZE_BETA = 4 / 3
"""KL weight of the size, in units of W: its square is 30% samples, 30% path and 40% reference."""


def default_population(dim: int) -> int:
    """Points per improvement step: even, and growing with the logarithm of the dimension."""
    count = 4 + int(3 * np.log(dim))
    return count + count % 2


def _rates(dim: int, effective: float, *, diagonal: bool) -> tuple[float, float, float]:
    """The share of the new shift in the path, and the shares of the path and of the samples in the shape.

    They are for a draw that is worth `effective` equally weighted samples in `dim` coordinates.
    """
    mu = max(effective, 1.0)
    path = 2 / ((dim + 1.3) ** 2 + mu)
    sample = 2 * (mu - 2 + 1 / mu) / ((dim + 2) ** 2 + mu)
    # A diagonal has fewer parameters (Ros & Hansen, 2008).
    speedup = (dim + 2) / 3 if diagonal else 1.0
    speedup = min(speedup, 0.5 / (path + sample)) if speedup > 1 else 1.0
    return (mu + 2) / (dim + mu + 5), speedup * path, speedup * sample


def improve(
    policy: Gaussian, path: Float[np.ndarray, " d"], z: Float[np.ndarray, "n d"], weights: Weights, *,
    diagonal: bool, max_std: float,
) -> tuple[Gaussian, Float[np.ndarray, " d"]]:  # fmt: skip
    """Improve the policy from a judged draw: (new policy, new path).

    Args:
        path: the path of the steps before.
        z: the draw, whitened by `policy`.
        diagonal: keep the covariance diagonal.
        max_std: upper bound of each latent coordinate's standard deviation.
    """
    shift = mean_step(z, weights)
    rate, path_rate, sample_rate = _rates(len(shift), weights.effective, diagonal=diagonal)
    path = (1 - rate) * path + np.sqrt(rate * (2 - rate) / _noise(z, weights)) * shift
    factor = size_step(z, weights, path, beta=SIZE_BETA)
    shape = shape_step(policy, z, weights, path, sample_rate=sample_rate, path_rate=path_rate, diagonal=diagonal)
    mean = policy.mean + policy.size * policy.root @ shift
    size = min(policy.size * factor, max_std / float(np.sqrt(np.diag(shape).max())))
    return Gaussian(mean, size, shape), path


def _noise(z: Float[np.ndarray, "n d"], weights: Weights) -> float:
    """Variance of one coordinate of the shift while the feedback is random in direction.

    With the KL in closed form the lengths of the samples count too: near an optimum the rejected ones are longer than
    the others, which is no reason to grow.
    """
    square = (z**2).mean(-1) if weights.closed_kl else 1.0
    return max(float((weights.mean**2 * square).sum()), 1e-300)
