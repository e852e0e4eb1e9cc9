"""PMPO's improvement step for a Gaussian: in closed form, at rates that depend on dimension and number of samples.

    minimise  -alpha E_accepted[log pi] + (1 - alpha) E_rejected[log pi] + beta KL(pi_ref || pi)

-beta KL(pi_ref || pi) is beta E_ref[log pi] plus a constant, so this is maximum likelihood with signed weights of sum
W = alpha - (1 - alpha) + beta (PMPO paper, Eq. 10). For a Gaussian it has a closed form. Mean, size and shape are each
solved for while the other two are the reference's (as MPO decouples mean and covariance), so each can have its own KL
weight.

The path is an exponential average of the mean's shifts, whitened and scaled so that it is a draw of N(0, I) while the
feedback is random. Size and shape treat it as one more accepted sample: a mean that keeps moving in one direction
lengthens the policy along it, a mean that moves back and forth shortens it.

Shapes: n samples of d coordinates, whitened by the reference: z = 0 is its mean, E_ref[z z'] = I. Each sample has a
weight; the sum of the weights and of the weight of a closed-form KL is W, which must be > 0.

Departs from the paper: the path, separate KL weights for size and shape, and an estimate of E_ref[log pi] on the judged
draw itself (`kl="sampled"`, PMPO's BC form) beside the closed form (`kl="exact"`). Both are unbiased. On the draw the
weights at the smallest bounded beta are >= 0, as the density of the optimum is with many samples. In closed form the
noise of a rejected mean of a few samples is not cancelled, which slows a search down at every step. The path and the
rates of the shape are those of evolution strategies (Hansen, "The CMA Evolution Strategy: A Tutorial", 2016, appendix
A), where the length of the path sets the size.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from jaxtyping import Float

from valence.objectives.pmpo import PMPO
from valence.search.gaussian import Gaussian
from valence.search.judgement import Column, Judgement
from valence.search.space import Points, Vector

SMALLEST, LARGEST = 0.25, 4.0
"""Bounds of the factor by which one step changes size^2. The lower one also bounds the eigenvalues of the shape's."""
SIZE_BETA = 4 / 3
"""KL weight of the size, in units of W: its square is 30% samples, 30% path and 40% reference."""


@dataclass(frozen=True, eq=False)
class Weights:
    """The weight of each sample's log pi, divided by W. Each column sums to 1 together with `closed_kl`.

    Args:
        mean: `[n]`, for the mean; accepted samples are weighted by rank.
        spread: `[n]`, for size and shape; plain class means, which leave size and shape unchanged on a linear slope.
        closed_kl: weight of the closed-form KL, >= 0.
        slope: the expectation of spread @ (z'z - d) on a linear slope, where the size should not change; 0 where both
            classes hold half of the samples.
    """

    mean: Column
    spread: Column
    closed_kl: float
    slope: float = 0.0

    @property
    def effective(self) -> float:
        """Number of equally weighted samples that would give the mean as much noise."""
        return 1 / max(float((self.mean**2).sum()), 1e-300)


