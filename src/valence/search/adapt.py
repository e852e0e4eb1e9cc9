"""How fast a search improves its policy: one setting, from the dimension alone, and the path of the mean.

The path is the mean's recent shift, whitened and scaled so that it is a draw of N(0, I) while feedback says nothing.
It counts as one more accepted sample for size and shape: a mean that keeps going one way lengthens the policy along
it, one that goes to and fro shortens it. It is what a reference that lags would see (second moments about the mean of
some steps ago), with a smooth forgetting for the lag.

Departs from the paper: the path, and KL weights of their own for size and shape. The path and the shape's rates are
those of evolution strategies (Hansen, "The CMA Evolution Strategy: A Tutorial", 2016, appendix A), where the path's
length sets the size.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from valence.search.gaussian import Gaussian
from valence.search.m_step import Weights, mean_step, shape_step, size_step

SIZE_BETA = 4 / 3
"""KL weight of the size, in units of W: samples and path have each 3 parts in 10 in its square, the reference 4."""


def default_population(dim: int) -> int:
    """How many are asked for at a time: even, growing with the logarithm of the dimension."""
    count = 4 + int(3 * np.log(dim))
    return count + count % 2


@dataclass(frozen=True)
class Rates:
    """Shares of the new in path and shape, of a draw that is worth `effective` samples in `dim` coordinates."""

    path: float
    shape_path: float
    shape_sample: float

    @classmethod
    def of(cls, dim: int, effective: float, *, diagonal: bool) -> Rates:
        mu = max(effective, 1.0)
        path = 2 / ((dim + 1.3) ** 2 + mu)
        sample = 2 * (mu - 2 + 1 / mu) / ((dim + 2) ** 2 + mu)
        # A diagonal has fewer numbers to learn (Ros & Hansen, 2008).
        faster = (dim + 2) / 3 if diagonal else 1.0
        faster = min(faster, 0.5 / (path + sample)) if faster > 1 else 1.0
        return cls((mu + 2) / (dim + mu + 5), faster * path, faster * sample)


def improve(
    policy: Gaussian,
    path: Float[np.ndarray, " d"],
    z: Float[np.ndarray, "n d"],
    weights: Weights,
    *,
    diagonal: bool,
    widest: float,
) -> tuple[Gaussian, Float[np.ndarray, " d"]]:
    """One improvement step from a judged draw.

    Args:
        path: of the steps before, `[d]`.
        z: the draw, whitened by `policy`, `[n, d]`.
        widest: no coordinate's standard deviation grows beyond it.
    Returns:
        The new policy and path.
    """
    shift = mean_step(z, weights)
    rates = Rates.of(len(shift), weights.effective, diagonal=diagonal)
    path = (1 - rates.path) * path + np.sqrt(rates.path * (2 - rates.path) / _noise(z, weights)) * shift
    factor = size_step(z, weights, path, beta=SIZE_BETA)
    shape = shape_step(
        policy, z, weights, path, sample_rate=rates.shape_sample, path_rate=rates.shape_path, diagonal=diagonal
    )
    mean = policy.mean + policy.size * policy.root @ shift
    size = min(policy.size * factor, widest / float(np.sqrt(np.diag(shape).max())))
    return Gaussian(mean, size, shape), path


def _noise(z: Float[np.ndarray, "n d"], weights: Weights) -> float:
    """Variance of the shift, a coordinate, while feedback says nothing of directions.

    With the KL in closed form the samples' own lengths count: rejected ones are longer than others near an optimum,
    which is no reason to grow.
    """
    square = (z**2).mean(-1) if weights.closed_kl else 1.0
    return max(float((weights.mean**2 * square).sum()), 1e-300)