def pmpo_weights(judgement: Judgement, objective: PMPO, *, exact_kl: bool) -> Weights | None:
    """The objective's weights on a judged draw; None where its classes are empty and there is nothing to learn.

    An empty class is dropped. beta="auto" is the bound of what is left, (1 - alpha) / rho, where rho is the rejected
    fraction of the whole draw; unlabelled samples count as not rejected. Where some samples are rejected more than
    others (pairs, ties), the most rejected one sets the bound. Where all samples were rejected, the draw shows nothing
    else of the reference: the KL is then in closed form, and rho is taken as 1/2.

    Warns:
        The objective's beta gives W <= 0, as beta 0.5 does where there are only rejections: the bound is used.
    """
    count, alpha = len(judgement), objective.accepted_weight
    accepts = alpha * bool(judgement.accepted.any())
    rejects = (1 - alpha) * bool(judgement.rejected.any())
    if accepts == rejects == 0:
        return None
    rejected = float((judgement.rejected > 0).mean()) if rejects else 0.0
    exact_kl = exact_kl or rejected == 1.0
    away = rejects * _unit(judgement.rejected)
    # rejects / rho where all rejected samples weigh the same; else the most rejected sample sets the bound.
    bound = 2 * rejects if rejected == 1.0 else float(away.max()) * count
    beta = bound if objective.beta == "auto" else float(objective.beta)
    total = accepts - rejects + beta
    if total <= 1e-12:
        warnings.warn(f"beta = {beta:g} is too small for the rejections in this draw: {bound:g} is used", stacklevel=4)
        beta, total = bound, accepts - rejects + bound
    anchor = 0.0 if exact_kl else beta / count
    mean = (accepts * _unit(judgement.strength) - away + anchor) / total
    spread = (accepts * _unit(judgement.accepted) - away + anchor) / total
    accepted = float((judgement.accepted > 0).mean())
    slope = (accepts * _tail_excess(accepted) - rejects * _tail_excess(rejected)) / total
    return Weights(mean, spread, beta / total if exact_kl else 0.0, slope)


def _tail_excess(fraction: float) -> float:
    """E[z^2] - 1 of the upper `fraction` of a standard normal; 0 where the fraction is 0 or 1."""
    if not 0 < fraction < 1:
        return 0.0
    edge = NormalDist().inv_cdf(1 - fraction)
    return edge * NormalDist().pdf(edge) / fraction


def _unit(column: Column) -> Column:
    total = column.sum()
    return column / total if total > 0 else column


def mean_step(z: Points, weights: Weights) -> Vector:
    """The whitened shift of the mean: (alpha m_a - (1 - alpha) m_r + beta m_0) / W, with m_0 = 0."""
    return weights.mean @ z


def size_step(z: Points, weights: Weights, path: Vector, *, beta: float) -> float:
    """The factor by which the size changes.

    Args:
        path: one more accepted sample, with weight 1.
        beta: KL weight of the size, in units of W.
    """
    own = weights.spread @ ((z**2).mean(-1) - 1) - weights.slope / len(path)
    # A spread cannot be estimated from one sample.
    own *= min(max(weights.effective - 1, 0.0), 1.0)
    return float(np.sqrt(np.clip(1 + (own + path @ path / len(path) - 1) / (2 + beta), SMALLEST, LARGEST)))


def shape_step(
    policy: Gaussian, z: Points, weights: Weights, path: Vector, *, sample_rate: float, path_rate: float, diagonal: bool
) -> Float[np.ndarray, "d d"]:
    """The new shape: the weighted second moment, rescaled, is the likeliest covariance with determinant 1.

    Args:
        sample_rate: share of the samples, W / (W + weight of the path + KL weight of the shape), in [0, 1).
        path_rate: share of the path, likewise; the rest is the reference's share.
        diagonal: only the diagonal changes.
    """
    identity = np.eye(z.shape[1])
    moment = (weights.spread[:, None] * z).T @ z - weights.spread.sum() * identity
    target = identity + sample_rate * moment + path_rate * (np.outer(path, path) - identity)
    if diagonal:
        target = np.diag(np.maximum(np.diag(target), SMALLEST))
    else:
        values, vectors = np.linalg.eigh(target)
        target = (vectors * np.maximum(values, SMALLEST)) @ vectors.T
    shape = policy.root @ target @ policy.root
    shape = (shape + shape.T) / 2
    return shape / np.exp(np.linalg.slogdet(shape)[1] / len(shape))


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
    policy: Gaussian, path: Vector, z: Points, weights: Weights, *, diagonal: bool, max_std: float
) -> tuple[Gaussian, Vector]:
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


def _noise(z: Points, weights: Weights) -> float:
    """Variance of one coordinate of the shift while the feedback is random in direction.

    With the KL in closed form the lengths of the samples count too: near an optimum the rejected ones are longer than
    the others, which is no reason to grow.
    """
    square = (z**2).mean(-1) if weights.closed_kl else 1.0
    return max(float((weights.mean**2 * square).sum()), 1e-300)
